"""A full disk, at 20 sizes: what stood there before is whole, the error says what is needed, and a retry ends well.

    python full_disk.py FOLDER [SIZES]

Each size is a real tmpfs of so many bytes in a mount namespace of this process's own (root, or user namespaces). Where
the machine allows neither, the script says so and takes RLIMIT_FSIZE instead, which bounds each file and not the disk.
On every disk stands an older ticket file; a new one is written beside until the disk is full; then the disk grows and
the same writer finishes. Prints one JSON object.
"""

import ctypes
import functools
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from makers.tickets import make_store, tree_bytes

from dlth.tickets import TicketStore
from dlth.tickets.errors import IncompleteError, MissingFileError, SpaceError

ROWS = (40, 60, 50)
PAGE = 4096
PLENTY = 64 * 2**20
UNMOUNTS = 100
"""Tries, a tenth of a second apart."""


@functools.cache
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


def method() -> str:
    """How disks are made short of room here."""
    return "tmpfs in a mount namespace" if own_mounts() else "RLIMIT_FSIZE"


class Disk:
    """A folder that can be short of room: a tmpfs, or, where no mount namespace can be had, under RLIMIT_FSIZE."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        if own_mounts():
            self._mount(f"size={PLENTY}")

    def shrink(self, room: int) -> None:
        """Leave so many bytes (a file may have so many under RLIMIT_FSIZE)."""
        if own_mounts():
            status = os.statvfs(self.folder)
            self._mount(f"remount,size={(status.f_blocks - status.f_bfree) * status.f_frsize + room}")
        else:
            resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    def grow(self) -> None:
        """Room for everything."""
        if own_mounts():
            self._mount(f"remount,size={PLENTY}")
        else:
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

    def remove(self) -> None:
        """Unmount it, as soon as processes that a command has just ended are gone: until then it is busy."""
        for left in range(UNMOUNTS if own_mounts() else 0, 0, -1):
            if subprocess.run(["umount", str(self.folder)], check=left == 1, capture_output=left > 1).returncode == 0:
                break
            time.sleep(0.1)
        shutil.rmtree(self.folder)

    def _mount(self, options: str) -> None:
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(self.folder)], check=True)


def one_size(folder: Path, room: int, expected: dict[str, bytes]) -> str:
    """'enough', or 'full' after all that was promised held."""
    disk = Disk(folder)
    old = make_store(folder / "old.zarr")
    before = tree_bytes(old)
    disk.shrink(room)
    outcome = "enough"
    path = folder / "new.zarr"
    try:
        make_store(path, ROWS)
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
    assert tree_bytes(old) == before, "the older file changed"
    assert TicketStore(old).verify() == []
    disk.grow()
    make_store(path, ROWS)
    assert tree_bytes(path) == expected, "other bytes after the retry"
    disk.remove()
    return outcome


def main(folder: Path, sizes: int) -> int:
    expected = tree_bytes(make_store(folder / "whole.zarr", ROWS))
    largest = (len(expected) + 5) * PAGE if own_mounts() else 2 * max(map(len, expected.values()))
    unit = PAGE if own_mounts() else 1
    rooms = [max(1, largest // unit * step // sizes) * unit for step in range(sizes)]
    outcomes = [one_size(folder / str(number), room, expected) for number, room in enumerate(rooms)]
    print(json.dumps({"method": method(), "sizes": rooms, "full": outcomes.count("full"), "runs": len(outcomes)}))
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 20))
