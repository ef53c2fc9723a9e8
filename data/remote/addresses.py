"""Addresses: which are remote, who reads them, and how long a server may keep silent."""

import math
import os
from typing import Any

import fsspec

from dlth.tickets.ascii_digits import ascii_only
from dlth.tickets.errors import InputError, shown

SCHEMES = ("file", "http", "https", "s3", "gs", "hf", "memory")


class SlowError(TimeoutError):
    """A small file whose bytes come, too slowly for it."""


def is_remote(address: str) -> bool:
    """Whether `address` is a URL that needs fsspec (``file://`` does not)."""
    return "://" in address and not address.startswith("file://")


def is_http(address: str) -> bool:
    """Whether `address` is read by `http.py`."""
    return address.startswith(("http://", "https://"))


def patience() -> float:
    """Seconds without a byte after which a server counts as stalled: ``$DLTH_TIMEOUT``, else 60. Raises InputError."""
    text = os.environ.get("DLTH_TIMEOUT") or "60"
    try:
        seconds = float(ascii_only(text))
    except ValueError:
        seconds = math.nan
    if not 0 < seconds <= 86_400:
        raise InputError(f"DLTH_TIMEOUT must be a number of seconds above 0 and up to 86400, got {shown(text)!r}")
    return seconds


def filesystem(url: str) -> tuple[Any, str]:
    """The fsspec file system of a URL and the path in it. Raises InputError where its package is missing."""
    try:
        system, path = fsspec.core.url_to_fs(url)
    except ImportError as error:
        raise InputError(f"{shown(url)}: {error}") from error
    return system, path
