"""What dlth needs of a place that shards lie in, local or remote: size and stamp, a small file, an open descriptor.

Local files are opened once and read by position. Remote ones go through fsspec, whole shards at a time, into a bounded
cache (`cache.py`): reading single images by range would cost a request each, and a tar's headers a request per member.
"""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import fsspec

from dlth.tickets.errors import DlthError, InputError, LimitError, MissingFileError, UnsafeError, shown

SCHEMES = ("file", "http", "https", "s3", "gs", "hf", "memory")
_STAMPS = ("ETag", "etag", "Content-MD5", "md5Hash", "blob_id", "Last-Modified", "LastModified", "mtime", "created")


@dataclass(frozen=True)
class Facts:
    """Size in bytes and a stamp that changes when the content does: local mtime in ns, remote ETag or the like."""

    size: int
    stamp: str


def is_remote(address: str) -> bool:
    """Whether `address` is a URL that needs fsspec (``file://`` does not)."""
    return "://" in address and not address.startswith("file://")


@contextmanager
def reaching(url: str) -> Iterator[None]:
    """Turn what file systems raise (each has its own errors) into MissingFileError with address and cause."""
    try:
        yield
    except DlthError:
        raise
    except FileNotFoundError:
        raise MissingFileError(f"{shown(url)} is missing") from None
    except Exception as error:
        cause = f"{type(error).__name__}: {error}"
        raise MissingFileError(f"{shown(url)} cannot be reached: {shown(cause)}") from error


def filesystem(url: str) -> tuple[Any, str]:
    """The fsspec file system of a URL and the path in it. Raises InputError where its package is missing."""
    try:
        system, path = fsspec.core.url_to_fs(url)
    except ImportError as error:
        raise InputError(f"{shown(url)}: {error}") from error
    return system, path


def open_regular(path: str) -> tuple[int, os.stat_result]:
    """Open a local file for reading by position; links are followed, but FIFOs and devices are refused."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        raise MissingFileError(f"{shown(path)} is missing") from None
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise UnsafeError(f"{shown(path)} is not a regular file")
    return descriptor, status


def facts(url: str) -> Facts:
    """Size and stamp of a shard. Raises MissingFileError, and InputError where a server tells no size."""
    if not is_remote(url):
        try:
            status = os.stat(url)
        except OSError:
            raise MissingFileError(f"{shown(url)} is missing") from None
        return Facts(status.st_size, str(status.st_mtime_ns))
    with reaching(url):
        system, path = filesystem(url)
        system.invalidate_cache()
        info = system.info(path)
    if type(info.get("size")) is not int:
        raise InputError(f"{shown(url)}: the server tells no size. Copy the shards to a disk first.")
    return Facts(info["size"], next((str(info[field]) for field in _STAMPS if info.get(field)), ""))


def read_small(url: str, limit: int) -> bytes | None:
    """A whole file of at most `limit` bytes, None where there is none. Raises LimitError."""
    if is_remote(url):
        with reaching(url):
            system, path = filesystem(url)
            try:
                raw: bytes = system.cat_file(path, start=0, end=limit + 1)
            except FileNotFoundError:
                return None
    else:
        try:
            descriptor, _ = open_regular(url)
        except MissingFileError:
            return None
        with os.fdopen(descriptor, "rb") as file:
            raw = file.read(limit + 1)
    if len(raw) > limit:
        raise LimitError(f"{shown(url)} is larger than {limit} bytes")
    return raw
