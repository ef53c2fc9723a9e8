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

from dlth.tickets.ascii_digits import is_digits
from dlth.tickets.errors import DlthError, InputError, LockedError, MissingFileError, UnsafeError, shown
from dlth.tickets.store.disk import make_folder, read_file, refuse_read_only, refuse_shared, space_errors

_held: set[int] = set()


def _let_go_in_child() -> None:
    for handle in _held:
        with suppress(OSError):
            os.close(handle)
    _held.clear()


os.register_at_fork(after_in_child=_let_go_in_child)


@contextmanager
def locked(path: Path, wait: bool = False, shared: bool = False, optional: bool = False) -> Iterator[bool]:
    """Hold the lock file `path` for the block, `shared` with those who ask for it so; yields False when another owns it
    or its folder is gone.

    Raises InputError where nothing may be written, unless the lock is `optional`: then that is False too.
    """
    try:
        handle = _acquire(path, wait, shared)
    except (OSError, InputError):
        if not optional:
            raise
        handle = None
    with _holding(handle):
        yield handle is not None


@contextmanager
def _holding(handle: int | None) -> Iterator[int | None]:
    """A lock file's descriptor, held for the block."""
    if handle is None:
        yield None
        return
    _held.add(handle)
    try:
        yield handle
    finally:
        if handle in _held:
            _held.discard(handle)
            os.close(handle)


LOCK = ".lock"
"""Name of the lock file in a folder that has an owner."""
_MAX_LOCK = 20
"""Bytes of a lock file: a process number."""


@contextmanager
def owned(folder: Path, name: str = "") -> Iterator[None]:
    """Own a folder of results, or the file `name` in it, for the block; the folder is made if need be.

    If nothing is written, none is left behind. The lock file holds the owner's process number while the block runs, and
    is gone afterwards; it is written through the locked descriptor, as the name may be exchanged meanwhile.

    Raises:
        UnsafeError: a file stands under the lock's name that is none of ours: it stays as it is
        LockedError: another process owns it
        InputError: the folder cannot be made, or nothing may be written there
        SpaceError: the disk is full
    """
    lock = folder / (f".{name}{LOCK}" if name else LOCK)
    made = [path for path in (folder, *folder.parents) if not os.path.exists(path)]
    try:
        make_folder(folder)
        with _holding(_acquire(lock, wait=False)) as handle:
            if handle is None:
                refuse_gone(folder)
                raise LockedError(
                    f"{shown(folder / name)} belongs to another process{_owner(lock)} that writes its results there:"
                    " wait for it, or take another --out"
                )
            _refuse_foreign(handle, lock)
            try:
                with space_errors(folder, _MAX_LOCK):
                    os.ftruncate(handle, 0)
                    os.pwrite(handle, str(os.getpid()).encode(), 0)
                yield
            finally:
                with suppress(FileNotFoundError):
                    if os.path.samestat(os.fstat(handle), os.lstat(lock)):
                        lock.unlink()
    finally:
        with suppress(OSError):  # up to the first that holds something
            for path in filter(os.path.isdir, made):
                path.rmdir()


def is_owned(folder: Path, name: str = "") -> bool:
    """Whether a process owns a folder of results, or the file `name` in it, now.

    Asked by sharing the lock for an instant, in which another that asks for ownership would be told that it is owned:
    who waits for it anyway tries again.
    """
    lock = folder / (f".{name}{LOCK}" if name else LOCK)
    try:
        handle = os.open(lock, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False


def _refuse_foreign(handle: int, lock: Path) -> None:
    """Raises UnsafeError where an open lock file is not one of ours: alone under its name, empty or with a number."""
    refuse_shared(handle, lock)
    content = os.pread(handle, _MAX_LOCK + 1, 0).decode("ascii", "replace")
    if content and not (len(content) <= _MAX_LOCK and is_digits(content)):
        raise UnsafeError(
            f"{shown(lock)} is not a lock of dlth, which is empty or holds a number: it is left as it is. Move it, or"
            " choose another folder"
        )


def refuse_gone(folder: Path) -> None:
    """Raises MissingFileError where the folder of a lock that could not be had is not there: nobody holds it."""
    if not os.path.isdir(folder):
        raise MissingFileError(f"{shown(folder)} was removed while it was used: run the same command again")


def _owner(lock: Path) -> str:
    """The process that the lock file names, in words; empty where it names none."""
    try:
        number = read_file(lock, _MAX_LOCK, LOCK).decode("ascii", "replace")
    except DlthError:
        return ""
    return f" (number {number} on its machine)" if is_digits(number) else ""


def _open(path: Path) -> int:
    """A lock file, made by the umask. One that another member of a group made is opened as far as it may be: to hold it
    takes no right to write it.
    """
    flags = os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        return os.open(path, flags | os.O_RDWR | os.O_CREAT, 0o666)
    except PermissionError as error:
        try:
            return os.open(path, flags | os.O_RDONLY)
        except OSError:
            raise error from None


def _acquire(path: Path, wait: bool, shared: bool = False) -> int | None:
    """The locked file's descriptor; None when another owns it or its folder is gone."""
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    while True:
        try:
            handle = _open(path)
        except FileNotFoundError:
            return None
        except OSError as error:
            refuse_read_only(error, path.parent)
            raise
        try:
            fcntl.flock(handle, kind if wait else kind | fcntl.LOCK_NB)
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
