"""Bundles: made whole or not at all, checked without images, and every altered byte, number and file is found."""

import io
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from makers.experiments import PLAIN, SPLITS, toy_row
from makers.pictures import write_shards
from makers.runs import train_config
from makers.tickets import select_tickets, tree_bytes

from dlth.data.shards.index import open_index
from dlth.pipeline.evidence.arm_key import ArmKey
from dlth.pipeline.evidence.study_plan import PlannedRun, RunCost, StudyPlan
from dlth.pipeline.reproduction import bundle
from dlth.pipeline.reproduction.bundle import MANIFEST, BundleOf, Manifest, write_bundle
from dlth.pipeline.reproduction.check import check_bundle, check_bundles
from dlth.pipeline.reproduction.checked_bundle import CheckedBundle
from dlth.pipeline.reproduction.table import as_csv, as_markdown, table
from dlth.tickets import Budget, SelectorInfo, TicketHeader, ViewSpec
from dlth.tickets.derive.draft import unscored
from dlth.tickets.errors import IncompleteError, MismatchError, MissingFileError
from dlth.training.runs.loop import train
from dlth.training.runs.sealed_json import sealed

RUN = "ticket-seed0"
SELECTOR = toy_row("toy/selector/0.8", "selector", rate="0.8")
LT = toy_row("toy/lt/0.8", "lt", rate="0.8", selector=SELECTOR.name)
RANKED = {
    "selector": SelectorInfo(SELECTOR.settings["model"], "", "file", (1, 2, 3)),
    "budget": Budget.from_stage_keep("0.8", 16, 3),
}
"""What the tickets of the row's own selector say."""
ROWS = {row.name: row for row in (LT, SELECTOR)}


@pytest.fixture(scope="module")
def of(tmp_path_factory: pytest.TempPathFactory) -> BundleOf:
    """Two finished runs of the row, seeds 0 and 1, and their plan."""
    study = tmp_path_factory.mktemp("study")
    train_images, val = (write_shards(study, len(rows), rows, split=split).spec for split, rows in SPLITS.items())
    tickets = {}
    for name, spec, view in (
        ("tickets", train_images, ViewSpec("whole", 32, 32)),
        ("val_tickets", val, ViewSpec("center", 32, 32, "0.9")),
    ):
        tickets[name] = str(
            select_tickets(open_index(spec), study / f"{name}.zarr", view=view, split="", **RANKED).path
        )
    runs, planned = {}, []
    for seed in (0, 1):
        name = f"ticket-seed{seed}"
        config = train_config(
            *(train_images, study / "runs" / name), val=val, seed=seed, keep=LT.keep, **PLAIN, **tickets
        )
        train(config)
        runs[name] = study / "runs" / name
        key = ArmKey("ticket", LT.keep, "projected")
        planned.append(PlannedRun(name, key, seed, config.model_dump(mode="json"), RunCost(2, 6, 42, 400, 1e9)))
    return BundleOf(LT.name, "projected", "1", runs, StudyPlan(tuple(planned)))


@pytest.fixture(scope="module")
def whole(of: BundleOf, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("bundles"), of)


@pytest.fixture
def copied(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / whole.name))


def checked(folder: Path) -> CheckedBundle:
    return check_bundle(folder, ROWS)


def digested(folder: Path) -> None:
    """What somebody does who alters a bundle and knows how: all digests of it are made anew."""
    manifest = Manifest.read(folder)
    files = {name: bundle._record(folder / name) for name in manifest.files}
    (folder / MANIFEST).write_text(replace(manifest, files=files).text())


