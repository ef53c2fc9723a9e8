"""Installed as a wheel, editable, and by a lab that only reads tickets: real environments, real imports."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from collections.abc import Callable
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import pytest
from makers import GOLDEN, ROOT, checkout_files
from packaging.requirements import Requirement

LIGHT_COMMANDS = """
import contextlib, importlib.util, io, json, sys
import numpy as np
assert all(importlib.util.find_spec(name) is None for name in ("torch", "torchvision", "timm", "webdataset"))
from dlth.data import open_index
from dlth.pipeline.cli.error_handler import main

index = open_index(sys.argv[2])
patches = np.random.default_rng(0).permuted(np.tile(np.arange(16), (len(index), 1)), axis=1)
np.savez("own.npz", keys=np.array([index.key(i) for i in range(len(index))]), patches=patches)
for shard in range(2):
    open(f"keys-{shard}.txt", "w").write("\\n".join(index.keys(shard)))
for command in json.load(open(sys.argv[1])):
    sys.argv[1:], text = command, io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
        try:
            main()
        except SystemExit as end:
            code = end.code
    print(json.dumps([code or 0, text.getvalue()]))
"""

SITE = Path(sysconfig.get_paths()["purelib"])


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that `pip install .` would build, from a copy of the files that git does not ignore."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in checkout_files("--cached", "--others", "--exclude-standard"):
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


def closure(*needs: str) -> set[str]:
    """Distributions that these requirements need on this machine, themselves included, as installed here."""
    found: dict[str, set[str]] = {}
    todo = [Requirement(need) for need in needs]
    while todo:
        need = todo.pop()
        extras = {"", *need.extras}
        if extras <= found.setdefault(need.name.lower(), set()):
            continue
        found[need.name.lower()] |= extras
        for text in distribution(need.name).requires or []:
            other = Requirement(text)
            if other.marker is None or any(other.marker.evaluate({"extra": extra}) for extra in extras):
                todo.append(other)
    return set(found)


def lend(folder: Path, *needs: str) -> None:
    """Link into the environment at `folder` what `needs` need, as installed here: no index, no download."""
    (site,) = (folder / "lib").glob("python*/site-packages")
    for name in closure(*needs):
        for file in distribution(name).files or []:
            top = file.parts[0]
            if not top.startswith("..") and not (site / top).exists():
                (site / top).symlink_to(SITE / top)


def test_the_wheel_gives_the_command_and_the_package(wheel: Path, tmp_path: Path) -> None:
    """`pip install .`: `dlth --help` runs, and `dlth.tickets` is the wheel's, not the checkout's."""
    programs = environment(tmp_path / "env", wheel)
    # the dependencies are this environment's; its editable dlth is not seen, as .pth files are not read from here
    env = {**os.environ, "PYTHONPATH": str(SITE)}
    done = subprocess.run([programs / "dlth", "--help"], capture_output=True, text=True, env=env, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "select" in done.stdout
    script = "import dlth.tickets, dlth.pipeline.pages.page; print(dlth.tickets.__file__)"
    where = [programs / "python", "-c", script]
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
        for path in (ROOT / folder).rglob("*")
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
    lend(tmp_path / "env", "numpy", "zarr")
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
    golden = GOLDEN
    done = subprocess.run(
        [programs / "python", "-c", script, str(golden)], capture_output=True, text=True, timeout=120, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.strip()) == 64


def test_the_light_set_is_a_part_of_the_whole() -> None:
    """requirements-light.txt asks for what pyproject.toml asks for, word for word, and for none of the GPU stack."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    lines = (ROOT / "requirements-light.txt").read_text().splitlines()
    light = [line for line in lines if not line.startswith("#")]
    assert set(light) < set(project)
    assert not closure(*light) & {"torch", "torchvision", "timm"}


def test_a_light_installation_reads_and_shares(
    wheel: Path, tmp_path: Path, make_shards: Callable[..., Any], serve: Callable[..., Any]
) -> None:
    """With requirements-light.txt alone every reading and sharing command works, over http too; the others say what
    they lack in one line, with exit code 2."""
    lines = (ROOT / "requirements-light.txt").read_text().splitlines()
    programs = environment(tmp_path / "env", wheel)
    lend(tmp_path / "env", *(line for line in lines if not line.startswith("#")))
    golden, shards = str(GOLDEN), make_shards(2, 3).spec
    (tmp_path / "classes" / "cat").mkdir(parents=True)
    (tmp_path / "classes" / "cat" / "a.jpg").write_bytes(b"\xff\xd8\xff")
    working = f"""
index {shards} | tickets info {golden} | tickets verify {golden} | tickets stats {golden}
tickets diff {golden} {golden}
tickets import own.npz --grid 4x4 --patch-size 8 --tokens 8 --view whole --out own.zarr
tickets match own.zarr --data {shards} | tickets remap own.zarr --data {shards} --out mapped.zarr
tickets stats own.zarr --data {shards} | tickets subset own.zarr --keys-of own.zarr --out all.zarr
tickets subset mapped.zarr --keys keys-0.txt --out one.zarr
tickets subset mapped.zarr --keys keys-1.txt --out two.zarr
tickets merge one.zarr two.zarr --out merged.zarr
tickets union {golden} {golden} --tokens 8 --out union.zarr
tickets intersect {golden} {golden} --out common.zarr | tickets inverse {golden} --out inverse.zarr
tickets control {golden} --kind random --out random.zarr | tickets shrink {golden} --form mask --out mask.zarr
tickets export {golden} out.npz | tickets export {golden} out.json
tickets pack {golden} --out served.zip | tickets unpack served.zip --out unpacked.zarr
tickets push served.zip sent.zip | tickets pull {serve(tmp_path).url}/served.zip --out pulled.zarr
"""
    lacking = {
        f"select --data {shards} --out t.zarr --random-weights": "torch",
        f"train --arm dense --data {shards} --out run": "torch",
        f"evaluate --checkpoint x --val {shards}": "torch",
        f"tickets show own.zarr --data {shards}": "matplotlib",
        f"pack {tmp_path / 'classes'} --out packed": "webdataset",
    }
    commands = [line.strip() for line in working.replace("|", "\n").splitlines() if line.strip()]
    (tmp_path / "commands.json").write_text(json.dumps([command.split() for command in [*commands, *lacking]]))
    done = subprocess.run(
        [programs / "python", "-c", LIGHT_COMMANDS, "commands.json", shards],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    for command, (code, text) in zip([*commands, *lacking], answers, strict=True):
        if command in lacking:
            assert (code, command) == (2, command), text
            assert f"error[E_INPUT]: this command needs {lacking[command]}" in text.splitlines()[-1]
        else:
            assert (code, command) == (0, command), text
