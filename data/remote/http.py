"""A file behind http: its facts and its bytes, never more than were asked for, never a wait without an end.

The session is fsspec's (what a user configured there holds), the reading is not: fsspec takes whatever an answer
holds, unpacks it if the server says that it is packed, and calls every failure a missing file. Here the bytes are asked
for as they are (``identity``), an answer is held against the question before its body is read, and the body is read
piece by piece up to what was asked for. A server has `patience()` seconds to begin its answer and for each next byte.
"""

import asyncio
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
from fsspec.asyn import sync

from dlth.data.remote.addresses import SlowError, filesystem, patience
from dlth.tickets.errors import DamageError, MissingFileError, shown

_CONNECT = 30.0  # seconds for the way to the server
_PIECE = 2**18  # bytes taken from a body at a time
_PLAIN = ("", "identity", "aws-chunked")  # the last is how some stores name an upload's framing; the bytes are plain
_PASSING = (408, 425, 429, 500, 502, 503, 504)  # statuses that another try may mend
_STAMPS = ("ETag", "Content-MD5", "Last-Modified")
_RANGE = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18}|\*)")


@dataclass(frozen=True)
class Answer:
    """An open answer whose body begins at byte `start` of the file.

    whole: it goes on to the file's end, whatever was asked for; total: the file's bytes, None if the server is silent
    """

    start: int
    whole: bool
    total: int | None
    _url: str
    _loop: Any
    _body: aiohttp.StreamReader
    _seconds: float

    def read(self, size: int) -> bytes:
        """The next bytes of the body, from 1 to `size` of them; OSError where it ends."""
        if raw := self._next(size):
            return raw
        raise OSError("the connection was closed too early")

    def rest(self, size: int, within: float, got: Callable[[int], None]) -> bytes:
        """What is left of the body, up to `size` bytes; `got` is told how many are there.

        Raises SlowError where that takes longer than `within` seconds: a server may send a byte before each wait
        for the next one ends.
        """
        raw, start = bytearray(), time.monotonic()
        while len(raw) < size and (piece := self._next(size - len(raw))):
            raw += piece
            got(len(raw))
            if time.monotonic() - start > within:
                raise SlowError(f"only {len(raw):,} bytes came within {within:g} seconds")
        return bytes(raw)

    def check_ended(self) -> None:
        """Raises DamageError where the body goes on behind what it was to hold."""
        if self._next(1):
            raise DamageError(f"{shown(self._url)}: the server sends more bytes than it said", file=self._url)

    def _next(self, size: int) -> bytes:
        async def piece() -> bytes:
            async with asyncio.timeout(self._seconds):  # aiohttp's own `sock_read` ends with some broken bodies
                return await self._body.read(min(size, _PIECE))

        raw: bytes = sync(self._loop, piece)
        return raw


def http_info(url: str) -> dict[str, Any]:
    """Size (None if not told) and headers of a file, as fsspec's `info` names them.

    Raises FileNotFoundError, MissingFileError (a refusal) and DamageError (a packed answer); what another try may mend
    is TimeoutError, ConnectionError or aiohttp's own.
    """
    with _answered(url, "HEAD") as head:
        if head.ok and head.headers.get("Content-Length"):
            return _facts(url, head)
    with _answered(url, "GET") as whole:  # some servers know no HEAD; the body is not read
        _check_status(url, whole)
        return _facts(url, whole)


@contextmanager
def http_answer(url: str, start: int, end: int, seconds: float | None = None) -> Iterator[Answer | None]:
    """Ask for bytes [start, end) of a file; None where it ends before `start`.

    What comes begins at `start`, or at 0 where the server knows no ranges and gives the whole. `seconds` takes the
    place of `patience()`. Raises as `http_info`, and DamageError for an answer to another question.
    """
    with _answered(url, "GET", seconds, Range=f"bytes={start}-{end - 1}") as response:
        if response.status == 416:
            yield None
            return
        _check_status(url, response)
        _check_plain(url, response)
        whole = response.status == 200
        total = _length(response) if whole else _range_total(url, response, start, end)
        loop = filesystem(url)[0].loop
        yield Answer(0 if whole else start, whole, total, url, loop, response.content, seconds or patience())


@contextmanager
def _answered(url: str, method: str, seconds: float | None = None, **headers: str) -> Iterator[aiohttp.ClientResponse]:
    """The head of the answer to one request, redirects followed; its connection is let go of afterwards."""
    system, seconds = filesystem(url)[0], seconds or patience()

    async def ask() -> aiohttp.ClientResponse:
        session = await system.set_session()
        options = dict(system.kwargs)
        sent = {**options.pop("headers", {}), "Accept-Encoding": "identity", **headers}
        options |= {"timeout": aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT)}
        options |= {"auto_decompress": False, "allow_redirects": True}
        async with asyncio.timeout(seconds):
            answer: aiohttp.ClientResponse = await session.request(
                method, system.encode_url(url), headers=sent, **options
            )
        return answer

    response: aiohttp.ClientResponse = sync(system.loop, ask)
    try:
        yield response
    finally:
        system.loop.call_soon_threadsafe(response.close)


def _check_status(url: str, response: aiohttp.ClientResponse) -> None:
    if response.status in (404, 410):
        raise FileNotFoundError(url)
    answer = f"the server answers {response.status} {shown(response.reason or '', 60)}".rstrip()
    if response.status in _PASSING:
        raise ConnectionError(answer)
    if response.status not in (200, 206):
        raise MissingFileError(f"{shown(url)} cannot be reached: {answer}")


def _facts(url: str, response: aiohttp.ClientResponse) -> dict[str, Any]:
    _check_plain(url, response)
    stamps = {name: response.headers[name] for name in _STAMPS if response.headers.get(name)}
    return {"size": _length(response), **stamps}


def _check_plain(url: str, response: aiohttp.ClientResponse) -> None:
    encoding = response.headers.get("Content-Encoding", "").strip().lower()
    if encoding not in _PLAIN:
        raise DamageError(
            f"{shown(url)}: the server packs its answer ({shown(encoding, 40)}) although the bytes were asked for as "
            "they are; such an answer is not unpacked. Have the server send the file as it is, or copy it to a disk.",
            file=url,
        )


def _length(response: aiohttp.ClientResponse) -> int | None:
    text = response.headers.get("Content-Length", "")
    return int(text) if re.fullmatch(r"[0-9]{1,18}", text) else None


def _range_total(url: str, response: aiohttp.ClientResponse, start: int, end: int) -> int | None:
    """The file's size as an answer of bytes [start, end), or to its end, says; None where it does not.

    Raises DamageError where the answer is to another question.
    """
    stated, length = response.headers.get("Content-Range", ""), _length(response)
    match = _RANGE.fullmatch(stated)
    first, last = (int(match[1]), int(match[2]) + 1) if match else (-1, -1)
    total = int(match[3]) if match and match[3] != "*" else None
    if first != start or last != min(end, total or end) or length not in (None, last - first):
        raise DamageError(
            f"{shown(url)}: bytes {start}-{end - 1} were asked for, the server says it sends {shown(stated, 80)!r} in "
            f"{'an unknown number of' if length is None else length} bytes",
            file=url,
        )
    return total
