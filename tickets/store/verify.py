"""The full check of a file: reads every byte, believes nothing, lists all findings and not only the first."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from dlth.tickets.callbacks import Progress
from dlth.tickets.errors import DamageError, InputError, shown
from dlth.tickets.format.manifest import content_id
from dlth.tickets.store.keyindex import KeyIndex, key_hashes
from dlth.tickets.store.reader import StoredShards

Store = TypeVar("Store", bound=StoredShards)


def verify_store(
    store: Store,
    progress: Progress | None,
    subset: tuple[int, int] | None,
    tally: Callable[[Store, int], None] = lambda store, shard_index: None,
) -> list[DamageError]:
    """See `StoredFile.verify`. Keeps 24 bytes a row; a copy of the store is read, so its cache and counters stay.

    `tally` is shown each shard once it was read.
    """
    pair = (1, 1) if subset is None else subset
    whole = isinstance(pair, tuple) and len(pair) == 2 and all(isinstance(number, int) for number in pair)
    if not (whole and 1 <= pair[0] <= pair[1]):
        given = "/".join(map(str, pair)) if isinstance(pair, tuple) else pair
        raise InputError(f"a subset is n/t with 1 <= n <= t, got {shown(given)}")
    part, parts = pair
    fresh = store.reopened()
    chosen = range(part - 1, len(store.shards), parts)
    findings: dict[str, DamageError] = {}  # by text: a gap is read beside its patches and would report them again
    hashes: list[NDArray[np.uint64]] = []
    images: list[NDArray[np.uint8]] = []

    def attempt(load: Callable[[int], Any], shard_index: int) -> Any:
        try:
            return load(shard_index)
        except DamageError as error:
            findings.setdefault(str(error), error)
            return None

    for done, shard_index in enumerate(chosen, 1):
        for read in fresh.content_reads:
            attempt(read, shard_index)
        attempt(partial(tally, fresh), shard_index)
        if (keys := attempt(fresh.keys, shard_index)) is not None:
            hashes.append(key_hashes(keys))
        if (rows := attempt(fresh.image_hashes, shard_index)) is not None:
            images.append(rows.copy())
        if progress is not None:
            progress(done, len(chosen))
    if parts == 1 and not findings:
        return [*_repeated_keys(fresh, hashes), *_content(fresh, images)]
    return list(findings.values())


def _repeated_keys(store: StoredShards, hashes: list[NDArray[np.uint64]]) -> Iterator[DamageError]:
    flat = np.sort(np.concatenate(hashes))
    if not (flat[1:] == flat[:-1]).any():
        return
    for group in KeyIndex(hashes, store.max_rows).repeated():
        seen: dict[str, int] = {}
        for shard_index, row in map(store.shard_and_row, group):
            key = store.keys(shard_index)[row]
            first = seen.setdefault(key, shard_index)
            if first != shard_index:
                names = f"{shown(store.shards[first].name)} and {shown(store.shards[shard_index].name)}"
                yield DamageError(
                    f"the key '{shown(key)}' stands in the shards {names}; keys must be unique", file="keys"
                )


def _content(store: StoredShards, images: list[NDArray[np.uint8]]) -> Iterator[DamageError]:
    content = content_id(images)
    if content != store.content:
        yield DamageError(
            f"the image hashes give the content {content}, the manifest says {store.content}", file="images"
        )
