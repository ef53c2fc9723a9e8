"""Two ticket files side by side: the rows of one in the order of the other.

By position first (the same keys in the same shard), else by key through one pass over the other file; which pairs are
believed stands in `matching`. Files that were imported without content hashes, as COCO's are, whose keys are numbers,
are believed of each other: no image is read here that a number could mistake.
"""

import functools

import numpy as np
from numpy.typing import NDArray

from dlth.tickets.derive.reorder import Reordered
from dlth.tickets.errors import InputError, MismatchError, shown
from dlth.tickets.format.rows import ShardTickets
from dlth.tickets.store.matching import believed, running_numbers
from dlth.tickets.store.ticket_store import TicketStore


class Pairing:
    """Pairs each row of `base` with the row of `other` that has its key.

    Memory: nothing that grows with the rows while both files are packed alike, else 45 bytes a row.
    """

    def __init__(self, base: TicketStore, other: TicketStore) -> None:
        self.base = base
        self.other = other
        self._starts = np.cumsum([0, *(shard.rows for shard in base.shards)]).tolist()

    def rows(self, shard_index: int) -> tuple[ShardTickets, NDArray[np.bool_]]:
        """The rows of `other` that belong to one shard of `base`, and bool [rows], whether there is one."""
        keys = self.base.keys(shard_index)
        if shard_index < len(self.other.shards) and self.other.keys(shard_index) == keys:
            tickets = self.other.read(shard_index)
        else:
            tickets = self._by_key.rows(*self._starts[shard_index : shard_index + 2])
        named = np.array([own == key for own, key in zip(keys, tickets.keys, strict=True)], dtype=bool)
        hashes, others = self.base.image_hashes(shard_index), tickets.images
        nobody_knows = ~(hashes.any(axis=1) | others.any(axis=1))
        return tickets, named & (nobody_knows | believed(running_numbers(keys), hashes, others))

    @functools.cached_property
    def _by_key(self) -> Reordered:
        """Rows of `other` in the order of `base`, found by the keys' 64-bit hashes; `rows` compares the keys."""
        index, base = self.other.key_index(), self.base
        return Reordered(
            self.other, np.concatenate([index.first_candidates(base.keys(shard)) for shard in range(len(base.shards))])
        )


def check_all_found(base: TicketStore, other: TicketStore, shard_index: int, paired: NDArray[np.bool_]) -> None:
    """Raises MismatchError, naming rows, unless every row of a shard was found."""
    if paired.all():
        return
    missing = [shown(key, 60) for key, there in zip(base.keys(shard_index), paired, strict=True) if not there]
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
