"""The bytes of a remote file in blocks, each whole; a broken or stalled connection is tried again.

Behind http each block is a request of its own, read by `http.py` and bounded by it; a server that knows no ranges gives
the file in one answer, of which what is there already is read over. S3 is read the same way through its own client.
Other stores (gs, hf) are read by their libraries' `cat_file`, which is believed until the block is in memory.
"""

import time
from collections.abc import Callable, Iterator

from dlth.data.remote import WAITS, is_http, patience, read_range
from dlth.data.waiting import watched
from dlth.tickets.errors import DamageError, DlthError, MissingFileError, TransferError, shown

BLOCK = 16 * 1024 * 1024  # bytes asked for at a time

Got = Callable[[int], None]
"""Called with the number of bytes of the file that are there."""


def blocks(url: str, start: int, size: int, block: int = BLOCK, progress: Got | None = None) -> Iterator[bytes]:
    """Bytes [start, size) of a remote file of `size` bytes: blocks of `block` bytes, the last may be shorter.

    `progress` hears of bytes as they come; without it, the log does (`waiting.py`). Raises MissingFileError,
    DamageError (the server answers another question), and TransferError (no whole answer in several tries), with a
    TimeoutError as its cause where the server stalls.
    """
    position, waits = start, iter(WAITS)
    while position < size:
        end = min(size, position + block)
        try:
            with watched(url, size if progress is None else None) as heard:

                def got(count: int, heard: Got = heard) -> None:
                    heard(count)
                    if progress is not None:
                        progress(count)

                for raw in _asked(url, position, end, size, block, got):
                    yield raw
                    position += len(raw)
                    waits = iter(WAITS)
            continue
        except DlthError:
            raise
        except FileNotFoundError:
            raise MissingFileError(f"{shown(url)} is missing") from None
        except Exception as error:  # every file system has its own errors for a cut connection
            cause = error
        if (wait := next(waits, None)) is None:
            raise _gave_up(url, position, min(size, position + block), size, cause) from cause
        time.sleep(wait)


def _gave_up(url: str, start: int, end: int, size: int, cause: Exception) -> TransferError:
    tries = len(WAITS) + 1
    if isinstance(cause, TimeoutError):
        return TransferError(
            f"{shown(url)}: the server stalls: {start:,} of {size:,} bytes came, then none for {patience():g} seconds, "
            f"{tries} times in a row. Try again later; DLTH_TIMEOUT sets the seconds."
        )
    why = str(cause) or type(cause).__name__
    return TransferError(f"{shown(url)}: bytes {start} to {end} of {size} did not come in {tries} tries: {shown(why)}")


def _asked(url: str, start: int, end: int, size: int, block: int, got: Got) -> Iterator[bytes]:
    """What one request for bytes [start, end) gives: that block, or all from `start` on where there are no ranges."""
    if is_http(url):
        yield from _http_blocks(url, start, end, size, block, got)
        return
    raw = read_range(url, start, end)
    if len(raw) != end - start:
        raise OSError(f"the server sent {len(raw)} bytes")
    got(end)
    yield raw


def _http_blocks(url: str, start: int, end: int, size: int, block: int, got: Got) -> Iterator[bytes]:
    from dlth.data.http import http_answer  # which imports aiohttp: most runs need none

    with http_answer(url, start, end) as answer:
        if answer is None or answer.total not in (None, size):
            raise DamageError(f"{shown(url)} has no longer the {size:,} bytes it had; fetch it again", file=url)
        position, last = answer.start, size if answer.whole else end
        while position < start:  # what is there already
            position += len(answer.read(start - position))
            got(position)
        while position < last:
            raw = bytearray()
            while len(raw) < min(block, last - position):
                raw += answer.read(min(block, last - position) - len(raw))
                got(position + len(raw))
            position += len(raw)
            if position == last:
                answer.check_ended()
            yield bytes(raw)
