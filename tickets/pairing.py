"""Two ticket files side by side: the rows of one in the order of the other.

By position first (the same keys in the same shard), else by key through one pass over the other file.

The rule of trust, here and wherever images meet tickets (`dlth.data.matching`): a key that is a running number
(`000123`) names an image only within its own packing, so a pair with such a key counts only when the content hashes
agree. It is judged key by key: lettered keys beside the numbers change nothing for them.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dlth.tickets.checks import ShardTickets
from dlth.tickets.errors import InputError, MismatchError, shown
from dlth.tickets.reorder import Reordered
from dlth.tickets.store import TicketStore


class Pairing:
    """Pairs each row of `base` with the row of `other` that has its key.

    Memory: nothing that grows with the rows while both files are packed alike, else 45 bytes a row.
    """

    def __init__(self, base: TicketStore, other: TicketStore) -> None:
        self.base = base
        self.other = other
        self._starts = np.cumsum([0, *(shard.rows for shard in base.shards)])
        self._reordered: Reordered | None = None

    def rows(self, shard_index: int) -> tuple[ShardTickets, NDArray[np.bool_]]:
        """The rows of `other` that belong to one shard of `base`, and bool [rows], whether there is one."""
        keys = self.base.keys(shard_index)
        if self._reordered is None and self._aligned(shard_index, keys):
            found = np.ones(len(keys), dtype=bool)
            return self.other.read(shard_index), self._trusted(shard_index, self.other.image_hashes(shard_index), found)
        if self._reordered is None:
            self._reordered = Reordered(self.other, self._places())
        start, stop = self._starts[shard_index : shard_index + 2]
        tickets = self._reordered.rows(int(start), int(stop))
        found = np.array([own == key for own, key in zip(keys, tickets.keys, strict=True)], dtype=bool)
        return tickets, self._trusted(shard_index, tickets.images, found)

    def _aligned(self, shard_index: int, keys: tuple[str, ...]) -> bool:
        others = self.other.shards
        if shard_index >= len(others) or others[shard_index].rows != len(keys):
            return False
        return self.other.keys(shard_index) == keys

    def _trusted(self, shard_index: int, images: NDArray[np.uint8], found: NDArray[np.bool_]) -> NDArray[np.bool_]:
        numbered = running_numbers(self.base.keys(shard_index))
        if not numbered.any():
            return found
        same: NDArray[np.bool_] = (self.base.image_hashes(shard_index) == images).all(axis=1)
        return found & (same | ~numbered)

    def _places(self) -> NDArray[np.int64]:
        """Int64 [rows of base]: where `other` has the key, by 64-bit hash; `rows` compares the keys themselves."""
        index = self.other.key_index()
        return np.concatenate([index.first_candidates(self.base.keys(shard)) for shard in range(len(self.base.shards))])


def base_name(key: str) -> str:
    """A key without folders and extension."""
    return key.rpartition("/")[2].partition(".")[0]


def is_running_number(key: str) -> bool:
    """Whether a base name has no letter (`000123`, `07-000123`), so that another packing may use it for another
    image.
    """
    return not any(map(str.isalpha, base_name(key)))


def running_numbers(keys: Sequence[str]) -> NDArray[np.bool_]:
    """Bool [keys]: which are running numbers."""
    return np.fromiter(map(is_running_number, keys), dtype=bool, count=len(keys))


def check_all_found(base: TicketStore, other: TicketStore, shard_index: int, found: NDArray[np.bool_]) -> None:
    """Raises MismatchError, naming rows, unless every row of a shard was found."""
    if found.all():
        return
    missing = [shown(key, 60) for key, there in zip(base.keys(shard_index), found, strict=True) if not there]
    raise MismatchError(
        f"{shown(other.path.name)} has no row for {len(missing)} keys of shard "
        f"{shown(base.shards[shard_index].name)} of {shown(base.path.name)}: {', '.join(missing[:10])}; "
        "both files must be about the same images (keys that are running numbers count only with equal content hashes)"
    )


def check_same_size(stores: list[TicketStore]) -> None:
    """Raises MismatchError unless all files have as many rows; InputError for fewer than two files."""
    if len(stores) < 2:
        raise InputError(f"at least two ticket files are needed, got {len(stores)}")
    for other in stores[1:]:
        if other.num_rows != stores[0].num_rows:
            raise MismatchError(
                f"{shown(stores[0].path.name)} has {stores[0].num_rows} rows, {shown(other.path.name)} "
                f"{other.num_rows}; take the common ones with dlth tickets subset"
            )
