"""Rows run from images alone: selector, tickets, students, bundles; again, in part, and at a smaller scale."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from makers.experiments import SPLITS, toy_row
from makers.pictures import write_shards
from makers.runs import KWARGS
from safetensors.torch import load_file, save_file

from dlth.pipeline.evidence.arm_key import ArmKey, pairs
from dlth.pipeline.evidence.evidence import COMPARED
from dlth.pipeline.evidence.gather import gather
from dlth.pipeline.reproduction.bundle import Manifest
from dlth.pipeline.reproduction.check import check_bundles
from dlth.pipeline.reproduction.experiment import ARMS, Experiment
from dlth.pipeline.reproduction.experiments import EXPERIMENTS
from dlth.pipeline.reproduction.reproduce import Listener, Reproduction, _variant
from dlth.pipeline.reproduction.reproduce_config import ReproduceConfig
from dlth.pipeline.reproduction.scaling import first_shards, scaled, step_settings
from dlth.pipeline.reproduction.table import table
from dlth.pipeline.selection import stage
from dlth.tickets import TicketStore
from dlth.tickets.derive.controls import control
from dlth.tickets.errors import InputError

SMALLER = {**toy_row("", "").settings, "model_kwargs": KWARGS | {"embed_dim": 16}}
ROWS = {
    row.name: row
    for row in (
        toy_row("toy/dense", "dense"),
        toy_row("toy/selector/0.8", "selector", rate="0.8", settings={**toy_row("", "").settings, "recipe": "evit"}),
        toy_row("toy/lt/0.8", "lt", rate="0.8", selector="toy/selector/0.8"),
        toy_row("toy/rc/0.8", "rc", rate="0.8", selector="toy/selector/0.8"),
        toy_row("toy/pruned", "lt", missing="nothing prunes"),
    )
}
OTHERS = {
    row.name: row
    for row in (
        toy_row("small/selector/0.8", "selector", rate="0.8", settings={**SMALLER, "recipe": "evit"}),
        toy_row("toy/small-selects/lt/0.8", "lt", rate="0.8", selector="small/selector/0.8"),
        toy_row("toy/dense-selects/lt/0.8", "lt", rate="0.8", selector="toy/dense"),
    )
}
MACHINE = {"device": "cpu", "workers": 0, "measure": 0, "batch_size": 8}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("images")
    train, val = (write_shards(folder, len(rows), rows, split=split).spec for split, rows in SPLITS.items())
    return {"data": train, "val": val}


def asked(images: dict[str, str], out: Path, *names: str, **values: Any) -> tuple[Reproduction, list[str]]:
    """The rows of these names, and what is said of them."""
    said: list[str] = []
    config = ReproduceConfig(**MACHINE | images | {"out": str(out)} | values)
    rows = ROWS | OTHERS
    return Reproduction.of(config, [rows[name] for name in names], Listener(said.append), rows), said


@pytest.fixture(scope="module")
def finished(images: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the dense row, a selector that starts from its weights, and both arms on its tickets."""
    out = tmp_path_factory.mktemp("reproduction") / "out"
    first, _ = asked(images, out, "toy/dense")
    assert len(first.run().bundles) == 1
    (run,) = first.founded().runs
    weights = str(out / "study" / "runs" / run.name)
    rest, _ = asked(images, out, "toy/selector/0.8", "toy/lt/0.8", "toy/rc/0.8", init_from=weights)
    assert len(rest.to_make()) == 3
    assert len(rest.planned(as_random=True)) == 2
    assert len(rest.run().bundles) == 3
    assert rest.to_make() == []
    return out


