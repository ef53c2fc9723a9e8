"""Per-image results of a run, from files of which some are hostile."""

import io
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dlth.pipeline.evidence import image_results
from dlth.pipeline.evidence.image_results import evaluated_on, read_image_results
from dlth.tickets.errors import DlthError

N, BOUND = 6, 1_000_000


def columns(**changes: np.ndarray) -> dict[str, np.ndarray]:
    """The columns of a file of six images, all right on all tokens."""
    right, loss = np.ones(N, dtype=bool), np.zeros(N, dtype=np.float32)
    made = {"keys": np.array([f"k{i}" for i in range(N)]), "labels": np.arange(N)}
    made |= {"dense_top1": right, "dense_top5": right, "dense_loss": loss, "dense_seen": right}
    return {name: values for name, values in (made | changes).items() if values is not None}


def saved(path: Path, **changes: np.ndarray) -> None:
    np.savez_compressed(path, **columns(**changes))


def announced(path: Path, shape: str) -> None:
    """A file in which the header of a column promises another shape than its bytes have."""
    saved(path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    members["dense_top1.npy"] = members["dense_top1.npy"].replace(b"(6,), }", f"({shape},), }}".encode())
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def bomb(path: Path) -> None:
    """A few KB that unpack to more than the bound."""
    array = io.BytesIO()
    np.save(array, np.zeros(BOUND // 3, dtype=bool))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name in columns():
            archive.writestr(f"{name}.npy", array.getvalue())


WRONG: dict[str, tuple[Callable[[Path], object], str]] = {
    "pickles": (lambda path: saved(path, labels=np.array([{}] * N)), "would have to be unpickled"),
    "a column missing": (lambda path: saved(path, dense_seen=None), "columns are missing"),
    "a key twice": (lambda path: saved(path, keys=np.array(["a"] * N)), "a key stands there twice"),
    "lengths": (lambda path: saved(path, labels=np.arange(N + 1)), "columns differ in length"),
    "types": (lambda path: saved(path, dense_top1=np.ones(N)), "wrong type float64"),
    "unseen": (lambda path: saved(path, dense_seen=np.arange(N) > 0), "that was not seen"),
    "none seen": (lambda path: saved(path, dense_seen=np.zeros(N, dtype=bool)), "no image was seen"),
    "beyond": (lambda path: announced(path, "9" * 9), "not as long as its shape says"),
    "huge": (lambda path: announced(path, "9" * 30), "beyond every bound"),
    "bomb": (bomb, "the bound is 1,000,000"),
    "no zip": (lambda path: path.write_bytes(b"PK" * 99), "cannot be read as .npz"),
    "a link": (lambda path: os.symlink("/etc/passwd", path), "only regular files"),
    "a pipe": (os.mkfifo, "not a regular file"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_result_is_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each kind of file that is none is one clear error, whatever it asks to be allocated, unpickled or followed."""
    monkeypatch.setattr(image_results, "MAX_BYTES", BOUND)
    make, told = WRONG[name]
    make(tmp_path / "eval.npz")
    with pytest.raises(DlthError, match=told):
        read_image_results(tmp_path / "eval.npz")


def test_columns_come_back_as_they_were_saved(tmp_path: Path) -> None:
    """Every known column is there, bit for bit; one of another name is left alone."""
    saved(tmp_path / "eval.npz", extra=np.arange(3))
    found = read_image_results(tmp_path / "eval.npz")
    assert found.keys() == columns().keys()
    assert all(np.array_equal(found[name], values) for name, values in columns().items())
    assert evaluated_on(found) == ("dense",)
