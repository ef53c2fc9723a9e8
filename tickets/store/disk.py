"""Reading and writing files so that neither a stranger nor a crash can do harm.

Reading: the entry itself is opened (no link is followed, no FIFO blocks), its size is known before a byte is taken.
Writing: a temporary name, fsync, rename, fsync of the folder; a reader sees the old file or the new one (`published`,
`write_files`), or nothing that stood there is replaced (`new_file`). A temporary name can be foreseen, so a link may
wait there: `fresh` alone opens such files, and what it opens is new. Rejected: zarr's LocalStore, which follows links,
blocks on a FIFO, never calls fsync and leaves its temporary files behind after a kill.
"""

import errno
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedWriter
from pathlib import Path

from dlth.tickets.errors import (
    FULL,
    DamageError,
    DlthError,
    InputError,
    LimitError,
    MissingFileError,
    SpaceError,
    UnsafeError,
    shown,
)
from dlth.tickets.format.layout import MANIFEST_FILE

_NOT_WRITABLE = (
    *(errno.EROFS, errno.EACCES, errno.EPERM),
    *(errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ELOOP, errno.ENXIO, errno.ENODEV),
)
"""What the system says of a place that cannot be written, however often one tries."""


MAX_NAME = 255
"""Bytes of a name, in every file system of Linux and macOS."""


def user_path(path: str | os.PathLike[str]) -> Path:
    """A path that a user names, absolute. Links stay, but those before a '..': it is the folder that the system finds.

    Raises InputError for what can name nothing ('', NUL, no text, a name of more than 255 bytes), MissingFileError
    where nothing lies before a '..'.
    """
    text = os.fspath(path) if isinstance(path, str | os.PathLike) else path
    if not isinstance(text, str) or not text or "\0" in text:
        raise InputError(f"{shown(text)!r} is no path: a file or folder is named by text, without NUL")
    if any(len(os.fsencode(part)) > MAX_NAME for part in text.split("/")):
        raise InputError(f"{shown(text)} has a name of more than {MAX_NAME} bytes, which no file can have")
    parts = Path(text).parts
    if os.pardir in parts:
        end = len(parts) - parts[::-1].index(os.pardir)
        with reading(text):
            text = os.path.join(os.path.realpath(os.path.join(*parts[:end]), strict=True), *parts[end:])
    return Path(os.path.abspath(text))


@contextmanager
def reading(place: str | os.PathLike[str]) -> Iterator[None]:
    """Turn what the system says of a place that cannot be read into MissingFileError or InputError, naming it."""
    try:
        yield
    except DlthError:
        raise
    except FileNotFoundError as error:
        raise MissingFileError(f"{shown(place)} is missing") from error
    except OSError as error:
        raise InputError(f"{shown(place)} cannot be read ({error.strerror}): name another place") from error


def open_regular(path: str | os.PathLike[str]) -> int:
    """A descriptor for reading a regular file that a user names: links are followed, no FIFO blocks, no device is
    without an end. Close it with `os.close`, or hand it to `os.fdopen`.

    Raises MissingFileError, UnsafeError (FIFO, socket, device, folder), InputError.
    """
    with reading(path):
        try:
            handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise MissingFileError(f"{shown(path)} is missing: there is no file of that name") from error
        except OSError as error:
            if error.errno != errno.ENXIO:  # a socket
                raise
            raise UnsafeError(f"{shown(path)} is not a regular file") from error
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise UnsafeError(f"{shown(path)} is not a regular file")
    return handle


def read_file(path: Path, limit: int, where: str) -> bytes:
    """The bytes of a regular file of at most `limit` bytes; errors name `where`.

    Raises MissingFileError, UnsafeError (link, FIFO, device, folder), LimitError, or DamageError when it changes
    meanwhile.
    """
    with reading(where):
        try:
            handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENXIO, errno.EMLINK):
                raise UnsafeError(f"{where} is a link or a device; only regular files are read") from error
            raise
        return _whole(handle, limit, where)


def _whole(handle: int, limit: int, where: str) -> bytes:
    """The bytes of an open file, which is closed."""
    try:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise UnsafeError(f"{where} is not a regular file")
        if status.st_size > limit:
            raise LimitError(f"{where} has {status.st_size} bytes, the bound is {limit}")
        with os.fdopen(handle, "rb", closefd=False) as file:
            raw = file.read(status.st_size + 1)
        if len(raw) != status.st_size:
            raise DamageError(f"{where} changed while it was read", file=where)
        return raw
    finally:
        os.close(handle)


