"""One new file that appears under its name whole or not at all, and never in another file's place."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from dlth.tickets.errors import InputError, MissingFileError, shown
from dlth.tickets.files import reading, space_errors, sync_folder, user_path
from dlth.tickets.layout import MANIFEST_FILE


@contextmanager
def new_file(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """Write `path` within the block: a temporary name beside it, fsync, then the name.

    Raises what `new_place` and `space_errors` raise.
    """
    target = new_place(path)
    with space_errors(target, 0):
        handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        try:
            with os.fdopen(handle, "w+b") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o644)
            try:
                os.link(temporary, target)  # unlike a rename, fails where something stands
            except FileExistsError:
                refuse_existing(target)
        finally:
            os.unlink(temporary)
    with suppress(OSError):
        sync_folder(target.parent)


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
