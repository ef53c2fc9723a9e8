"""Makes and opens the index of a data set's shards: on first use, kept beside them, noticed when stale.

`open_index` asks every shard for its size and stamp (local: mtime in ns; remote: ETag or the like, without which the
content decides). If an index file describes exactly these shards and can be believed it is loaded; otherwise the tars'
headers are read again, shards in parallel, and the result kept beside the shards, or in the cache where that folder is
remote or read-only. Threads and not processes: the work is waiting for disks and servers. Everything that would lose or
mix up samples later is an error here, with names and places: duplicate keys anywhere, another number of samples than an
``_info.json`` declares.
"""

import hashlib
import itertools
import logging
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np

from dlth.data.remote.addresses import is_remote
from dlth.data.remote.cache import cache_root, holding, is_content, open_shard, refetch, stamped
from dlth.data.remote.storage import Facts, facts
from dlth.data.shards.classes import check_declared
from dlth.data.shards.identity import keys_digest
from dlth.data.shards.index_file import read_index, write_index
from dlth.data.shards.index_trust import contradiction
from dlth.data.shards.scan import Rows, scan
from dlth.data.shards.shard_index import ShardIndex, ShardInfo
from dlth.data.shards.sources import INFO_NAME, Listing, Source, resolve
from dlth.tickets.callbacks import Progress
from dlth.tickets.errors import DamageError, DlthError, InputError, MismatchError, shown

__all__ = ["ShardIndex", "ShardInfo", "check_shards", "open_index"]

LOG = logging.getLogger("dlth")
_THREADS = 16
Item = TypeVar("Item")
Result = TypeVar("Result")


def open_index(
    spec: str,
    split: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
    rebuild: bool = False,
) -> ShardIndex:
    """The index of the shards that `spec` (see `sources.resolve`) means; loaded if fresh, else made and kept.

    `cache_dir` takes the place of ``$DLTH_CACHE``; `progress` is called as shards are read; `rebuild` reads them even
    if the index is fresh, and fetches remote ones again. Raises the errors of `resolve`, DamageError and UnsafeError
    for what a shard must not be, InputError for duplicate keys, MismatchError where ``_info.json`` declares another
    number of samples or ``classes.json`` fewer classes.
    """
    listing, root = resolve(spec, split), cache_root(cache_dir)
    shards = _shards_now(listing, root, anew=rebuild)
    beside, cached = _places(listing, root)
    with holding(cached):  # the ranks of a machine start together: one reads, the others load
        if not rebuild:
            for path in filter(None, (beside, cached)):
                if (index := _kept(path, listing, shards, root)) is not None:
                    return index
        rows = _each(lambda pair: _scan_shard(*pair, root), list(zip(shards, listing.sources, strict=True)), progress)
        index = _joined(listing.name, shards, list(rows), root)
        check_declared(index)
        if not (beside and write_index(beside, index)):
            write_index(cached, index)
    return index


