"""What dlth needs of a place that shards lie in, local or remote: size and stamp, a small file, an open descriptor.

Local files are opened once and read by position. Remote ones go through fsspec, whole shards at a time, into a bounded
cache (`cache.py`): reading single images by range would cost a request each, and a tar's headers a request per member.
What stands behind http is read by our own hand (`http.py`), as its servers may be anybody's.
"""

import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from dlth.data.remote.addresses import SlowError, filesystem, is_http, is_remote, patience
from dlth.data.remote.retry import retried
from dlth.data.remote.stall_log import watched
from dlth.tickets.errors import DlthError, InputError, LimitError, MissingFileError, TransferError, shown
from dlth.tickets.store.disk import open_regular

_STAMPS = ("ETag", "etag", "Content-MD5", "md5Hash", "blob_id", "Last-Modified", "LastModified", "mtime", "created")


@dataclass(frozen=True)
class Facts:
    """Size in bytes and a stamp that changes when the content does: local mtime in ns, remote ETag or the like."""

    size: int
    stamp: str


@contextmanager
def reaching(url: str, within: float | None = None) -> Iterator[None]:
    """Turn what file systems raise (each has its own errors) into MissingFileError with address and cause.

    A server that stalls is a TransferError; `within`: the seconds that it was given, `patience()` if none are said.
    """
    try:
        yield
    except DlthError:
        raise
    except FileNotFoundError:
        raise MissingFileError(f"{shown(url)} is missing") from None
    except TimeoutError as error:
        came = str(error) if isinstance(error, SlowError) else f"no answer within {within or patience():g} seconds"
        raise TransferError(
            f"{shown(url)}: the server stalls: {came}. Try again later"
            + ("." if within else "; DLTH_TIMEOUT sets the seconds.")
        ) from error
    except Exception as error:
        cause = f"{type(error).__name__}: {error}"
        raise MissingFileError(f"{shown(url)} cannot be reached: {shown(cause)}") from error


def facts(url: str) -> Facts:
    """Size and stamp of a shard. Raises MissingFileError, and InputError where a server tells no size."""
    if not is_remote(url):
        try:
            status = os.stat(url)
        except OSError:
            raise MissingFileError(f"{shown(url)} is missing") from None
        return Facts(status.st_size, str(status.st_mtime_ns))
    with reaching(url), watched(url):
        info = retried(lambda: _info(url))
    if type(info.get("size")) is not int:
        raise InputError(f"{shown(url)}: the server tells no size. Copy the shards to a disk first.")
    stamp = next((str(info[field]) for field in _STAMPS if info.get(field)), "")
    return Facts(info["size"], stamp.encode(errors="backslashreplace").decode())  # headers may hold any bytes


def _info(url: str) -> dict[str, Any]:
    if is_http(url):
        from dlth.data.remote.http import http_info  # which imports aiohttp: most runs need none

        return http_info(url)
    system, path = filesystem(url)
    system.invalidate_cache()
    info: dict[str, Any] = system.info(path)
    return info


def read_small(url: str, limit: int, within: float | None = None) -> bytes | None:
    """A whole file of at most `limit` bytes, None where there is none.

    `within`: seconds that it may take where it is remote, in one try; else each try has `patience()`, however the
    bytes come. Raises LimitError, TransferError.
    """
    if is_remote(url):
        with reaching(url, within), watched(url) as got:
            try:
                raw = _small(url, limit, within, got) if within else retried(lambda: _small(url, limit, None, got))
            except MissingFileError:  # it may be there, and cannot be had
                raise
            except FileNotFoundError:
                return None
    else:
        try:
            descriptor = open_regular(url)
        except MissingFileError:
            return None
        with os.fdopen(descriptor, "rb") as file:
            raw = file.read(limit + 1)
    if len(raw) > limit:
        raise LimitError(f"{shown(url)} is larger than {limit} bytes")
    return raw


def _small(url: str, limit: int, within: float | None, got: Callable[[int], None]) -> bytes:
    """At most `limit` + 1 bytes of a remote file's beginning."""
    if not is_http(url):
        return read_range(url, 0, limit + 1, within or patience())
    from dlth.data.remote.http import http_answer

    with http_answer(url, 0, limit + 1, within) as answer:
        if answer is None:  # an empty file has no ranges
            return b""
        if answer.total is not None and answer.total > limit:
            raise LimitError(f"{shown(url)} is larger than {limit} bytes")
        return answer.rest(limit + 1, within or patience(), got)


def read_range(url: str, start: int, end: int, within: float = math.inf) -> bytes:
    """Bytes [start, end) of a remote file that is not behind http, fewer at its end.

    What S3 sends is read up to there and one byte on, as s3fs reads answers of any length, and for `within` seconds
    (SlowError); others are believed.
    """
    system, path = filesystem(url)
    if not url.startswith("s3://"):
        whole: bytes = system.cat_file(path, start=start, end=end)
        return whole
    from fsspec.asyn import sync

    bucket, key, _ = system.split_path(path)
    body = system.call_s3("get_object", Bucket=bucket, Key=key, Range=f"bytes={start}-{end - 1}")["Body"]
    raw, begun = bytearray(), time.monotonic()
    try:
        while len(raw) <= end - start and (piece := sync(system.loop, body.read, end - start + 1 - len(raw))):
            raw += piece
            if time.monotonic() - begun > within:
                raise SlowError(f"only {len(raw):,} bytes came within {within:g} seconds")
    finally:
        body.close()
    return bytes(raw)
