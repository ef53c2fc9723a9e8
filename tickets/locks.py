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

from dlth.tickets.files import refuse_read_only

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