def test_rows_become_the_table(finished: Path) -> None:
    """Every row of a folder in which all were run has its numbers, of whole bundles that are the rows'."""
    bundles = check_bundles(finished, ROWS)
    assert [(bundle.damage, bundle.unlike) for bundle in bundles] == [((), ())] * 4
    lines = {line.row: line for line in table(ROWS.values(), bundles)}
    assert {name: line.state for name, line in lines.items()} == {
        **dict.fromkeys(("toy/dense", "toy/selector/0.8", "toy/lt/0.8", "toy/rc/0.8"), "complete"),
        "toy/pruned": "cannot be run",
    }
    assert [lines[name].k for name in ("toy/dense", "toy/selector/0.8", "toy/lt/0.8")] == [16, 9, 9]
    assert lines["toy/dense"].ticket is None
    assert all(lines[name].ticket is not None for name in ("toy/selector/0.8", "toy/lt/0.8", "toy/rc/0.8"))


def test_tickets_are_made_at_the_rows_rate_by_its_selector(finished: Path) -> None:
    """Both arms have the tickets of the row's selector: made at its rate, on whole images, of form full, once."""
    files = sorted((finished / "tickets").glob("*.zarr"))
    assert [file.name for file in files] == [f"toy-toy_selector-0.8-{end}.zarr" for end in ("train", "val-crop0.875")]
    header = TicketStore(files[0]).header
    assert (header.form, header.stage_keep, header.k, header.view.kind) == ("full", "0.8", 9, "whole")
    assert TicketStore(files[1]).header.view.kind == "center"
    bundles = [Manifest.read(path) for path in sorted((finished / "bundles").iterdir())]
    assert [(bundle.row, bundle.mode) for bundle in bundles] == [
        *(("toy/dense", ""), ("toy/lt/0.8", "projected"), ("toy/rc/0.8", "projected"), ("toy/selector/0.8", ""))
    ]


def test_a_bundle_is_a_study_to_a_report(finished: Path) -> None:
    """What gathers studies for a report takes students' bundles, and finds the arms of one model side by side."""
    names = ("toy_dense", "toy_lt_0.8+projected", "toy_rc_0.8+projected")
    evidence = gather([finished / "bundles" / name for name in names])
    share = ROWS["toy/lt/0.8"].keep
    assert set(evidence.runs) == {
        ArmKey("dense", variant="toy"),
        *(ArmKey(arm, share, "projected", "toy") for arm in ("ticket", "random")),
    }


def test_a_second_call_does_what_is_missing(finished: Path, images: dict[str, str]) -> None:
    """The same rows again change nothing; another seed adds its run, and the bundle then holds both."""
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*.npz")}
    again, _ = asked(images, finished, "toy/dense")
    assert again.run().bundles == (finished / "bundles" / "toy_dense",)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    more, _ = asked(images, finished, "toy/dense", seeds=(1,))
    more.run()
    (bundle,) = (each for each in check_bundles(finished, ROWS) if each.row == "toy/dense")
    assert (sorted(run.seed for run in bundle.runs), bundle.in_table) == ([0, 1], True)


def test_another_mode_is_another_bundle(finished: Path, images: dict[str, str]) -> None:
    """The same row with the selector in the loop makes no tickets, and its bundle has its own run alone."""
    online, _ = asked(images, finished, "toy/lt/0.8", mode="online")
    assert online.to_make() == []
    (folder,) = online.run().bundles
    (found,) = (bundle for bundle in check_bundles(finished, ROWS) if bundle.folder == folder)
    assert (found.mode, [run.seed for run in found.runs], found.unlike) == ("online", [0], ())


def test_a_smaller_scale_is_marked_and_kept_apart(finished: Path, images: dict[str, str]) -> None:
    """A row tried with half of its shards and epochs has a bundle that says so, beside the whole one, which stays."""
    small, _ = asked(images, finished, "toy/dense", scale="0.5")
    (folder,) = small.run().bundles
    assert folder.name == "toy_dense+scale0.5"
    bundles = check_bundles(finished, ROWS)
    (trial,) = (bundle for bundle in bundles if bundle.folder == folder)
    assert trial.unlike == ("tried with 0.5 of its images and epochs",)
    (line,) = table([ROWS["toy/dense"]], bundles)
    assert line.state == "complete"
    assert (finished / "scale0.5" / "study" / "study.json").is_file()