def check_shards(
    spec: str,
    split: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> list[DlthError]:
    """Read every byte of the shards and return what is wrong with them, one error for each bad shard; empty if none.

    Compared are sizes, numbers of samples and sha256 digests as far as an ``_info.json`` or wids index declares them,
    and each tar's own structure. Remote shards are fetched, whatever the cache holds.
    """
    listing, root = resolve(spec, split), cache_root(cache_dir)

    def check(source: Source) -> DlthError | None:
        try:
            _check_shard(source, root)
        except DlthError as error:
            return error
        return None

    return [error for error in _each(check, listing.sources, progress) if error]


def _kept(path: Path, listing: Listing, shards: list[ShardInfo], root: Path) -> ShardIndex | None:
    """The index at `path` if it is of these shards and can be believed; raises MismatchError as `open_index`."""
    index = read_index(path, listing.name, shards, root)
    if index is None:
        return None
    if wrong := contradiction(index):
        LOG.warning(
            "%s contradicts the shards (%s) and is not used: they are read again. Whoever can write in that folder may "
            "have put it there; ask who did",
            shown(path),
            wrong,
        )
        return None
    for source, shard in zip(listing.sources, index.shards, strict=True):
        _check_declared("samples", source, source.rows, shard.rows)
    check_declared(index)
    return index


def _shards_now(listing: Listing, root: Path, anew: bool) -> list[ShardInfo]:
    """What each shard is now, before it is opened; raises MismatchError where its declared size is another.

    `anew`: remote ones are fetched, whatever the cache holds. So are those whose server tells nothing of their content.
    """

    def now(source: Source) -> Facts:
        told = facts(source.url)
        _check_declared("bytes", source, source.size, told.size)
        known = stamped(told, source.sha256)
        return refetch(source.url, known, root, source.sha256) if anew or not known.stamp else known

    facts_now = list(_each(now, listing.sources, None))
    untold = [s.url for s, known in zip(listing.sources, facts_now, strict=True) if is_content(known) and not s.sha256]
    if untold:
        LOG.warning(
            "%d shards, the first %s, come from a server that tells neither an ETag nor a date of them: they are "
            "fetched at each opening. Declare their sha256 in %s, or copy them to a disk",
            len(untold),
            shown(untold[0]),
            INFO_NAME,
        )
    return [
        ShardInfo(name, source.url, known.size, known.stamp, 0, source.sha256)
        for name, source, known in zip(listing.names, listing.sources, facts_now, strict=True)
    ]


def _check_declared(what: str, source: Source, declared: int | None, found: int) -> None:
    if declared is not None and declared != found:
        raise MismatchError(
            f"{shown(source.url)}: declared are {declared} {what}, found {found}. The shard is incomplete or another "
            "one: fetch it again, or correct the JSON file that declares it."
        )


def _places(listing: Listing, root: Path) -> tuple[Path | None, Path]:
    """Where the index may lie: beside local shards, and in the cache."""

    def named(texts: Iterable[str]) -> str:
        return f"dlth-index-{hashlib.sha256(chr(10).join(texts).encode()).hexdigest()[:16]}.safetensors"

    beside = None if is_remote(listing.sources[0].url) else Path(listing.folder) / named(listing.names)
    return beside, root / "indexes" / named(source.url for source in listing.sources)


def _each(function: Callable[[Item], Result], items: Iterable[Item], progress: Progress | None) -> Iterable[Result]:
    """`function` of each item, in order, several at a time; the first error in that order is raised."""
    items = list(items)
    with ThreadPoolExecutor(min(_THREADS, max(1, len(items)))) as pool:
        futures = [pool.submit(function, item) for item in items]
        try:
            for done, future in enumerate(futures, 1):
                yield future.result()
                if progress:
                    progress(done, len(items))
        finally:
            for future in futures:
                future.cancel()


def _scan_shard(shard: ShardInfo, source: Source, root: Path) -> Rows:
    descriptor = open_shard(shard.url, Facts(shard.size, shard.stamp), root, shard.sha256)
    try:
        rows = scan(descriptor, shard.size, shard.url)
    finally:
        os.close(descriptor)
    _check_declared("samples", source, source.rows, len(rows.keys))
    return rows


def _check_shard(source: Source, root: Path) -> None:
    told = facts(source.url)
    _check_declared("bytes", source, source.size, told.size)
    now = refetch(source.url, told, root)  # a copy in the cache says nothing of what is there now
    _scan_shard(ShardInfo("", source.url, now.size, now.stamp, 0), source, root)
    if source.sha256:
        descriptor = open_shard(source.url, now, root)
        with os.fdopen(descriptor, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != source.sha256:
            raise DamageError(
                f"{shown(source.url)}: sha256 is {digest}, declared is {shown(source.sha256)}. Fetch the shard again.",
                shard=source.url,
            )


def _joined(name: str, shards: list[ShardInfo], rows: list[Rows], root: Path) -> ShardIndex:
    """One flat index of all shards' rows; the lists of each shard are let go of on the way."""
    keys = [key for part in rows for key in part.keys]
    filled = [
        ShardInfo(shard.name, shard.url, shard.size, shard.stamp, len(part.keys), shard.sha256)
        for shard, part in zip(shards, rows, strict=True)
    ]
    index = ShardIndex(
        name,
        filled,
        image_offset=np.array([value for part in rows for value in part.offsets], dtype=np.int64),
        image_size=np.array([value for part in rows for value in part.sizes], dtype=np.int64),
        label=np.array([value for part in rows for value in part.labels], dtype=np.int64),
        key_bytes=np.frombuffer(b"".join(keys), dtype=np.uint8),
        key_start=np.concatenate([[0], np.cumsum([len(key) for key in keys], dtype=np.int64)]).astype(np.int64),
        fingerprint="",
        num_ignored=sum(part.num_ignored for part in rows),
        cache_dir=root,
    )
    keys.sort()
    if twice := next((a for a, b in itertools.pairwise(keys) if a == b), None):
        _raise_duplicate(index, twice.decode())
    index.fingerprint = keys_digest(keys)
    return index


def _place(index: ShardIndex, sample: int) -> str:
    return f"shard {shown(index.shards[index.shard_of(sample)].name)}, byte {int(index.image_offset[sample])}"


def _raise_duplicate(index: ShardIndex, key: str) -> None:
    first, second = itertools.islice((row for row in range(index.num_samples) if index.key(row) == key), 2)
    raise InputError(
        f"key {shown(key)!r} names two samples: {_place(index, first)}, and {_place(index, second)}. Tickets are found "
        "by key: rename one, or pack the images again (dlth pack)."
    )
