"""An open file of any kind: its rows by key, and the file as a whole."""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from dlth.tickets.callbacks import Progress
from dlth.tickets.errors import DamageError, InputError, MissingTicketError, shown
from dlth.tickets.format.layout import MANIFEST_FILE, MANIFEST_META_FILE, identity_of, manifest_meta_text
from dlth.tickets.store.keyindex import KeyIndex, key_hashes
from dlth.tickets.store.reader import StoredShards
from dlth.tickets.store.verify import verify_store


class StoredFile(StoredShards):
    """A finished file, open for reading; shards, attributes, errors as `StoredShards` says."""

    _key_index: KeyIndex | None = None

    def find(self, key: str) -> tuple[int, int]:
        """(shard index, row) of the ticket of a key; the first call reads the keys of the whole file.

        Raises MissingTicketError, saying which, where the key is not in the file or its image was skipped.
        """
        number = self._number(key) if isinstance(key, str) else -1
        lacking = f"{shown(self.path.name)} has no {self.NOUN} for the key '{shown(key)}'"
        if number < 0:
            raise MissingTicketError(lacking)
        shard_index, row = self.shard_and_row(number)
        if self._skips(shard_index)[row]:
            why = f"its image could not be read when the {self.NOUN}s were made, and was skipped"
            raise MissingTicketError(f"{lacking}: {why}")
        return shard_index, row

    def find_many(self, keys: Sequence[str]) -> NDArray[np.int64]:
        """As `find_rows`, with -1 for skipped images, too: int64 [keys]."""
        numbers = self.find_rows(keys)
        return np.where(self.skipped_at(numbers), -1, numbers)

    def find_rows(self, keys: Sequence[str]) -> NDArray[np.int64]:
        """Int64 [keys]: the row number of each key, skipped images among them, -1 where there is no row."""
        if isinstance(keys, str | bytes) or not isinstance(keys, Sequence | np.ndarray):
            raise InputError(f"a list of keys is needed, found {shown(keys)!r}: put one key in brackets")
        numbers = self.key_index().first_candidates(keys)
        for shard_index, at, rows in self.by_shard(numbers):
            theirs = self.keys(shard_index)
            for item, row in zip(at.tolist(), rows.tolist(), strict=True):
                if theirs[row] != keys[item]:
                    numbers[item] = self._number(keys[item])
        return numbers

    def skipped_at(self, numbers: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Bool [n]: which of the rows with these numbers were skipped; none of -1."""
        result = np.zeros(len(numbers), dtype=bool)
        for shard_index, at, rows in self.by_shard(numbers):
            result[at] = self._skips(shard_index)[rows]
        return result

    def key_index(self) -> KeyIndex:
        """Row numbers by key hash, of all keys of the file: 16 bytes each, read once and kept."""
        if self._key_index is None:
            hashes = [key_hashes(self.keys(index)) for index in range(len(self.shards))]
            self._key_index = KeyIndex(hashes, self.max_rows)
        return self._key_index

    def verify(self, progress: Progress | None = None, subset: tuple[int, int] | None = None) -> list[DamageError]:
        """Every digest, range, count, and key; returns what is wrong, one error per finding.

        `progress(done, total)` is called after each shard. `subset` (n, t) with 1 <= n <= t checks the n-th of t parts
        only, and not what spans shards: that no key stands twice, and the content digest.
        """
        return verify_store(self, progress, subset)

    @property
    def num_files(self) -> int:
        """Files that it consists of."""
        return len(self.files) + 2

    def raw_files(self) -> Iterator[tuple[str, bytes]]:
        """Every file's path and bytes, sorted by path, digests checked: what a copy consists of."""
        text = self._read_manifest()
        if identity_of(text) != self.identity:
            raise DamageError(f"{MANIFEST_FILE} changed since the file was opened", file=MANIFEST_FILE)
        manifest = {MANIFEST_FILE: text, MANIFEST_META_FILE: manifest_meta_text(text)}
        for name in sorted([*self.files, *manifest]):
            yield name, manifest[name] if name in manifest else self._bytes(name, self._shard_of(name))

    def __repr__(self) -> str:
        size = f"{self.num_rows} rows, {len(self.shards)} shards"
        return f"{type(self).__name__}({self.path.name!r}, {size}, {self.identity[:12]})"

    def _skips(self, shard_index: int) -> NDArray[np.bool_]:
        """`skipped`, without reading a chunk where the manifest counts none."""
        shard = self.shards[shard_index]
        return self.skipped(shard_index) if shard.skipped else np.zeros(shard.rows, dtype=bool)

    def _number(self, key: str) -> int:
        """The row number of a key, -1 for none."""
        for number in self.key_index().candidates(key):
            shard_index, row = self.shard_and_row(number)
            if self.keys(shard_index)[row] == key:
                return number
        return -1
