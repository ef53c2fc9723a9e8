"""The bytes of a remote file, each block whole; a broken or stalled connection is tried again.

Behind http each block is a request of its own, read by `http.py` and bounded by it; a server that knows no ranges gives
the file in one answer, of which what is there already is read over. S3 is read the same way through its own client.
Other stores (gs, hf) are read by their libraries' `cat_file`, which is believed until the block is in memory.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from dlth.data.remote.addresses import is_http, patience
from dlth.data.remote.retry import WAITS, retried
from dlth.data.remote.stall_log import watched
from dlth.data.remote.storage import read_range
from dlth.tickets.callbacks import Progress
from dlth.tickets.errors import DamageError, DlthError, MissingFileError, SpaceError, TransferError, shown

BLOCK = 16 * 2**20
"""Bytes asked for at a time, and kept in memory."""

Got = Callable[[int], None]
"""Called with the number of bytes of the file that are there."""


def note_of(part: Path) -> Path:
    """The file beside a partial file that says what it is a part of."""
    return part.with_name(f"{part.name}.json")


def discard(part: Path) -> None:
    """Remove a partial file and its note."""
    note_of(part).unlink(missing_ok=True)
    part.unlink(missing_ok=True)


def fetch(url: str, file: BinaryIO, part: Path, size: int, progress: Progress | None = None) -> None:
    """Append to `file`, opened at `part`, what it lacks of a remote one of `size` bytes; then all is on the disk.

    `progress(done, total)` counts bytes, those that are there already among them. Raises as `blocks`, and SpaceError
    before the first byte where they cannot fit: a server says what it likes of a file's size.
    """
    position = file.tell()
    if (needed := size - position) > (free := shutil.disk_usage(part.parent).free):
        raise SpaceError(
            f"{shown(url)}: {needed:,} bytes are needed in {shown(part.parent)}, {free:,} are free: free some"
        )
    if progress is not None:
        progress(position, size)
    for block in blocks(url, position, size, progress):
        file.write(block)
        file.flush()
    os.fsync(file.fileno())


def blocks(url: str, start: int, size: int, progress: Progress | None = None) -> Iterator[bytes]:
    """Bytes [start, size) of a remote file of `size` bytes: blocks of `BLOCK` bytes, the last may be shorter.

    `progress(done, total)` hears of bytes as they come; without it, the log does (`stall_log.py`). Raises
    MissingFileError, DamageError (the server answers another question), and TransferError (no whole answer in several
    tries), with a TimeoutError as its cause where the server stalls.
    """
    with watched(url, size if progress is None else None) as heard:
        position = start
        answer: Iterator[bytes] = iter(())

        def got(count: int) -> None:
            heard(count)
            if progress is not None:
                progress(count, size)

        def following() -> bytes:
            nonlocal answer
            if not (raw := next(answer, b"")):  # it has ended, or it broke off
                answer = _asked(url, position, min(size, position + BLOCK), size, got)
                raw = next(answer)
            return raw

        while position < size:
            try:
                raw = retried(following, (Exception,))  # every file system has its own errors for a cut connection
            except DlthError:
                raise
            except FileNotFoundError:
                raise MissingFileError(f"{shown(url)} is missing") from None
            except Exception as error:
                raise _gave_up(url, position, size, error) from error
            yield raw
            position += len(raw)


def _gave_up(url: str, start: int, size: int, cause: Exception) -> TransferError:
    tries = len(WAITS) + 1
    if isinstance(cause, TimeoutError):
        return TransferError(
            f"{shown(url)}: the server stalls: {start:,} of {size:,} bytes came, then none for {patience():g} seconds, "
            f"{tries} times in a row. Try again later; DLTH_TIMEOUT sets the seconds."
        )
    end, why = min(size, start + BLOCK), str(cause) or type(cause).__name__
    return TransferError(f"{shown(url)}: bytes {start} to {end} of {size} did not come in {tries} tries: {shown(why)}")


def _asked(url: str, start: int, end: int, size: int, got: Got) -> Iterator[bytes]:
    """What one request for bytes [start, end) gives: that block, or all from `start` on where there are no ranges."""
    if is_http(url):
        yield from _http_blocks(url, start, end, size, got)
        return
    raw = read_range(url, start, end)
    if len(raw) != end - start:
        raise OSError(f"the server sent {len(raw)} bytes")
    got(end)
    yield raw


def _http_blocks(url: str, start: int, end: int, size: int, got: Got) -> Iterator[bytes]:
    from dlth.data.remote.http import http_answer  # which imports aiohttp: most runs need none

    with http_answer(url, start, end) as answer:
        if answer is None or answer.total not in (None, size):
            raise DamageError(f"{shown(url)} has no longer the {size:,} bytes it had; fetch it again", file=url)
        position, last = answer.start, size if answer.whole else end
        while position < start:  # what is there already
            position += len(answer.read(start - position))
            got(position)
        while position < last:
            raw = bytearray()
            while len(raw) < min(BLOCK, last - position):
                raw += answer.read(min(BLOCK, last - position) - len(raw))
                got(position + len(raw))
            position += len(raw)
            if position == last:
                answer.check_ended()
            yield bytes(raw)
