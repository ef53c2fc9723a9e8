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
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from faults.full_disk import PAGE, Disk, method, own_mounts
from hostile import paths
from makers.tickets import tree_bytes

GOES_ON = ("out.zarr.partial/", "out.zarr.download")
"""Beginnings of what a stopped command leaves on purpose."""


def tools() -> dict[str, tuple[str, ...]]:
    """Words of every ticket tool that writes, with {disk} before the place where it does; `tickets agree` apart, which
    runs a model and writes one file as the others do.
    """
    rows = {name: row for name, row in paths.ROWS.items() if name.startswith("tickets ") and row.written}
    del rows["tickets agree"]
    found = {name: paths.words_of(row, row.written[0], f"{{disk}}/{Path(row.given[row.written[0]]).name}")
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
            code, _, error = paths.call(tuple(word.replace("{disk}", str(disk)) for word in words))
    finally:
        tempfile.tempdir = before
    return code, error


def one_size(world: Path, words: tuple[str, ...], folder: Path, room: int, expected: dict[str, bytes]) -> str:
    """'enough', or 'full' after all that was promised held."""
    disk = Disk(folder)
    (folder / "old").write_bytes(b"old")
    disk.shrink(room)
    code, error = run(world, words, folder)
    if code:
        assert code == 2, (code, error)
        assert error.count("error[") == error.count("error[E_SPACE]") == 1, error
        assert "Traceback" not in error, error
        left = {name: raw for name, raw in tree_bytes(folder).items() if not name.startswith(GOES_ON)}
        assert left.pop("old") == b"old", "the older file changed"
        whole = {name: raw for name, raw in left.items() if expected.get(name) == raw}
        assert left == whole, f"half-written: {sorted(left.keys() - whole.keys())}"
    disk.grow()
    if code:
        again, error = run(world, words, folder)
        assert again == 0, error
    found = tree_bytes(folder)
    assert found.keys() == expected.keys() | {"old"}, f"on the disk: {sorted(found)}"
    signed = words[1] == "sign"  # each signature is another
    assert signed or all(found[name] == raw for name, raw in expected.items()), "other bytes after the retry"
    disk.remove()
    return "full" if code else "enough"


def main(folder: Path, sizes: int) -> int:
    os.environ["DLTH_CACHE"] = str(folder / "cache")
    world = folder / "world"
    paths.build(world, models=False)
    outcomes, findings = [], []
    unit = PAGE if own_mounts() else 1
    for number, (name, words) in enumerate(tools().items()):
        ample = folder / f"ample{number}"
        ample.mkdir()
        code, error = run(world, words, ample)
        assert code == 0, error
        expected = tree_bytes(ample)
        lengths = [len(raw) for raw in expected.values()]
        enough = sum(-(-length // PAGE) for length in lengths) * PAGE if own_mounts() else max(lengths)
        for step in range(sizes):
            room = max(1, enough * (2 * step + 1) // (2 * sizes) // unit) * unit
            try:
                outcomes.append(one_size(world, words, folder / f"{number}.{step}", room, expected))
            except AssertionError as error:
                findings.append(f"{name}, {room} bytes: {error}")
    told = {"method": method(), "tools": len(tools()), "runs": len(outcomes) + len(findings)}
    print(json.dumps(told | {"full": outcomes.count("full"), "findings": findings}))
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 10))