def scan_sizes(root: Path, max_entries: int) -> dict[str, int]:
    """Relative path -> size of every file of a folder and its direct subfolders.

    Raises UnsafeError for anything but regular files in at most one level of folders, for an empty folder, and for
    names that differ by case only, LimitError above `max_entries`. Nothing is opened.
    """
    sizes: dict[str, int] = {}
    folders = [""]
    folded: set[str] = set()
    for prefix in folders:
        before = len(folded)
        with os.scandir(root / prefix) as entries:
            for entry in entries:
                name = f"{prefix}{entry.name}"
                status = entry.stat(follow_symlinks=False)
                if stat.S_ISDIR(status.st_mode) and not prefix:
                    folders.append(f"{name}/")
                elif stat.S_ISREG(status.st_mode):
                    sizes[name] = status.st_size
                else:
                    raise UnsafeError(f"{shown(name)}: only regular files, one folder deep, may stand in a ticket file")
                folded.add(name.casefold())
                if len(sizes) + len(folders) - 1 != len(folded):
                    raise UnsafeError(f"{shown(name)}: another entry has the same name but for its case")
                if len(folded) > max_entries:
                    raise LimitError(f"more than {max_entries} entries stand in {shown(root.name)}")
        if prefix and len(folded) == before:
            raise UnsafeError(f"{shown(prefix)} is an empty folder: a ticket file holds none")
    return sizes


def fresh(path: Path) -> BufferedWriter:
    """Open a new, empty file for writing; a leftover of that name goes, and what it linked to is left alone.

    Raises OSError, also for a folder of that name.
    """
    with suppress(FileNotFoundError):
        path.unlink()
    return open(path, "xb")  # O_CREAT | O_EXCL, which follows no link either


def appended(path: Path) -> BufferedWriter:
    """Open a file of ours for writing at its end; it is made where there is none.

    Raises UnsafeError for a link of any kind, a FIFO, a device: what is written would land elsewhere; OSError.
    """
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        handle = os.open(path, flags, 0o666)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO, errno.EMLINK):
            raise UnsafeError(f"{shown(path)} is a link or a device, and is not written to: remove it") from error
        raise
    try:
        refuse_shared(handle, path)
    except UnsafeError:
        os.close(handle)
        raise
    return os.fdopen(handle, "ab")


def refuse_shared(handle: int, path: Path) -> None:
    """Raises UnsafeError unless an open file is a regular one with this name alone (a hard link is another's file)."""
    status = os.fstat(handle)
    if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
        raise UnsafeError(f"{shown(path)} is no regular file, or has another name too: remove it")


def refuse_linked(folder: Path) -> None:
    """Raises UnsafeError where a folder that dlth makes for itself is a link: what it clears there is another's."""
    if folder.is_symlink():
        raise UnsafeError(f"{shown(folder)} is a link, and what it points to is not dlth's to change: remove the link")


@contextmanager
def published(path: Path, temporary: Path | None = None) -> Iterator[BufferedWriter]:
    """A new file that takes the place of `path` when the block ends well; then it survives a power cut, too.

    Until then its `name` is `temporary` (on the same disk; by default beside `path`). What is left of a file that could
    not be written is removed: it is what fills the disk. Raises OSError; `space_errors` says what it means.
    """
    temporary = temporary or path.with_name(f"{path.name}.partial")
    try:
        with fresh(temporary) as file:
            yield file
        sync(temporary)  # by name, as a block may write by it too
        os.replace(temporary, path)
        sync(path.parent)
    finally:
        with suppress(OSError):  # there after a failure alone
            temporary.unlink()