def test_a_whole_bundle_gives_the_table(whole: Path) -> None:
    """Numbers of a complete bundle are the means of its single images; a row that was not run says so."""
    found, other = checked(whole), toy_row("toy/dense", "dense")
    assert (found.damage, found.unlike, found.in_table) == ((), (), True)
    results = [
        json.loads((whole / "runs" / name / "result.json").read_text()) for name in ("ticket-seed0", "ticket-seed1")
    ]
    said = [result["evaluation"]["model"] for result in results]
    line, empty = table([LT, other], [found])
    assert line.ticket == pytest.approx(np.mean([each["ticket"]["top1"] for each in said]))
    assert line.dense == pytest.approx(np.mean([each["dense"]["top1"] for each in said]))
    assert (line.seeds, line.k, line.state, line.hours is not None) == ("0, 1", 9, "complete", True)
    assert (empty.state, empty.dense, empty.hours) == ("not run", None, None)
    assert "| toy/dense | – |" in as_markdown([line, empty])
    assert as_csv([line, empty]).splitlines()[2].startswith("toy/dense,,,16,2,,")


def test_every_altered_byte_is_found(copied: Path) -> None:
    """A bit flipped anywhere, in any file, is damage: at forty places of each, and at every seventh of the manifest."""
    for name, raw in tree_bytes(copied).items():
        step = 7 if name == MANIFEST else max(1, len(raw) // 40)
        for place in {*range(0, len(raw), step), len(raw) - 1}:
            (copied / name).write_bytes(raw[:place] + bytes([raw[place] ^ 1 << place % 8]) + raw[place + 1 :])
            assert checked(copied).damage, f"{name}, byte {place}"
        (copied / name).write_bytes(raw)
    assert not checked(copied).damage


def test_every_missing_and_added_file_is_found(copied: Path) -> None:
    """A file that is gone, cut, longer, a link, or one too many in any folder is damage, and named."""
    for name, raw in tree_bytes(copied).items():
        path = copied / name
        path.unlink()
        assert checked(copied).damage, name
        path.symlink_to(__file__)
        assert checked(copied).damage, name
        path.unlink()
        for other in (b"", raw[:-1], raw + b" "):
            path.write_bytes(other)
            assert checked(copied).damage, name
        path.write_bytes(raw)
    for name in ("x", "runs/x", f"runs/{RUN}/x", f"runs/{RUN}/.x", "x/y"):
        (copied / name).parent.mkdir(exist_ok=True)
        (copied / name).write_bytes(b"")
        assert any(name in str(problem) for problem in checked(copied).damage)
        (copied / name).unlink()
    (copied / "x").rmdir()
    for extra in ("empty", f"runs/{RUN}/empty"):
        (copied / extra).mkdir()
        assert checked(copied).damage
        (copied / extra).rmdir()
    assert not checked(copied).damage


def numbers(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths of all numbers in JSON."""
    if isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from numbers(item, (*path, key))
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield path


def changed(content: Any, path: tuple[Any, ...]) -> Any:
    copy = json.loads(json.dumps(content))
    place = copy
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] += 1
    return copy


def test_numbers_altered_with_all_digests_made_anew_are_found(copied: Path) -> None:
    """Each accuracy, loss and count of the result, each of the log's last epoch, settings, and each single image
    is held against the others: one that was altered, digests and all, contradicts them.
    """
    path = copied / "runs" / RUN / "result.json"
    raw = path.read_bytes()
    result = json.loads(raw)
    result.pop("sha256")
    for place in [*numbers(result["evaluation"], ("evaluation",)), ("config", "seed"), ("config", "lr")]:
        if place[-1] in ("tokens", "with_ticket"):
            continue
        path.write_text(json.dumps(sealed(changed(result, place)), indent=2) + "\n")
        digested(copied)
        assert checked(copied).damage, place
    path.write_bytes(raw)
    path = copied / "runs" / RUN / "metrics.jsonl"
    raw = path.read_bytes()
    *before, last = raw.decode().splitlines()
    for name in [name for name in json.loads(last) if name.startswith("eval_")]:
        path.write_text("\n".join([*before, json.dumps(changed(json.loads(last), (name,)))]) + "\n")
        digested(copied)
        assert checked(copied).damage, name
    path.write_bytes(raw)
    path = copied / "runs" / RUN / "eval.npz"
    columns = dict(np.load(path))
    for name in [name for name in columns if name.endswith(("_top1", "_top5", "_seen"))]:
        column = columns[name].copy()
        column[3] ^= True
        saved = io.BytesIO()
        np.savez_compressed(saved, **columns | {name: column})
        path.write_bytes(saved.getvalue())
        digested(copied)
        assert checked(copied).damage, name


@pytest.mark.parametrize(
    ("place", "value"),
    [
        *((("k",), 4), (("k_last",), 4), (("data", "k"), 4), (("evaluation", "model", "ticket", "tokens"), 4)),
        *((("arm",), "random"), (("mode",), "online"), (("model",), "other"), (("keep",), "0.9"), (("epochs",), 3)),
        *((("seed",), 7), (("steps",), 7), (("train_images",), 9), (("train_tokens",), 9), (("train_flops",), 9.0)),
        *((("train_loss",), 9.0), (("throughput", "data_seconds"), 9.0), (("throughput", "compute_seconds"), -9.0)),
        *((("tickets",), ""), (("val_tickets",), ""), (("data", "tickets"), ""), (("data", "val_tickets"), "")),
        *((("data", "validation_images"), 50_000), (("data", "val"), "0" * 64), (("data", "val_labels"), "0" * 64)),
        *((("weights_sha256",), ""), (("evaluation",), {}), (("num_patches",), 25)),
    ],
)
def test_what_a_result_says_besides_is_held_against_the_rest(copied: Path, place: tuple[str, ...], value: Any) -> None:
    """A fact of a result that its settings, log, images or tickets contradict is damage, all digests made anew."""
    path = copied / "runs" / RUN / "result.json"
    result = json.loads(path.read_text())
    result.pop("sha256")
    inner = result
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    path.write_text(json.dumps(sealed(result), indent=2) + "\n")
    digested(copied)
    assert checked(copied).damage


def alter_log(folder: Path, text: str, other: str) -> None:
    path = folder / "runs" / RUN / "metrics.jsonl"
    assert re.search(text, path.read_text())
    path.write_text(re.sub(text, other, path.read_text()))


def alter_images(folder: Path, name: str, values: Any) -> None:
    path = folder / "runs" / RUN / "eval.npz"
    columns = dict(np.load(path))
    np.savez_compressed(path, **columns | {name: np.array(values(columns[name]))})


def alter_manifest(folder: Path, **values: Any) -> None:
    (folder / MANIFEST).write_text(replace(Manifest.read(folder), **values).text())


def repeat(folder: Path) -> None:
    """The first run stands twice, with every digest made anew."""
    content = json.loads((folder / MANIFEST).read_text())
    content.pop("sha256")
    content["runs"].append(RUN)
    (folder / MANIFEST).write_text(json.dumps(sealed(content), indent=1, sort_keys=True) + "\n")


def copy_run(folder: Path) -> None:
    """The second run has the first one's images, and all that follows from them."""
    runs = [folder / "runs" / name for name in (RUN, "ticket-seed1")]
    first, second = (json.loads((run / "result.json").read_text()) for run in runs)
    for name in ("eval.npz", "metrics.jsonl"):
        shutil.copy(runs[0] / name, runs[1] / name)
    taken = ("evaluation", "throughput", "train_loss", "best", "hidden_share")
    second |= {name: first[name] for name in taken}
    second.pop("sha256")
    (runs[1] / "result.json").write_text(json.dumps(sealed(second), indent=2) + "\n")


@pytest.mark.parametrize(
    ("alter", "why"),
    [
        (repeat, "a run is named twice"),
        (copy_run, "every image's loss in common"),
        (lambda folder: alter_manifest(folder, mode="online"), "the bundle's mode is online"),
        (lambda folder: alter_manifest(folder, weights={}), "does not name the weights of its runs"),
        (
            lambda folder: alter_manifest(
                folder, weights={name: {"model.safetensors": "0" * 64} for name in Manifest.read(folder).runs}
            ),
            "the file of their weights in common",
        ),
        (lambda folder: alter_log(folder, '"k": 9', '"k": 4'), "k of its last step is 9"),
        (lambda folder: alter_log(folder, '"data_seconds": 0', '"data_seconds": 9'), "hours of training is"),
        (lambda folder: alter_log(folder, '\\{"kind": "epoch", "step": 3.*\n', ""), "the log's epochs"),
        (lambda folder: alter_images(folder, "keys", lambda keys: [f"x{key}" for key in keys]), "keys of the valid"),
        (lambda folder: alter_images(folder, "keys", lambda keys: ["\ud800", *keys[1:]]), "keys of the valid"),
        (lambda folder: alter_images(folder, "labels", lambda labels: labels[::-1]), "labels of the validation"),
    ],
)
def test_what_the_files_of_a_bundle_contradict_is_damage(copied: Path, alter: Callable[[Path], None], why: str) -> None:
    """Runs that count twice, another mode, weights of no run, a log or images of others: damage, all digests anew."""
    alter(copied)
    if alter is not repeat:
        digested(copied)
    assert why in str(checked(copied).damage[0])


@pytest.mark.parametrize(
    ("maker", "altered", "told"),
    [
        ("0.0.1", {}, "other settings: by dlth 0.0.1, whose settings lack mask; check it with that version"),
        ("0.0.1", {"lr": 0.5}, "other settings"),
        (version("dlth"), {}, "other settings"),
    ],
    ids=["older", "older and altered", "this one"],
)
def test_damage_says_which_version_had_fewer_settings(
    copied: Path, maker: str, altered: dict[str, Any], told: str
) -> None:
    """A result without a setting that this version has is damage; its version is named if nothing else is other."""
    path = copied / "runs" / RUN / "result.json"
    result = json.loads(path.read_text())
    del result["sha256"], result["config"]["mask"]
    result["config"] |= altered
    path.write_text(json.dumps(sealed(result), indent=2) + "\n")
    alter_manifest(copied, versions={"dlth": maker})
    digested(copied)
    assert str(checked(copied).damage[0]).endswith(f"its result was made with {told}")


def test_runs_of_other_images_are_not_one_row(copied: Path) -> None:
    """Runs of one bundle that were trained on other images than each other, whole in themselves, give no number."""
    path = copied / "runs" / RUN / "result.json"
    result = json.loads(path.read_text())
    result.pop("sha256")
    result["data"]["data_content"] = "0" * 64
    path.write_text(json.dumps(sealed(result), indent=2) + "\n")
    digested(copied)
    found = checked(copied)
    assert (found.damage, found.in_table) == ((), False)
    assert found.unlike[0].startswith("the training images' bytes")


def test_what_is_not_the_row_is_not_in_its_table(of: BundleOf, tmp_path: Path) -> None:
    """A whole bundle at a smaller scale, of fewer images, of other settings or of no row gives the table no number."""
    scaled = write_bundle(tmp_path, replace(of, scale="0.5"))
    assert scaled.name == "toy_lt_0.8+projected+scale0.5"
    full = write_bundle(tmp_path, of)
    (found,) = (each for each in check_bundles(tmp_path, ROWS) if each.folder == scaled)
    (line,) = table([LT], [found])
    assert (found.damage, line.dense, line.state) == ((), None, "not comparable")
    assert found.text.startswith("whole, but not in the table: tried with 0.5 of its images and epochs | top-1 seed")
    assert line.why == "tried with 0.5 of its images and epochs"
    larger = replace(LT, dataset=replace(LT.dataset, images=1000, val_images=500), epochs=300, batch=1024)
    unlike = check_bundle(full, ROWS | {LT.name: larger}).unlike
    assert "epochs is 2, not 300" in unlike
    assert "images of a step: 8, not 1024" in unlike
    assert "training images: 21, not 1000" in unlike
    assert "validation images: 11, not 500" in unlike
    faster = replace(LT, settings={**LT.settings, "lr": 0.01})
    assert check_bundle(full, ROWS | {LT.name: faster}).unlike == ("lr is 0.001, not 0.01",)
    assert check_bundle(full, {}).unlike == ("no experiment of this version has its name",)


@pytest.mark.parametrize(
    ("ranked", "why"),
    [
        (
            {"selector": unscored("control: inverse"), "stage_tokens": ()},
            "tickets are of control: inverse: model control: inverse, not",
        ),
        ({"selector": replace(RANKED["selector"], model="deit_tiny_patch16_224")}, "model deit_tiny_patch16_224, not"),
        ({"selector": replace(RANKED["selector"], fuse_tokens=True)}, "fused tokens True, not False"),
        ({"extensions": {"ranker": "rollout"}}, "ranker rollout, not evit"),
        ({"extensions": {"average_views": {"crops": 3}}}, "ranked by the mean of 5 views, not by one"),
        ({"stage_tokens": (15, 12, 9)}, r"patches of each stage \(15, 12, 9\), not \(13, 11, 9\)"),
    ],
)
def test_whose_patches_are_ranked_by_another_is_not_the_row(copied: Path, ranked: dict[str, Any], why: str) -> None:
    """Tickets of a control, another model, another rule or rate give the row of its own selector no number."""
    tickets = json.loads((copied / "tickets.json").read_text())
    header = TicketHeader.from_json(tickets["tickets"]["header"])
    tickets["tickets"]["header"] = replace(header, **ranked).to_json()
    (copied / "tickets.json").write_text(json.dumps(tickets))
    digested(copied)
    found = checked(copied)
    assert (found.damage, found.in_table) == ((), False)
    assert re.search(why, found.unlike[0])


def test_a_bundle_is_made_once_and_of_finished_runs(of: BundleOf, tmp_path: Path) -> None:
    """A bundle stays as it is, grows by seeds, never loses any, and is not made of a run that is not finished."""
    assert of.plan is not None
    one = replace(of, runs={RUN: of.runs[RUN]}, plan=replace(of.plan, runs=of.plan.runs[:1]))
    folder = write_bundle(tmp_path, one)
    before = (folder / MANIFEST).stat().st_mtime_ns
    assert write_bundle(tmp_path, one) == folder
    assert (folder / MANIFEST).stat().st_mtime_ns == before
    assert Manifest.read(write_bundle(tmp_path, of)).runs == list(of.runs)
    with pytest.raises(MismatchError, match="is a bundle of other runs"):
        write_bundle(tmp_path, one)
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    with pytest.raises(IncompleteError, match=r"toy/other: .*unfinished is not finished"):
        write_bundle(tmp_path, replace(of, row="toy/other", runs={RUN: unfinished}))
    assert sorted(os.listdir(tmp_path)) == [folder.name, "unfinished"]


def test_check_of_a_folder_names_each_bundle(
    copied: Path, whole: Path, dlth: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    """`dlth reproduce check` ends with 0 for whole bundles, with 1 and its name for a damaged one, with 2 for none."""
    code, out, _ = dlth("reproduce", "check", whole, "--json")
    told: Mapping[str, Any] = json.loads(out)
    assert (code, told["ok"], told["bundles"][0]["whole"], told["bundles"][0]["row"]) == (0, True, True, "toy/lt/0.8")
    assert {line["state"] for line in told["table"]} > {"not run"}
    (copied / "tickets.json").unlink()
    code, out, err = dlth("reproduce", "check", copied.parent, "--markdown", tmp_path / "table.md")
    assert code == 1
    assert "damaged[E_DAMAGE]" in err
    assert "tickets.json is missing" in err
    assert f"{copied.name}: damaged" in out
    assert "| deit-s/dense |" in (tmp_path / "table.md").read_text()
    for number in range(150):
        (copied / str(number)).mkdir()
    assert {type(each.damage[0]).__name__ for each in check_bundles(copied.parent)} == {"LimitError"}
    link = copied.parent / "link"
    link.symlink_to(whole)
    assert [type(bundle.damage[0]).__name__ for bundle in check_bundles(copied.parent) if bundle.folder == link] == [
        "UnsafeError"
    ]
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(MissingFileError, match="holds no bundle"):
        check_bundles(empty)
