"""Finding rows by key, for millions of keys in 16 bytes each.

A sorted array of 64-bit key hashes with the row of each; a hit is compared with the stored key itself. Rejected: a
dict of strings (100 MB per million) and numpy's own string arrays (as wide as the longest key).
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


class KeyIndex:
    """Row numbers (`TicketStore.row_number`) by key hash."""

    def __init__(self, hashes: Sequence[NDArray[np.uint64]], max_rows: int) -> None:
        """`hashes` uint64 [rows] of each shard, from `key_hashes`."""
        rows = [shard * max_rows + np.arange(len(part), dtype=np.int64) for shard, part in enumerate(hashes)]
        flat = np.concatenate(hashes)
        order = np.argsort(flat, kind="stable")
        self._hashes = flat[order]
        self._rows: NDArray[np.int64] = np.concatenate(rows)[order]

    def candidates(self, key: str) -> list[int]:
        """Row numbers whose key has the same hash: almost always none or one."""
        wanted = key_hashes([key])[0]
        first, last = (int(np.searchsorted(self._hashes, wanted, side=side)) for side in ("left", "right"))
        return [int(row) for row in self._rows[first:last]]

    def first_candidates(self, keys: Sequence[str]) -> NDArray[np.int64]:
        """Int64 [keys]: the first row number with the same hash, -1 for none."""
        return self.first_rows(key_hashes(keys))

    def first_rows(self, hashes: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Int64 [n]: the first row number of each hash, -1 for none."""
        place = np.minimum(np.searchsorted(self._hashes, hashes), len(self._hashes) - 1)
        return np.where(self._hashes[place] == hashes, self._rows[place], -1)

    def repeated(self) -> list[list[int]]:
        """Groups of row numbers with one hash: one key several times, or chance (one in 10^7 for a million keys)."""
        _, starts, counts = np.unique(self._hashes, return_index=True, return_counts=True)
        several = counts > 1
        groups = zip(starts[several].tolist(), counts[several].tolist(), strict=True)
        return [self._rows[start : start + count].tolist() for start, count in groups]


def key_hashes(keys: Sequence[str]) -> NDArray[np.uint64]:
    """Uint64 [keys]: Python's own hash of each key.

    Keyed anew in each process, so nobody can prepare a file whose keys collide, and so never to be stored or sent.
    """
    return np.fromiter(map(hash, keys), dtype=np.int64, count=len(keys)).view(np.uint64)
