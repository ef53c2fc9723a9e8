"""Which row of a ticket file each image has, one way after the other:

* position: the same key at the same place of the shard of the same name, or else number;
* key: the same key anywhere;
* base name: the same key without folders and extension (`train/n01/x_1.JPEG` is `x_1`), where both sides have it once;
* content: the same encoded bytes, by their xxh3_128, whatever the key.

The join (for training) and `match` and `remap` (for sharing) take these steps; they differ in what they read to believe
a name, by the rule of `dlth.tickets.store.matching`. `match` reads every image whose key is a running number. The join
may not, as that can take hours: it believes a shard's numbers when a sample of that shard's images has the right bytes,
and the loader then compares each of them when it is read.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from dlth.data.shards.identity import content_hashes
from dlth.data.shards.shard_index import ShardIndex
from dlth.tickets.callbacks import Progress
from dlth.tickets.store.keyindex import KeyIndex, key_hashes
from dlth.tickets.store.matching import NO_TICKET, Flags, Hashes, Rows, base_name, rows_by_content, running_numbers
from dlth.tickets.store.stored_file import StoredFile

Way = Literal["none", "position", "key", "base name", "content"]
WAYS: tuple[Way, ...] = ("none", "position", "key", "base name", "content")


class Matcher:
    """The rows that images have been found to have so far; made, it has looked at positions and keys.

    `rows` (see `Rows`) and `way` uint8 [images], a place in WAYS; `numbered` bool [images]: keys that are running
    numbers; `hashes` of the images whose bytes were read (bool [images] `read`). `progress(done, total)` counts those.
    """

    def __init__(self, index: ShardIndex, store: StoredFile, progress: Progress | None = None) -> None:
        self.index, self.store, self._progress = index, store, progress
        self.rows: Rows = np.full(index.num_samples, NO_TICKET, dtype=np.int64)
        self.way = np.zeros(index.num_samples, dtype=np.uint8)
        self.read = np.zeros(index.num_samples, dtype=bool)
        self.hashes: Hashes = np.zeros((index.num_samples, 16), dtype=np.uint8)
        self.numbered: Flags = np.concatenate([running_numbers(keys) for keys in map(index.keys, self._shards)])
        self._by_position()
        self._by_key()

    def found(self, way: Way) -> Flags:
        """Bool [images]: whose row was found in this way."""
        result: Flags = self.way == WAYS.index(way)
        return result

    def take_back(self, images: Flags | Rows) -> None:
        """Forget the rows of images, flagged or by id."""
        self._note(images, NO_TICKET, "none")

    def read_images(self, images: Flags) -> None:
        """Read those that are not read yet for their hash."""
        ids = np.flatnonzero(images & ~self.read)
        before, progress = int(self.read.sum()), self._progress
        counted = None if progress is None else lambda done, total: progress(before + done, before + total)
        self.hashes[ids] = content_hashes(self.index, ids, counted)
        self.read[ids] = True

    def by_base_name(self) -> int:
        """Find rows by base name, where image and row have it alone; returns how many images share theirs.

        Rows that an image has already are no longer given.
        """
        index, store, left = self.index, self.store, self.rows == NO_TICKET
        if not left.any():
            return 0
        ours = np.concatenate([_base_hashes(index.keys(shard)) for shard in self._shards])
        theirs = [_base_hashes(store.keys(shard)) for shard in range(len(store.shards))]
        rows = KeyIndex(theirs, store.max_rows).first_rows(ours)
        named = left & (rows != NO_TICKET)
        alone = named & _once(ours, ours) & _once(ours, np.concatenate(theirs)) & ~np.isin(rows, self.rows[~left])
        for shard, samples, stored in store.by_shard(np.where(alone, rows, NO_TICKET)):
            keys, pairs = store.keys(shard), zip(samples.tolist(), stored.tolist(), strict=True)
            same = [base_name(keys[row]) == base_name(index.key(sample)) for sample, row in pairs]  # not by hash alone
            self._note(samples[same], rows[samples[same]], "base name")
        return int((named & ~alone).sum())

    def by_content(self) -> None:
        """Find rows by hash; reads the images that have none while the file has rows to spare."""
        left = self.rows == NO_TICKET
        if left.any() and len(np.unique(self.rows[~left])) < self.store.num_rows:
            self.read_images(left)
            self._note(left, rows_by_content(self.store, self.hashes[left]), "content")

    def _by_position(self) -> None:
        named = {shard.name: number for number, shard in enumerate(self.store.shards)}
        for shard, info in enumerate(self.index.shards):
            theirs = named.get(info.name, shard)
            if theirs < len(self.store.shards):
                pairs = zip(self.index.keys(shard), self.store.keys(theirs), strict=False)
                same = np.flatnonzero([ours == stored for ours, stored in pairs])
                self._note(self.index.row_start[shard] + same, self.store.row_number(theirs, same), "position")

    def _by_key(self) -> None:
        left = np.flatnonzero(self.rows == NO_TICKET)
        if len(left):
            self._note(left, self.store.find_rows([self.index.key(sample) for sample in left.tolist()]), "key")

    @property
    def _shards(self) -> range:
        return range(len(self.index.shards))

    def _note(self, images: Flags | Rows, rows: Rows | int, way: Way) -> None:
        self.rows[images] = rows
        self.way[images] = np.where(np.equal(rows, NO_TICKET), 0, WAYS.index(way))


def _once(hashes: NDArray[np.uint64], among: NDArray[np.uint64]) -> Flags:
    """Bool [n]: which of `hashes` stand `among` others once."""
    values, counts = np.unique(among, return_counts=True)
    return np.isin(hashes, values[counts == 1])


def _base_hashes(keys: Sequence[str]) -> NDArray[np.uint64]:
    return key_hashes([base_name(key) for key in keys])
