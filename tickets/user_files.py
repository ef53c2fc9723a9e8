"""Reading a file that a user names in full, within a bound: a list of keys, settings, labels.

Unlike the files of a ticket file (`disk.py`), such a file may be a link, or a pipe: ``--keys <(sort all.txt)`` and
``/dev/stdin`` are what people type. Devices and folders are refused, a pipe into which nobody writes does not hold the
command up, and no more than the bound is ever in memory.
"""

import os
import stat
import time

from dlth.tickets.errors import InputError, LimitError, MissingFileError, UnsafeError, shown

_WRITER_SECONDS = 2.0  # how long a pipe may lie without anybody at its other end


def read_named(path: str | os.PathLike[str], limit: int, what: str) -> bytes:
    """The bytes of a regular file or a pipe of at most `limit` bytes; `what` it is to be stands in the errors.

    Raises MissingFileError, InputError (it may not be read, nothing comes), UnsafeError (a device, a folder),
    LimitError.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        raise MissingFileError(f"there is no {what} {shown(path)}") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise InputError(f"{shown(path)} cannot be read as {what}: {shown(error)}") from error
    try:
        mode = os.fstat(handle).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISFIFO(mode)):
            raise UnsafeError(f"{shown(path)} is neither a file nor a pipe: it cannot be a {what}")
        raw = bytearray(_first_of_pipe(handle, path) if stat.S_ISFIFO(mode) else b"")
        while len(raw) <= limit and (piece := os.read(handle, min(limit + 1 - len(raw), 2**20))):
            raw += piece
    finally:
        os.close(handle)
    if len(raw) > limit:
        raise LimitError(f"{shown(path)} has more than {limit:,} bytes, the bound of a {what}")
    return bytes(raw)


def named_text(path: str | os.PathLike[str], limit: int, what: str) -> str:
    """The same as text: UTF-8, with or without a byte order mark. Raises InputError where it is no such text."""
    try:
        return read_named(path, limit, what).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{shown(path)} cannot be read as {what}: {shown(error)}") from error


def named_lines(path: str | os.PathLike[str], limit: int, max_lines: int, what: str) -> list[str]:
    """The lines of such a text that are not empty. Raises LimitError for more than `max_lines` of any kind."""
    text = named_text(path, limit, what)
    if text.count("\n") > max_lines:  # before a list is made: an object of Python is larger than a short line
        raise LimitError(f"{shown(path)} has more than {max_lines:,} lines, the bound of a {what}")
    return [line.rstrip("\r") for line in text.split("\n") if line.rstrip("\r")]


def _first_of_pipe(handle: int, path: str | os.PathLike[str]) -> bytes:
    """What a pipe gives first, or nothing yet while somebody holds its other end; reading on will wait for them."""
    end = time.monotonic() + _WRITER_SECONDS
    while True:
        try:
            raw = os.read(handle, 2**16)
        except BlockingIOError:
            raw = b""
            break
        if raw:
            break
        if time.monotonic() > end:
            raise InputError(f"nothing came out of the pipe {shown(path)}, and nobody writes into it")
        time.sleep(0.02)
    os.set_blocking(handle, True)
    return raw
