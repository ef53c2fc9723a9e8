"""`dlth tickets stats … remap` as a user runs them: real tars, real files, standard output, exit codes."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from makers.pictures import make_tar
from makers.tickets import select_tickets
from typer.testing import CliRunner

from dlth.data.shards.index import ShardIndex, open_index
from dlth.pipeline.cli.app import app
from dlth.tickets import Budget, DatasetInfo, SelectorInfo, TicketStore
from dlth.tickets.errors import DlthError, InputError, MissingTicketError


def ticket_file(path: Path, index: ShardIndex, shards: Sequence[int], name: str = "ticket") -> Path:
    """Random but fixed rankings for some of the shards of an index, as stage 1 would write them."""
    dataset = DatasetInfo("toy", "train", sum(index.shards[shard].rows for shard in shards), "")
    options = {"selector": SelectorInfo("tiny", "ab" * 32, "random", (0,)), "dataset": dataset}
    budget = Budget.from_keep("0.375", 16, 1)
    return select_tickets(index, path, shards=shards, name=name, budget=budget, **options).path


@pytest.fixture
def data(make_shards: Callable[..., Any]) -> str:
    """Three shards of 6, 6 and 4 images in 4 classes."""
    spec: str = make_shards(3, (6, 6, 4), size=(24, 32)).spec
    return spec


@pytest.fixture
def file(data: str, tmp_path: Path) -> Path:
    return ticket_file(tmp_path / "a.zarr", open_index(data), [0, 1, 2])


def run(*words: object) -> str:
    """Standard output of a command that must succeed."""
    result = CliRunner().invoke(app, ["tickets", *map(str, words)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def made(*words: object) -> dict[str, Any]:
    """What a command prints with --json."""
    answer: dict[str, Any] = json.loads(run(*words, "--json"))
    return answer


def test_stats_for_people_and_for_scripts(file: Path, data: str) -> None:
    """Figures of the whole and by class; the table names every class."""
    found = made("stats", file, "--data", data)
    assert found["num_rows"] == 16
    assert [part["num_tickets"] for part in found["classes"].values()] == [4, 4, 4, 4]
    assert sum(found["frequency"]) == pytest.approx(6, abs=1e-4)
    assert found["overall"]["fragile"]["0.001"] <= 1
    text = run("stats", file, "--data", data)
    for word in ("centre bias", "entropy of positions", "fragile rows", "by class", "16 of 16 images"):
        assert word in text
    assert made("stats", file, "--keep", "0.5")["k"] == 8


def test_diff_lists_the_worst_and_the_classes(file: Path, data: str, tmp_path: Path) -> None:
    """Two selectors over the same images: overlap at each k, rank correlation, classes, images."""
    other = ticket_file(tmp_path / "b.zarr", open_index(data), [0, 1, 2], name="other")
    found = made("diff", file, other, "--data", data, "--tokens", 4, "--tokens", 6, "--worst", 3)
    assert [each["k"] for each in found["overlaps"]] == [4, 6]
    assert (found["num_compared"], len(found["classes"]), len(found["worst"])) == (16, 4, 3)
    text = run("diff", file, other, "--data", data)
    for word in ("intersection over union", "Spearman", "by class, 6 best", "least overlap", "16 images"):
        assert word in text


def test_halves_are_merged_and_taken_apart(file: Path, data: str, tmp_path: Path) -> None:
    """Two labs' shards give one file that verifies; subsets by key, class and file give what they say."""
    index = open_index(data)
    late = ticket_file(tmp_path / "late.zarr", index, [2])
    early = ticket_file(tmp_path / "early.zarr", index, [0, 1])
    plan = made("merge", late, early, "--out", tmp_path / "whole.zarr", "--dry-run")
    assert (plan["rows"], plan["shards"], "identity" in plan) == (16, 3, False)
    assert not (tmp_path / "whole.zarr").exists()
    made("merge", late, early, "--out", tmp_path / "whole.zarr")
    whole = TicketStore(tmp_path / "whole.zarr")
    assert whole.content == TicketStore(file).content
    assert whole.header.dataset.fingerprint == index.fingerprint
    run("verify", tmp_path / "whole.zarr")
    (tmp_path / "keys.txt").write_text(f"{index.key(1)}\n{index.key(15)}\n")
    assert made("subset", file, "--keys", tmp_path / "keys.txt", "--out", tmp_path / "two.zarr")["rows"] == 2
    assert made("subset", file, "--keys-of", late, "--out", tmp_path / "four.zarr")["rows"] == 4
    assert made("subset", file, "--class", 3, "--data", data, "--out", tmp_path / "class.zarr")["rows"] == 4


def test_algebra_and_controls_write_ordinary_files(file: Path, data: str, tmp_path: Path) -> None:
    """Each file verifies, says how it was made, and is left as it is by a second run."""
    other = ticket_file(tmp_path / "b.zarr", open_index(data), [0, 1, 2], name="other")
    commands = {
        "union": ("union", file, other, "--tokens", 8),
        "intersection": ("intersect", file, other, "--keep", "0.25"),
        "inverse": ("inverse", file),
        "control": ("control", file, "--kind", "other-image", "--seed", 2),
    }
    for operation, words in commands.items():
        out = tmp_path / f"{operation}.zarr"
        identity = made(*words, "--out", out)["identity"]
        assert made(*words, "--out", out)["identity"] == identity
        assert TicketStore(out).header.extensions["derived"]["operation"] == operation
        run("verify", out)
    assert TicketStore(tmp_path / "union.zarr").header.k == 8
    assert TicketStore(tmp_path / "intersection.zarr").header.k == 4
    assert TicketStore(tmp_path / "inverse.zarr").header.k == 10


