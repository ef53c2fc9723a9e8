"""One file of a run, put in its place whole or not at all; a full disk gets its room back and is told as such.

`dlth.tickets.store.disk` does it; here is what a run says where it fails.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from safetensors import SafetensorError

from dlth.tickets.errors import FULL, DlthError, SpaceError, shown
from dlth.tickets.store import disk
from dlth.training.machine_errors import MachineError


@contextmanager
def published(path: Path) -> Iterator[BinaryIO]:
    """A new file under a temporary name, its `name`, that takes the place of `path` when the block ends well.

    Raises:
        SpaceError: the disk is full; an older file under this name is whole
        InputError, MachineError: nothing may be written there, or the system fails
    """
    with write_errors(path), disk.published(path) as file:
        yield file


@contextmanager
def write_errors(path: Path) -> Iterator[None]:
    """Turn what systems say when `path` cannot be written into SpaceError (no room), InputError (no place for it) and
    MachineError (anything else).
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        if isinstance(error, DlthError):
            raise
        reason = getattr(error, "strerror", None) or error
        if not _is_full(error):
            if isinstance(error, OSError):
                disk.refuse_read_only(error, path)
            raise MachineError(f"{shown(path)} could not be written: {shown(reason)}") from error
        raise SpaceError(
            f"{shown(path)} could not be written: {shown(reason)}. What was finished before is whole; make room and"
            " run again (a training run with --resume auto)"
        ) from error


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all. Raises as `published`."""
    with published(path) as file:
        file.write(text.encode())


def _is_full(error: Exception) -> bool:
    """safetensors tells the system's error as text alone."""
    if isinstance(error, OSError):
        return error.errno in FULL
    number = re.search(r"(?:os error|code:) ([0-9]+)", str(error))
    return number is not None and int(number[1]) in FULL