def write_files(files: dict[Path, bytes], temporary: Path | None = None) -> None:
    """Put each file in place whole or not at all, and make all of them survive a power cut before returning.

    `temporary` (on the same disk, numbered per file; by default beside the first) is the name before the rename. All
    files are written and synced, then renamed, then their folders synced: one journal commit for all the names. Raises
    SpaceError when the disk is full.
    """
    first = next(iter(files))
    temporary = temporary or first.with_name(f".{first.name}.partial")
    moves = {temporary.with_name(f"{temporary.name}.{number}"): path for number, path in enumerate(files)}
    with space_errors(first.parent, sum(map(len, files.values()))):
        try:
            for name, path in moves.items():
                with fresh(name) as file:
                    file.write(files[path])
                sync(name)
            for name, path in moves.items():
                os.replace(name, path)
        except BaseException:
            for name in moves:  # give a full disk its space back
                with suppress(OSError):
                    name.unlink()
            raise
        for folder in {path.parent: None for path in files}:
            sync(folder)


@contextmanager
def new_file(path: str | os.PathLike[str]) -> Iterator[BufferedWriter]:
    """As `published`, under a name that nobody can foresee, and never in another file's place.

    Raises what `new_place` and `space_errors` raise.
    """
    target = new_place(path)
    temporary = target.with_name(unforeseen(target.name))
    with space_errors(target, 0):
        try:
            with fresh(temporary) as file:
                yield file
            sync(temporary)
            try:
                os.link(temporary, target)  # unlike a rename, fails where something stands
            except FileExistsError:
                refuse_existing(target)
        finally:
            with suppress(FileNotFoundError):
                temporary.unlink()
    with suppress(OSError):
        sync(target.parent)


def unforeseen(name: str) -> str:
    """A temporary name for a file that is to be called `name`: in a shared folder a link might wait at any other."""
    return f".{name}.{secrets.token_hex(4)}"


def sync(path: Path) -> None:
    """Make a file's bytes, or the names in a folder, survive a power cut."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def new_place(path: str | os.PathLike[str]) -> Path:
    """A place for one new file or folder, absolute.

    Raises InputError when something stands there (nothing is overwritten), when it lies in a ticket file, or when it is
    no path; MissingFileError without the folder.
    """
    target = user_path(path)
    refuse_existing(target)
    with reading(target):
        refuse_inside(target)
        if not target.parent.is_dir():
            raise MissingFileError(f"there is no folder {shown(target.parent)} to write {shown(target.name)} into")
    return target


def make_folder(path: str | os.PathLike[str]) -> None:
    """Make a folder for several files where there is none; what it holds already is its writer's concern.

    Raises InputError for the root, a place that is something else or lies in a ticket file or cannot be written, and
    SpaceError.
    """
    try:
        folder = user_path(path)
        if not folder.name:
            raise InputError("it is the root of all")
        with reading(folder):
            refuse_inside(folder / MANIFEST_FILE)
        with space_errors(folder, 0):
            folder.mkdir(parents=True, exist_ok=True)
    except (InputError, MissingFileError) as error:  # /proc calls itself missing
        raise InputError(f"{shown(path)} cannot be a folder of results ({error}): take another") from error


def refuse_existing(path: Path) -> None:
    """Raises InputError when something stands at `path`."""
    with reading(path):
        if os.path.lexists(path):
            raise InputError(f"{shown(path)} exists and is not overwritten; choose another name or remove it")


def refuse_inside(path: Path) -> None:
    """Raises InputError where `path` lies in a finished ticket file, which a foreign entry would make unreadable."""
    for folder in path.parents:
        if os.path.lexists(folder / MANIFEST_FILE):
            raise InputError(f"{shown(path)} would lie in the ticket file {shown(folder)}: choose a place outside")


@contextmanager
def space_errors(folder: Path, needed: int) -> Iterator[None]:
    """Turn 'disk full' and 'quota exceeded' into SpaceError, what no place can be into InputError, a folder that
    somebody removed meanwhile into MissingFileError.
    """
    try:
        yield
    except DlthError:
        raise
    except FileNotFoundError as error:
        missing = shown(error.filename or folder)
        raise MissingFileError(f"{missing} was removed while it was used: run the same command again") from error
    except OSError as error:
        refuse_read_only(error, folder)
        if error.errno not in FULL:
            raise
        raise SpaceError(
            f"no space left for {needed} bytes in {shown(folder)}: free some and run the same command again; "
            "everything finished before is whole"
        ) from error


def refuse_read_only(error: OSError, place: Path) -> None:
    """Raises InputError when the system's error is that nothing may be written at `place`; else returns."""
    if error.errno in _NOT_WRITABLE:
        raise InputError(f"{shown(place)} cannot be written ({error.strerror}): choose another place") from error
