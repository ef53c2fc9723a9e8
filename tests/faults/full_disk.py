"""A full disk, at 20 sizes: what stood there before is whole, the error says what is needed, and a retry ends well.

    python full_disk.py FOLDER [SIZES]

Each size is a real tmpfs of so many bytes in a mount namespace of this process's own (root, or user namespaces). Where
the machine allows neither, the script says so and takes RLIMIT_FSIZE instead, which bounds each file and not the disk.
On every disk stands an older ticket file; a new one is written beside until the disk is full; then the disk grows and
the same writer finishes. Prints one JSON object.
"""

import ctypes
import json
import os
import resource
import runpy
import signal
import subprocess
import sys
from pathlib import Path

from dlth.tickets import TicketStore
from dlth.tickets.errors import IncompleteError, MissingFileError, SpaceError

TOOLS = runpy.run_path(str(Path(__file__).parents[1] / "tickets" / "conftest.py"))
ROWS = (40, 60, 50)
PAGE = 4096


def own_mounts() -> bool:
    """Enter a mount namespace of our own, so that a tmpfs may be mounted and nobody else sees it."""
    namespace = 0x00020000 | (0 if os.geteuid() == 0 else 0x10000000)  # CLONE_NEWNS, CLONE_NEWUSER
    libc = ctypes.CDLL(None, use_errno=True)
    user, group = os.geteuid(), os.getegid()
    if libc.unshare(namespace):
        return False
    if user:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {user} 1")
        Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    return subprocess.run(["mount", "--make-rprivate", "/"], capture_output=True).returncode == 0


def write(path: Path) -> None:
    """A ticket file of three shards, resumed if begun."""
    specs = TOOLS["shard_specs"](ROWS)
    writer = TOOLS["TicketWriter"](path, TOOLS["header"](), specs, 12)
    for index in writer.missing():
        with writer.claim(index) as mine:
            assert mine
            writer.write(index, TOOLS["tickets"](index, ROWS[index]))
    assert writer.finish()


def tmpfs(folder: Path, size: int, first: bool) -> None:
    """Mount a tmpfs of `size` bytes, or give the mounted one another size."""
    options = f"size={size}" if first else f"remount,size={size}"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], check=True)


def one_size(folder: Path, room: int, limited: bool, expected: dict[str, bytes]) -> str:
    """'enough', or 'full' after all that was promised held; `limited` stands in for a tmpfs."""
    folder.mkdir()
    if not limited:
        tmpfs(folder, 64 * 2**20, first=True)
    old = TOOLS["write_store"](folder / "old.zarr")
    before = TOOLS["tree_bytes"](old)
    if limited:
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    else:
        status = os.statvfs(folder)
        tmpfs(folder, (status.f_blocks - status.f_bfree) * status.f_frsize + room, first=False)
    outcome = "enough"
    path = folder / "new.zarr"
    try:
        write(path)
    except SpaceError as error:
        outcome = "full"
        text = str(error)
        assert "no space left for" in text, text
        assert "free some and run the same command again" in text, text
        assert not path.exists(), "an unfinished file stands under its name"
        try:
            TicketStore(path)
        except (IncompleteError, MissingFileError):
            pass
        else:
            raise AssertionError("an unfinished file was opened") from error
    assert TOOLS["tree_bytes"](old) == before, "the older file changed"
    assert TicketStore(old).verify() == []
    if limited:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    else:
        tmpfs(folder, 64 * 2**20, first=False)
    write(path)
    assert TOOLS["tree_bytes"](path) == expected, "other bytes after the retry"
    if not limited:
        subprocess.run(["umount", str(folder)], check=True)
    return outcome


def main(folder: Path, sizes: int) -> int:
    limited = not own_mounts()
    write(folder / "whole.zarr")
    expected = TOOLS["tree_bytes"](folder / "whole.zarr")
    largest = 2 * max(map(len, expected.values())) if limited else (len(expected) + 5) * PAGE
    rooms = [max(1, largest * step // sizes) if limited else max(1, largest // PAGE * step // sizes) * PAGE
             for step in range(sizes)]  # fmt: skip
    outcomes = [one_size(folder / str(number), room, limited, expected) for number, room in enumerate(rooms)]
    method = "RLIMIT_FSIZE" if limited else "tmpfs in a mount namespace"
    print(json.dumps({"method": method, "sizes": rooms, "full": outcomes.count("full"), "runs": len(outcomes)}))
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 20))
