"""Advisory locks that die with their holder: flock, released by the kernel on exit, kill or power loss.

Rejected: lock files with host and pid (O_EXCL), which stay behind after a kill and must then be argued about. A
forked child (a data loader's worker) shares its parent's open files and would keep a dead parent's lock alive, so
children let go at once.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dlth.tickets.digits import is_digits
from dlth.tickets.errors import DlthError, LockedError, shown
from dlth.tickets.files import read_file, refuse_read_only, space_errors
from dlth.tickets.newfile import make_folder

_held: set[int] = set()


def _let_go_in_child() -> None:
    for handle in _held:
        with suppress(OSError):
            os.close(handle)
    _held.clear()


os.register_at_fork(after_in_child=_let_go_in_child)


@contextmanager
def locked(path: Path, wait: bool = False) -> Iterator[bool]:
    """Hold the lock file `path` for the block; yields False when another owns it or its folder is gone.

    Raises InputError where nothing may be written.
    """
    handle = _acquire(path, wait)
    if handle is None:
        yield False
        return
    _held.add(handle)
    try:
        yield True
    finally:
        if handle in _held:
            _held.discard(handle)
            os.close(handle)


LOCK = ".lock"
"""Name of the lock file in a folder that has an owner."""


@contextmanager
def owned(folder: Path, name: str = "") -> Iterator[None]:
    """Own a folder of results, or the file `name` in it, for the block; the folder is made if need be.

    If nothing is written, none is left behind. The lock file holds the owner's process number while the block runs, and
    is gone afterwards.

    Raises:
        LockedError: another process owns it
        InputError: the folder cannot be made, or nothing may be written there
        SpaceError: the disk is full
    """
    lock = folder / (f".{name}{LOCK}" if name else LOCK)
    made = [path for path in (folder, *folder.parents) if not os.path.exists(path)]
    try:
        make_folder(folder)
        with locked(lock) as mine:
            if not mine:
                raise LockedError(
                    f"{shown(folder / name)} belongs to another process{_owner(lock)} that writes its results there:"
                    " wait for it, or take another --out"
                )
            with space_errors(folder, len(str(os.getpid()))):
                lock.write_text(str(os.getpid()))
            try:
                yield
            finally:
                lock.unlink(missing_ok=True)
    finally:
        with suppress(OSError):  # up to the first that holds something
            for path in filter(os.path.isdir, made):
                path.rmdir()


def _owner(lock: Path) -> str:
    """The process that the lock file names, in words; empty where it names none."""
    try:
        number = read_file(lock, 20, LOCK).decode("ascii", "replace")
    except DlthError:
        return ""
    return f" (number {number} on its machine)" if is_digits(number) else ""


def _acquire(path: Path, wait: bool) -> int | None:
    while True:
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        except FileNotFoundError:
            return None
        except OSError as error:
            refuse_read_only(error, path.parent)
            raise
        try:
            fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            with suppress(FileNotFoundError):
                # the holder before us may have removed the file: a lock on a name that is gone excludes nobody
                if os.path.samestat(os.fstat(handle), os.stat(path)):
                    return handle
        except BlockingIOError:
            os.close(handle)
            return None
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)