def test_rows_are_held_against_the_paper_s_partners(finished: Path, images: dict[str, str]) -> None:
    """Matched random patches stand beside their model's tickets, and every model's arms beside its dense row."""
    names = ("deit-s/dense", "deit-s/lt/0.9", "deit-s/rc-matched/0.9", "deit-s/ti-selects/lt/0.9", "swin-t/dense")
    rows = [EXPERIMENTS[name] for name in (*names, "swin-t/zero/lt/0.9", "resnet50/dense", "resnet50/zero/rc/0.9")]
    row_of = {ArmKey(ARMS[row.arm], row.keep, "projected" if row.keep else "", _variant(row)): row.name for row in rows}
    held = [(row_of[one], row_of[other]) for arms in COMPARED for one, other in pairs(*arms, row_of)]
    assert sorted(held) == [
        ("deit-s/dense", "deit-s/rc-matched/0.9"),
        ("deit-s/lt/0.9", "deit-s/dense"),
        ("deit-s/lt/0.9", "deit-s/rc-matched/0.9"),
        ("deit-s/ti-selects/lt/0.9", "deit-s/dense"),
        ("resnet50/dense", "resnet50/zero/rc/0.9"),
        ("swin-t/zero/lt/0.9", "swin-t/dense"),
    ]
    assert asked(images, finished, "toy/dense")[0].founded().may_differ == ("epochs",)


def test_a_share_is_of_the_first_shards_and_of_the_epochs(images: dict[str, str]) -> None:
    """A scale takes whole shards from the first on, at least one, and epochs, at least one; steps shrink to fit."""
    assert first_shards(images["data"], None, "0.5").count(".tar") == 2
    assert first_shards(images["data"], None, "0.01").endswith("train-000000.tar")
    assert [scaled(EXPERIMENTS["deit-s/dense"], share).epochs for share in ("1", "0.01", "0.001")] == [300, 3, 1]
    row = EXPERIMENTS["deit-s/dense"]
    assert step_settings(row, 8, 128) == {"batch_size": 128, "grad_accum_steps": 1}
    assert step_settings(row, 2, 96) == {"batch_size": 64, "grad_accum_steps": 8}
    assert step_settings(row, 2, 128, images=21) == {"batch_size": 10, "grad_accum_steps": 1}
    assert step_settings(row, 1, 128, images=3) == {"batch_size": 2, "grad_accum_steps": 1}
    with pytest.raises(InputError, match=r"--gpus 3: a step of deit-s/dense has 1,024 images"):
        step_settings(row, 3, 128)


def test_what_is_lacking_is_said_before_anything_is_trained(images: dict[str, str], tmp_path: Path) -> None:
    """Rows without a selector, without token labels, or of what dlth has not are refused or left out, by name."""
    with pytest.raises(InputError, match=r"toy/lt/0\.8 needs a selector: .* or run toy/selector/0\.8 too"):
        asked(images, tmp_path, "toy/lt/0.8")
    with pytest.raises(InputError, match="none of these rows can be run: nothing prunes"):
        asked(images, tmp_path, "toy/pruned")
    _, said = asked(images, tmp_path, "toy/dense", "toy/pruned")
    assert said == ["toy/pruned is left out: nothing prunes"]
    labelled: Experiment = replace(ROWS["toy/dense"], settings={"recipe": "lvvit"})
    config = ReproduceConfig(**MACHINE | images | {"out": str(tmp_path)})
    with pytest.raises(InputError, match="toy/dense: give --token-labels"):
        Reproduction.of(config, [labelled], experiments={labelled.name: labelled})
    assert list(tmp_path.iterdir()) == []


