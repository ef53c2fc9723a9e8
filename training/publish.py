"""One file of a run, put in its place whole or not at all; a full disk gets its room back and is told as such.

A temporary name beside the file, fsync, rename, fsync of the folder: a reader sees the old file or the new one. What
stood under that name, or was linked there, is not written to. What is left of one that could not be written is removed,
since it is what fills the disk.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from safetensors import SafetensorError

from dlth.tickets.errors import DlthError, SpaceError, shown
from dlth.tickets.files import fresh, refuse_read_only
from dlth.training.machine_errors import MachineError

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What systems say of a full disk, a used-up quota, and a file above the limit that a process has."""


@contextmanager
def published(path: Path) -> Iterator[BinaryIO]:
    """A new file under a temporary name, its `name`, that takes the place of `path` when the block ends well.

    Raises:
        SpaceError: the disk is full; an older file under this name is whole
        InputError, MachineError: nothing may be written there, or the system fails
    """
    partial = path.with_name(path.name + ".partial")
    try:
        with write_errors(path):
            with fresh(partial) as file:
                yield file
            sync(partial)  # by name, as a block may write by it too
            partial.rename(path)
            sync(path.parent)
    finally:
        with suppress(OSError):  # there after a failure alone
            partial.unlink()


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
                refuse_read_only(error, path)
            raise MachineError(f"{shown(path)} could not be written: {shown(reason)}") from error
        raise SpaceError(
            f"{shown(path)} could not be written: {shown(reason)}. What was finished before is whole; make room and"
            " run again (a training run with --resume auto)"
        ) from error


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all. Raises as `published`."""
    with published(path) as file:
        file.write(text.encode())


def sync(path: Path) -> None:
    """Make a file's bytes, or a folder's names, survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _is_full(error: Exception) -> bool:
    """safetensors tells the system's error as text alone."""
    if isinstance(error, OSError):
        return error.errno in _NO_ROOM
    found = re.search(r"(?:os error|code:) ([0-9]+)", str(error))
    return found is not None and int(found[1]) in _NO_ROOM
