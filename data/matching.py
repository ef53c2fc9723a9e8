"""The ways in which an image's row in a ticket file is found: position, key, content hash; and what makes it believed.

The join (for training), `match` and `remap` (for sharing) put them together differently; each way stands here once.
Believed is a lettered key as it is, and a running number only with equal bytes (the rule of `tickets/pairing.py`).
`match` reads every such image. The join may not, as that can take hours; it believes a shard's numbers when a sample
of that shard's images has the right bytes, and the loader then compares each of them when it is read.
"""

import numpy as np
from numpy.typing import NDArray

from dlth.data.shard_index import ShardIndex
from dlth.tickets.pairing import running_numbers
from dlth.tickets.store import TicketStore

NO_TICKET = -1
READ_AT_ONCE = 256
"""Images read for their hash before any is let go."""

Rows = NDArray[np.int64]
"""Int64 [images]: row numbers in the ticket file (`TicketStore.row_number`), or NO_TICKET."""
Hashes = NDArray[np.uint8]


def match_by_position(index: ShardIndex, store: TicketStore) -> Rows:
    """Rows of images that stand where their key stands in the file: in the shard of the same name, or place."""
    rows = np.full(index.num_samples, NO_TICKET, dtype=np.int64)
    named = {shard.name: place for place, shard in enumerate(store.shards)}
    for place, shard in enumerate(index.shards):
        theirs = named.get(shard.name, place)
        if theirs >= len(store.shards):
            continue
        ours, stored = index.keys(place), store.keys(theirs)
        if tuple(ours) == stored:
            same = np.arange(len(stored))
        else:
            same = np.flatnonzero([a == b for a, b in zip(ours, stored, strict=False)])
        rows[int(index.row_start[place]) + same] = store.row_number(theirs, same)
    return rows


def match_by_key(index: ShardIndex, store: TicketStore, rows: Rows) -> None:
    """Fill in rows that stand elsewhere in the file, by key."""
    left = np.flatnonzero(rows == NO_TICKET)
    if len(left):
        rows[left] = store.find_rows([index.key(int(i)) for i in left])


def numbered_images(index: ShardIndex) -> NDArray[np.bool_]:
    """Bool [images]: keys that are running numbers and say nothing outside their own packing."""
    return np.concatenate([running_numbers(index.keys(shard)) for shard in range(len(index.shards))])


def compared(store: TicketStore, rows: Rows, hashes: Hashes) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Bool [n] each: has the bytes that its row's ticket was made from; its row does not know (zeros).

    `rows` int64 [n] with the images' `hashes` uint8 [n, 16]; each shard's chunk of the file is read once.
    """
    same, unknown = np.zeros(len(rows), dtype=bool), np.zeros(len(rows), dtype=bool)
    for shard_index, images, theirs in store.by_shard(rows):
        stored = store.image_hashes(shard_index)[theirs]
        same[images] = (stored == hashes[images]).all(axis=1)
        unknown[images] = ~stored.any(axis=1)
    return same & ~unknown, unknown


class ContentIndex:
    """Finds rows by content hash. Memory: 32 bytes a row of the file."""

    def __init__(self, store: TicketStore) -> None:
        hashes = np.concatenate([store.image_hashes(place) for place in range(len(store.shards))])
        places = [store.row_number(place, np.arange(shard.rows)) for place, shard in enumerate(store.shards)]
        heads = _heads(hashes)
        order = np.argsort(heads, kind="stable")
        self._heads, self._hashes, self._places = heads[order], hashes[order], np.concatenate(places)[order]

    def find(self, hashes: Hashes) -> Rows:
        """Int64 [n]: the row of each of `hashes` uint8 [n, 16], NO_TICKET where there is none."""
        at = np.minimum(np.searchsorted(self._heads, _heads(hashes)), len(self._heads) - 1)
        found = (self._hashes[at] == hashes).all(axis=1)
        return np.where(found, self._places[at], NO_TICKET).astype(np.int64)


def _heads(hashes: Hashes) -> NDArray[np.uint64]:
    """Uint64 [n]: the first eight bytes of each hash."""
    return np.ascontiguousarray(hashes[:, :8]).view("<u8").ravel()
