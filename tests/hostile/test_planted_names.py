"""Links and files that somebody put where dlth is about to write: what they point to stays as it is."""

import ast
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from makers import ROOT
from makers.pictures import make_image, make_picture

from dlth.data.packing.pack import pack
from dlth.data.sharing.transfer import download
from dlth.pipeline.pages.gallery import Card, Gallery, write_gallery
from dlth.tickets import Grid
from dlth.tickets.errors import DamageError, UnsafeError
from dlth.tickets.store.disk import appended
from dlth.tickets.store.locks import owned
from dlth.tickets.store.partial import Partial
from dlth.training.run_files import write_text
from dlth.training.runs import checkpoint
from dlth.training.runs.runlog import RunLog

WRITERS = {
    "tickets/store/disk.py: fresh": "the one that makes temporary files",
    "data/packing/demo_digits.py: make_digit_shards": "tempfile's own names",
    "data/shards/index_file.py: write_index": "a file that `published` has just made",
    "training/runs/checkpoint.py: write_tensors": "a file that `published` has just made",
    "tickets/exchange/npz.py: _member": "a member of a zip archive in a `new_file`",
    "tickets/store/disk.py: appended": "the one that goes on with files, of one name and no link",
    "tickets/store/locks.py: _open": "locks; what is written to one is looked at first",
    "data/confined.py: _serve": "/dev/null",
    "pipeline/cli/error_handler.py: _bug": "a name of mkstemp",
    "data/sharing/signing.py: check_signature": "in a folder of mkdtemp",
    "pipeline/studies/launched.py: train_on_gpus": "in a folder of mkdtemp",
    "pipeline/cli/streams.py: _failing": "/dev/null",
    "pipeline/cli/streams.py: harmless": "/dev/null",
    "pipeline/cli/streams.py: _open_missing": "/dev/null",
}
"""Functions that open a file for writing by its name, and why each may."""


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A file of somebody else."""
    path = tmp_path / "victim"
    path.write_text("precious")
    return path


def test_no_planted_link_is_written_through(victim: Path, tmp_path: Path) -> None:
    """Each temporary name that can be foreseen, of run folders, packed shards, ticket files, downloads and pages, is a
    link to one file: everything is written, and that file stays.
    """
    names = [f"run/{name}.partial" for name in ("config.toml", "metrics.jsonl", "summary.csv", "curves.png")]
    names += ["run/w.safetensors.partial", "q.zarr.partial/temp/create.0", "t.download.json", "page/gallery.html"]
    names += [f"out/.pack-train/{name}" for name in ("plan.json.partial.0", "train-000000.tar.partial")]
    names += ["out/.pack-train/train-000000.tar.partial.0", "out/.pack-train/beside.partial.0"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).symlink_to(victim)
    log = RunLog(tmp_path / "run")
    log.add("epoch", 1, epoch=0, lr=0.1)
    log.write_summary(last=True)
    log.close()
    write_text(tmp_path / "run/config.toml", "")
    checkpoint.write_tensors(tmp_path / "run/w.safetensors", {"w": torch.ones(2)})
    (tmp_path / "images/cat").mkdir(parents=True)
    (tmp_path / "images/cat/1.jpg").write_bytes(make_image(make_picture(1)))
    pack(tmp_path / "images", tmp_path / "out")
    Partial(tmp_path / "q.zarr").create({}, {"keys/zarr.json": b"{}"})
    download(str(tmp_path / "images/cat/1.jpg"), tmp_path / "t.download")
    card = Card("a", np.zeros((16, 16, 3), np.uint8), np.arange(4))
    write_gallery(Gallery("one", "", Grid(2, 2), 2, [card]), tmp_path / "page", with_sheets=False)
    assert victim.read_text() == "precious"
    assert [name for name in names if (tmp_path / name).is_symlink()] == []


def test_what_is_appended_to_is_ours_alone(victim: Path, tmp_path: Path) -> None:
    """A link, a hard link and a FIFO in the place of a file that is gone on with are refused."""
    for plant in (Path.symlink_to, Path.hardlink_to, lambda path, _: os.mkfifo(path)):
        plant(tmp_path / "part", victim)
        with pytest.raises(UnsafeError, match="remove it"):
            appended(tmp_path / "part")
        (tmp_path / "part").unlink()
    assert victim.read_text() == "precious"


def test_folders_that_are_links_are_refused(victim: Path, tmp_path: Path) -> None:
    """Another run's checkpoints, a folder's files, another ticket file stay where a folder that dlth keeps for itself
    is a link; a `step-` that is a link, or a user's own, is not removed.
    """
    other, ours = tmp_path / "other", tmp_path / "ours"
    for step in (1, 2):
        checkpoint.save(other, step, {}, {}, keep=9)
    ours.symlink_to(other)
    with pytest.raises(UnsafeError, match="is a link"):
        checkpoint.save(ours, 3, {}, {}, keep=1)
    ours.unlink()
    ours.mkdir()
    (ours / "step-00000000").symlink_to(other / "step-00000001")
    (ours / "step-notes").mkdir()
    for step in (1, 2):
        checkpoint.save(ours, step, {}, {}, keep=1)
    assert sorted(path.name for path in ours.glob("s*")) == ["step-00000000", "step-00000002", "step-notes"]
    (tmp_path / "images/cat").mkdir(parents=True)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/.pack-train").symlink_to(other)
    with pytest.raises(UnsafeError, match="is a link"):
        pack(tmp_path / "images", tmp_path / "out")
    (tmp_path / "q.zarr.partial").mkdir()
    (tmp_path / "q.zarr.partial/store").symlink_to(other)
    with pytest.raises(UnsafeError, match="is a link"):
        Partial(tmp_path / "q.zarr").create({}, {})
    assert sorted(path.name for path in other.iterdir()) == ["latest", "step-00000001", "step-00000002"]


def test_a_lock_that_is_none_of_ours_stays(victim: Path, tmp_path: Path) -> None:
    """A file of the user's under the lock's name keeps its text, a hard link's target too, and what another put in the
    lock's place while the block ran stays; a lock that a kill left behind is taken over.
    """
    folder = tmp_path / "run"
    folder.mkdir()
    lock = folder / ".lock"
    for plant in (lambda: lock.write_text("my notes"), lambda: lock.hardlink_to(victim), lambda: os.mkfifo(lock)):
        plant()
        with pytest.raises(UnsafeError), owned(folder):
            pass
        assert os.path.lexists(lock)
        lock.unlink()
    lock.write_text("4194304")
    with owned(folder):
        assert lock.read_text() == str(os.getpid())
        lock.unlink()
        lock.write_text("mine")
    assert (lock.read_text(), victim.read_text()) == ("mine", "precious")


def test_foreign_names_among_the_records_of_shards_stand_for_none(tmp_path: Path) -> None:
    """Names that no writer gives count for nothing; records that are no folder are damage, said as such."""
    partial = Partial(tmp_path / "q.zarr")
    commits = partial.root / "commits"
    commits.mkdir(parents=True)
    for name in ("a.json", ".json", "²²²²²².json", "-00001.json", "1.json", "000002.json"):
        (commits / name).touch()
    assert partial.committed() == {2}
    shutil.rmtree(commits)
    commits.touch()
    with pytest.raises(DamageError, match="commits is no folder"):
        partial.progress()


def test_files_are_opened_for_writing_in_known_places_alone() -> None:
    """Every call in the source that writes to a file by its name stands in a function that has a reason to."""
    found = {
        f"{path.relative_to(ROOT)}: {name}"
        for folder in ("tickets", "data", "training", "pipeline")
        for path in (ROOT / folder).rglob("*.py")
        for name in _writers(ast.parse(path.read_text()))
    }
    assert found == set(WRITERS)


def _writers(module: ast.Module) -> Iterator[str]:
    """Names of the functions that open a file for writing by its name."""
    for function in ast.walk(module):
        if isinstance(function, ast.FunctionDef) and any(
            isinstance(node, ast.Call) and _writes(node) for node in ast.walk(function)
        ):
            yield function.name


def _writes(call: ast.Call) -> bool:
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    modes = [each.value for each in call.args if isinstance(each, ast.Constant) and isinstance(each.value, str)]
    flags = {node.attr for argument in call.args for node in ast.walk(argument) if isinstance(node, ast.Attribute)}
    by_mode = name in ("open", "fdopen") and any(
        set(mode) <= set("rwaxb+") and set(mode) & set("wax+") for mode in modes
    )
    by_flags = name == "open" and bool(flags & {"O_WRONLY", "O_RDWR", "O_CREAT"})
    by_path = name in ("write_bytes", "mkstemp", "NamedTemporaryFile", "save_file", "touch", "copyfile", "copy2")
    own_text = name == "write_text" and isinstance(call.func, ast.Attribute)
    return by_mode or by_flags or by_path or own_text