@pytest.mark.parametrize("ending", ["npz", "parquet"])
def test_what_is_exported_can_be_imported(file: Path, tmp_path: Path, ending: str) -> None:
    """Rows, shards and selector come back; nothing is overwritten; a dry run writes nothing."""
    to = tmp_path / f"a.{ending}"
    assert made("export", file, to, "--dry-run")["format"] == ending
    assert not to.exists()
    assert made("export", file, to)["bytes"] == to.stat().st_size
    with pytest.raises(InputError, match="exists and is not overwritten"):
        run("export", file, to)
    made("import", to, "--out", tmp_path / "back.zarr")
    store, back = TicketStore(file), TicketStore(tmp_path / "back.zarr")
    assert (back.content, back.shards, back.header.selector) == (store.content, store.shards, store.header.selector)
    assert all(np.array_equal(back.patches(shard), store.patches(shard)) for shard in range(3))


def test_masks_go_out_as_coco_and_come_in_from_numpy(file: Path, tmp_path: Path) -> None:
    """COCO by the ending .json; a lab's masks with grid and patch size by flags."""
    made("export", file, tmp_path / "a.json")
    assert len(json.loads((tmp_path / "a.json").read_text())["annotations"]) == 16
    masks = np.zeros((3, 4, 4), dtype=bool)
    masks[:, 1:3, 1:3] = True
    np.savez(tmp_path / "own.npz", keys=np.array(["a", "b", "c"]), masks=masks)
    words = ("import", tmp_path / "own.npz", "--grid", "4x4", "--patch-size", 8, "--selector", "by hand")
    made(*words, "--license", "CC0-1.0", "--out", tmp_path / "own.zarr")
    header = TicketStore(tmp_path / "own.zarr").header
    assert (header.form, header.k, header.selector.model, header.license) == ("mask", 4, "by hand", "CC0-1.0")


def test_another_packing_is_matched_and_remapped(file: Path, data: str, tmp_path: Path) -> None:
    """The same bytes under other keys in one shard: found by base name and content, counted, and written."""
    index = open_index(data)
    (tmp_path / "other").mkdir()
    order = [5, 0, 12, 7]
    names = [f"copy/{index.key(sample)}" for sample in order[:3]] + ["unlike"]
    images = zip(names, index.read_many(order), strict=True)
    make_tar(tmp_path / "other" / "x.tar", [(f"{name}.jpg", encoded) for name, encoded in images])
    found = made("match", file, "--data", tmp_path / "other")
    assert (found["by base name"], found["by content"], found["other bytes"], found["same bytes"]) == (3, 1, 0, 4)
    text = run("match", file, "--data", tmp_path / "other")
    assert "by base name" in text
    plan = made("remap", file, "--data", tmp_path / "other", "--out", tmp_path / "b.zarr", "--dry-run")
    assert (plan["rows"], (tmp_path / "b.zarr").exists()) == (4, False)
    made("remap", file, "--data", tmp_path / "other", "--out", tmp_path / "b.zarr")
    store, other = TicketStore(file), TicketStore(tmp_path / "b.zarr")
    assert other.keys(0) == tuple(names)
    for row, sample in enumerate(order):
        shard, place = store.find(index.key(sample))
        assert np.array_equal(other.patches(0)[row], store.patches(shard)[place])


def test_re_encoded_copies_are_told_of(file: Path, data: str, tmp_path: Path, make_shards: Callable[..., Any]) -> None:
    """The same names over other JPEG quality: the command warns, counts, and names examples."""
    copies = make_shards(3, (6, 6, 4), size=(24, 32), quality=40, folder=tmp_path / "copies").spec
    result = CliRunner().invoke(app, ["tickets", "match", str(file), "--data", copies], catch_exceptions=False)
    assert "warning: 16 of the 16 images read have other bytes" in result.output
    assert "n00000000_0" in result.output


def test_mistakes_are_refused_by_name(file: Path, data: str, tmp_path: Path) -> None:
    """Bad flags and impossible wishes end in an error of ours, and nothing is written."""
    out = ("--out", tmp_path / "new.zarr")
    (tmp_path / "keys.txt").write_text("nobody\n")
    (tmp_path / "a.txt").write_text("")
    refused: list[tuple[type[DlthError], str, tuple[object, ...]]] = [
        (InputError, "one of --keys, --keys-of and --class", ("subset", file, *out)),
        (InputError, "--class needs --data", ("subset", file, "--class", "1", *out)),
        (InputError, "no class is called 'dog'", ("subset", file, "--class", "dog", "--data", data, *out)),
        (InputError, "cannot be read as a list of keys", ("subset", file, "--keys", tmp_path / "none", *out)),
        (MissingTicketError, "lacks 1 of 1 keys: nobody", ("subset", file, "--keys", tmp_path / "keys.txt", *out)),
        (InputError, "--keep and --tokens say the same", ("stats", file, "--keep", "0.5", "--tokens", "3")),
        (InputError, "a control is one of random", ("control", file, "--kind", "best", *out)),
        (InputError, "the format is one of npz, parquet, coco", ("export", file, tmp_path / "a.csv")),
        (InputError, "rows are imported from .npz and .parquet", ("import", tmp_path / "a.json", *out)),
        (InputError, "expected rows x columns", ("import", tmp_path / "own.npz", "--grid", "4", *out)),
    ]
    np.savez(tmp_path / "own.npz", keys=np.array(["a"]), patches=np.arange(16)[None])
    for kind, message, words in refused:
        with pytest.raises(kind) as error:
            run(*words)
        assert message in str(error.value)
        assert not (tmp_path / "new.zarr").exists()
