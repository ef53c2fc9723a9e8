"""Installed as a wheel, editable, and by a lab that only reads tickets: real environments, real imports."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SITE = Path(sysconfig.get_paths()["purelib"])


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that `pip install .` would build, from a copy of the files that git does not ignore."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    tracked = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for name in filter(None, tracked.split("\0")):
        if not name.startswith("tests/") and (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, source / name)
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--quiet", "-w", out, source]
    subprocess.run(list(map(str, build)), check=True, timeout=300, env={**os.environ, "PIP_NO_INDEX": "1"})
    (found,) = out.glob("dlth-*.whl")
    return found


def environment(folder: Path, wheel: Path) -> Path:
    """A new virtual environment that holds the wheel alone; gives its folder of programs."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    programs = folder / "bin"
    install = [sys.executable, "-m", "pip", "--python", str(programs / "python"), "install", "--no-deps", "--no-index"]
    subprocess.run([*install, "--quiet", str(wheel)], check=True, timeout=300)
    return programs


def closure(*names: str) -> set[str]:
    """Distributions that these need, themselves included, as installed here."""
    found: set[str] = set()
    todo = list(names)
    while todo:
        name = re.split(r"[\s;<>=!~\[(]", todo.pop())[0].lower().replace("_", "-")
        if name in found:
            continue
        try:
            needs = distribution(name).requires or []
        except PackageNotFoundError:
            continue
        found.add(name)
        todo += [need for need in needs if "extra ==" not in need]
    return found


def test_the_wheel_gives_the_command_and_the_package(wheel: Path, tmp_path: Path) -> None:
    """`pip install .`: `dlth --help` runs, and `dlth.tickets` is the wheel's, not the checkout's."""
    programs = environment(tmp_path / "env", wheel)
    # the dependencies are this environment's; its editable dlth is not seen, as .pth files are not read from here
    env = {**os.environ, "PYTHONPATH": str(SITE)}
    done = subprocess.run([programs / "dlth", "--help"], capture_output=True, text=True, env=env, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "select" in done.stdout
    where = [programs / "python", "-c", "import dlth.tickets, dlth.pipeline.page as p; print(dlth.tickets.__file__)"]
    done = subprocess.run(where, capture_output=True, text=True, env=env, timeout=120, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert str(tmp_path / "env") in done.stdout


def test_the_wheel_holds_every_module_and_page(wheel: Path) -> None:
    """No file of the four folders that Python or a page needs is left out."""
    import zipfile

    held = set(zipfile.ZipFile(wheel).namelist())
    needed = {
        f"dlth/{path.relative_to(ROOT)}"
        for folder in ("tickets", "data", "training", "pipeline")
        for path in (ROOT / folder).iterdir()
        if path.suffix in {".py", ".html", ".json"} or path.name in {"py.typed"}
    }
    assert needed - held == set()


def test_this_environment_is_editable() -> None:
    """`pip install -e .` (what make does): the package is the checkout's, and the command is installed."""
    import dlth.tickets

    assert Path(dlth.tickets.__file__).parent == ROOT / "tickets"
    assert Path(sys.executable).with_name("dlth").exists()


def test_reading_tickets_needs_numpy_and_zarr_alone(wheel: Path, tmp_path: Path) -> None:
    """In an environment of the wheel, numpy, zarr and what those need, tickets are read, checked and projected."""
    programs = environment(tmp_path / "env", wheel)
    (site,) = (tmp_path / "env" / "lib").glob("python*/site-packages")
    for name in closure("numpy", "zarr"):
        for file in distribution(name).files or []:
            top = file.parts[0]
            if not top.startswith("..") and not (site / top).exists():
                (site / top).symlink_to(SITE / top)
    script = """
import importlib.util, sys
import numpy as np
assert importlib.util.find_spec("torch") is None and importlib.util.find_spec("pydantic") is None
from dlth.tickets import Grid, TicketStore, View, project
store = TicketStore(sys.argv[1])
assert store.verify() == []
grid = store.header.grid
row = store.read(0).patches[:1].astype(np.int64)
mirrored = project(row, View.whole(grid), View.whole(grid).mirrored())
assert sorted(mirrored[0]) == list(range(grid.num_patches))
print(store.identity)
"""
    golden = ROOT / "tests" / "tickets" / "golden" / "v1_full"
    done = subprocess.run(
        [programs / "python", "-c", script, str(golden)],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.strip()) == 64
