"""One new file that appears under its name whole or not at all, and never in another file's place."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from dlth.tickets.errors import InputError, MissingFileError, shown
from dlth.tickets.files import space_errors, sync_folder


@contextmanager
def new_file(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """Write `path` within the block: a temporary name beside it, fsync, then the name.

    Raises InputError when something stands there (nothing is overwritten), MissingFileError without the folder,
    SpaceError.
    """
    target = Path(os.path.abspath(path))
    refuse_existing(target)
    if not target.parent.is_dir():
        raise MissingFileError(f"there is no folder {shown(target.parent)} to write {shown(target.name)} into")
    with space_errors(target, 0), tempfile.NamedTemporaryFile(dir=target.parent, prefix=f".{target.name}.") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
        os.chmod(file.name, 0o644)
        try:
            os.link(file.name, target)  # unlike a rename, fails where something stands
        except FileExistsError:
            refuse_existing(target)
    with suppress(OSError):
        sync_folder(target.parent)


def refuse_existing(path: Path) -> None:
    """Raises InputError when something stands at `path`."""
    if os.path.lexists(path):
        raise InputError(f"{shown(path)} exists and is not overwritten; choose another name or remove it")
