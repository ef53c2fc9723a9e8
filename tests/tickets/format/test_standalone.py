"""A lab that only reads tickets: no torch, nothing but numpy, zarr and what zarr itself needs."""

import re
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path

import pytest
from makers import GOLDEN

import dlth.tickets

SCRIPT = """
import sys
from pathlib import Path
import numpy as np
from dlth.tickets import Budget, Grid, TicketStore, TicketWriter, View, blend, paste, project

store = TicketStore(sys.argv[1])
assert store.verify() == []
whole = View.whole(store.header.grid)
mirrored = project(store.patches(0), whole, whole.mirrored())
assert mirrored.shape == (2, 20)
writer = TicketWriter(Path(sys.argv[2]) / "copy.zarr", store.header, store.shards, 20)
for index in writer.missing():
    with writer.claim(index):
        writer.write(index, store.read(index))
assert writer.finish()
assert TicketStore(writer.path).content == store.content
for name in ("torch", "pydantic", "xxhash", "fsspec", "PIL", "timm"):
    try:
        __import__(name)
    except ImportError:
        continue
    raise SystemExit(f"{name} can be imported: this is not the bare environment")
print("read", store.num_rows, "rows")
"""


def needs(name: str, found: set[str]) -> set[str]:
    """Names of a distribution and of all that it requires without extras."""
    name = re.sub(r"[-_.]+", "-", name).lower()
    if name not in found:
        found.add(name)
        for requirement in distribution(name).requires or []:
            if "extra ==" not in requirement:
                needs(re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0], found)
    return found


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A module folder with numpy, zarr and its needs alone, linked from this environment: no index, no download.

    A fresh venv would need an index at test time; hiding torch by an import hook would not show that nothing else is
    used.
    """
    folder = tmp_path / "site"
    (folder / "dlth").mkdir(parents=True)
    (folder / "dlth" / "tickets").symlink_to(Path(dlth.tickets.__file__).parent)
    for name in needs("zarr", set()) | {"numpy"}:
        package = distribution(name)
        for top in {file.parts[0] for file in package.files or [] if file.parts[0] not in ("..", "__pycache__")}:
            (folder / top).symlink_to(Path(str(package.locate_file(top))).resolve())
    return folder


def test_tickets_work_without_torch(bare: Path, tmp_path: Path) -> None:
    """Where torch is not installed, a ticket file is read, verified, projected and written again."""
    done = subprocess.run(
        [sys.executable, "-S", "-c", SCRIPT, str(GOLDEN), str(tmp_path)],
        env={"PYTHONPATH": str(bare)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "read 5 rows\n", "")