def test_weights_serve_rows_of_their_model(finished: Path, images: dict[str, str], tmp_path: Path) -> None:
    """A given selector ranks for rows whose selector is of its model, by its note or its shapes, and for no others;
    weights to start from are of the row's model, and there.
    """
    run = next((finished / "study" / "runs").glob("dense-*"))
    bare = tmp_path / "bare.safetensors"
    save_file(load_file(run / "model.safetensors"), bare)
    for weights in map(str, (run, bare)):
        rows, said = asked(images, tmp_path, "toy/lt/0.8", "toy/small-selects/lt/0.8", selector=weights)
        assert [row.name for row in rows.rows] == ["toy/lt/0.8"]
        assert said == [f"toy/small-selects/lt/0.8 is left out: --selector {weights} is not of vit_tiny_patch16_224"]
        with pytest.raises(InputError, match="none of these rows can be run: --selector"):
            asked(images, tmp_path, "toy/small-selects/lt/0.8", selector=weights, mode="online")
        with pytest.raises(InputError, match=r"^small/selector/0\.8: --init-from .* is not of vit_tiny_patch16_224$"):
            asked(images, tmp_path, "toy/selector/0.8", "small/selector/0.8", init_from=weights)
    config = ReproduceConfig(**MACHINE | images | {"out": str(tmp_path)})
    with pytest.raises(InputError, match=r"deit-576/selector/0\.95: timm has no released weights of deit_576: give"):
        Reproduction.of(config, [EXPERIMENTS["deit-576/selector/0.95"]])


def test_given_tickets_that_are_not_the_rows_are_told_beforehand(
    finished: Path, images: dict[str, str], tmp_path: Path
) -> None:
    """Tickets of the row's own selector are taken without a word; of a control, no number is promised."""
    tickets = {name: next((finished / "tickets").glob(f"*-{name}*.zarr")) for name in ("train", "val")}
    given = {"tickets": str(tickets["train"]), "val_tickets": str(tickets["val"])}
    assert asked(images, tmp_path, "toy/lt/0.8", **given)[1] == []
    control(TicketStore(tickets["train"]), "inverse").write(tmp_path / "inverse.zarr")
    _, said = asked(images, tmp_path, "toy/lt/0.8", **given | {"tickets": str(tmp_path / "inverse.zarr")})
    assert all(text.startswith("toy/lt/0.8 will give the table no number: tickets are of control") for text in said)
    assert said


def test_a_student_that_was_trained_may_select(finished: Path, images: dict[str, str], tmp_path: Path) -> None:
    """A row whose selector is a student takes the weights of that row's finished run, and says so while it has none."""
    with pytest.raises(InputError, match=r"needs a selector: give .*, or run toy/dense first, in the same --out"):
        asked(images, tmp_path, "toy/dense-selects/lt/0.8")
    rows, _ = asked(images, finished, "toy/dense-selects/lt/0.8")
    made = rows.materials.tickets_of(rows.rows[0], rows.wanted)["tickets"]
    dense, _ = asked(images, finished, "toy/dense")
    (run,) = dense.asked_for(dense.founded()).runs
    assert made.checkpoint == str(finished / "study" / "runs" / run.name)
    assert Path(made.out).name == "toy-toy_dense-0.8-train.zarr"
    assert stage.plan(made).header.stage_keep == "0.8"


def test_rows_stand_where_a_command_would(
    dlth: Callable[..., tuple[int, str, str]],
    images: dict[str, str],
    finished: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`dlth reproduce ROW …` runs it and prints its line, `--dry-run` its plan; a row that is none is named."""
    monkeypatch.setitem(EXPERIMENTS, "toy/dense", ROWS["toy/dense"])  # type: ignore[index]
    flags = [text for name, value in (MACHINE | images).items() for text in ("--" + name.replace("_", "-"), value)]
    code, out, _ = dlth("reproduce", "toy/dense", *flags, "--out", finished, "--dry-run", "--json")
    assert code == 0
    assert [arm["runs"] for arm in json.loads(out)["arms"]] == [1]
    code, out, _ = dlth("reproduce", "toy/dense", *flags, "--out", finished, "--json")
    (line,) = json.loads(out)["table"]
    assert (code, line["row"], line["state"]) == (0, "toy/dense", "complete")
    code, _, err = dlth("reproduce", "toy/dens", *flags)
    assert code == 2
    assert "no experiment is called 'toy/dens' (did you mean 'toy/dense'?)" in err
