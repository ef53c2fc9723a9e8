"""A full disk under each ticket tool, at several sizes: one E_SPACE, old files whole, no half of a file, a good retry.

    python full_disk_tools.py FOLDER [SIZES]

The disk is a tmpfs in a mount namespace, as in full_disk.py; where the machine allows none, RLIMIT_FSIZE bounds each
file instead. Every tool of `hostile/paths.py` that writes runs as that table has it, but onto the disk, temporary files
too. Without enough room it must end with exit code 2 and one E_SPACE, and leave nothing but what the same command
goes on from; with more room it must then write what it writes on an empty disk. Prints one JSON object.
"""

import contextlib
import json
import os
import resource
import runpy
import shutil
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
DISK = runpy.run_path(str(HERE / "full_disk.py"))
PATHS = runpy.run_path(str(HERE.parent / "hostile" / "paths.py"), run_name="paths")
PLENTY = 64 * 2**20
GOES_ON = ("out.zarr.partial/", "out.zarr.download")
"""Beginnings of what a stopped command leaves on purpose."""


def tools() -> dict[str, tuple[str, ...]]:
    """Words of every ticket tool that writes, with {disk} before the place where it does."""
    rows = {name: row for name, row in PATHS["ROWS"].items() if name.startswith("tickets ") and row.written}
    found = {name: PATHS["words_of"](row, row.written[0], f"{{disk}}/{Path(row.given[row.written[0]]).name}")
             for name, row in rows.items()}  # fmt: skip
    words = found["tickets export"]
    found["tickets pack, with a card"] = tuple(word for word in found["tickets pack"] if word != "--no-card")
    for kind, ending in (("coco", "json"), ("parquet", "parquet")):
        replaced = {"npz": kind, "{disk}/out.npz": f"{{disk}}/out.{ending}"}
        found[f"tickets export to {kind}"] = tuple(replaced.get(word, word) for word in words)
    return found


def run(world: Path, words: tuple[str, ...], disk: Path) -> tuple[int, str]:
    """Exit code and standard error of a tool that writes onto the disk, its temporary files, too."""
    before, tempfile.tempdir = tempfile.tempdir, str(disk)
    try:
        with contextlib.chdir(world):
            code, _, error = PATHS["call"](tuple(word.replace("{disk}", str(disk)) for word in words))
    finally:
        tempfile.tempdir = before
    return code, error


def files(disk: Path) -> dict[str, bytes]:
    """Relative path -> content of everything on the disk."""
    return {str(path.relative_to(disk)): path.read_bytes() for path in sorted(disk.rglob("*")) if path.is_file()}


def one_size(
    world: Path, words: tuple[str, ...], disk: Path, room: int, limited: bool, expected: dict[str, bytes]
) -> str:
    """'enough', or 'full' after all that was promised held; `limited` stands in for a tmpfs."""
    disk.mkdir()
    if not limited:
        DISK["tmpfs"](disk, PLENTY, first=True)
    (disk / "old").write_bytes(b"old")
    if limited:
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))
    else:
        status = os.statvfs(disk)
        DISK["tmpfs"](disk, (status.f_blocks - status.f_bfree) * status.f_frsize + room, first=False)
    code, error = run(world, words, disk)
    if code:
        assert code == 2, (code, error)
        assert error.count("error[") == error.count("error[E_SPACE]") == 1, error
        assert "Traceback" not in error, error
        left = {name: raw for name, raw in files(disk).items() if not name.startswith(GOES_ON)}
        assert left.pop("old") == b"old", "the older file changed"
        whole = {name: raw for name, raw in left.items() if expected.get(name) == raw}
        assert left == whole, f"half-written: {sorted(left.keys() - whole.keys())}"
    if limited:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    else:
        DISK["tmpfs"](disk, PLENTY, first=False)
    if code:
        again, error = run(world, words, disk)
        assert again == 0, error
    found = files(disk)
    assert found.keys() == expected.keys() | {"old"}, f"on the disk: {sorted(found)}"
    signed = words[1] == "sign"  # each signature is another
    assert signed or all(found[name] == raw for name, raw in expected.items()), "other bytes after the retry"
    if limited:
        shutil.rmtree(disk)
    else:
        DISK["subprocess"].run(["umount", str(disk)], check=True)
        disk.rmdir()
    return "full" if code else "enough"


def main(folder: Path, sizes: int) -> int:
    os.environ["DLTH_CACHE"] = str(folder / "cache")
    limited = not DISK["own_mounts"]()
    world = folder / "world"
    PATHS["build"](world, models=False)
    outcomes, findings = [], []
    for number, (name, words) in enumerate(tools().items()):
        ample = folder / f"ample{number}"
        ample.mkdir()
        code, error = run(world, words, ample)
        assert code == 0, error
        expected = files(ample)
        lengths = [len(raw) for raw in expected.values()]
        enough = max(lengths) if limited else sum(-(-length // DISK["PAGE"]) for length in lengths) * DISK["PAGE"]
        for step in range(sizes):
            room = enough * (2 * step + 1) // (2 * sizes)
            room = max(1, room) if limited else max(1, room // DISK["PAGE"]) * DISK["PAGE"]
            try:
                outcomes.append(one_size(world, words, folder / f"{number}.{step}", room, limited, expected))
            except AssertionError as error:
                findings.append(f"{name}, {room} bytes: {error}")
    method = "RLIMIT_FSIZE" if limited else "tmpfs in a mount namespace"
    told = {"method": method, "tools": len(tools()), "runs": len(outcomes) + len(findings)}
    print(json.dumps(told | {"full": outcomes.count("full"), "findings": findings}))
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 10))
