"""Sample order: which images every rank reads at every step, as pure functions of (seed, epoch).

An epoch's order is computed, never discovered: permute the shards, then jitter every sample forward by less than
`window` places and sort. No sample moves further than the window, so shards are opened in order, few at a time, and
memory stays bounded. The order is cut into *global* batches first and those into equal contiguous parts for ranks and
micro-batches, so neither the number of ranks, nor of loader workers, nor of accumulation steps changes what a step
trains on. The state of the reader is therefore (epoch, step), and resuming costs nothing. Rejected: a shuffle buffer
(its content is state, and its order depends on who fills it); splitting shards over ranks first (images of two ranks
never meet, and ranks run out at different steps); padding the last batch by repeats (images count twice): the last
short batch is kept, and weights say what counts.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dlth.tickets.errors import InputError
from dlth.tickets.seeding import generator

DEFAULT_WINDOW = 16_384
"""Samples: about 13 of ImageNet's usual shards, 2 GB of images that the page cache holds."""

Ids = NDArray[np.int64]


def epoch_order(
    shard_rows: Ids, seed: int, epoch: int, window: int = DEFAULT_WINDOW, removed: NDArray[np.bool_] | None = None
) -> Ids:
    """The ids of one epoch in the order they are trained on, int64 [samples left].

    `shard_rows` int64 [shards]: samples per shard; id = position in the shards' own order. `window` in samples: no
    sample lies `window` or more places from where its shard's turn would put it (1 keeps each shard's own order; from
    the number of samples upwards the shuffle is uniform). `removed` bool [samples]: left out before anything is cut, so
    that all ranks agree. Raises InputError for a window below 1.
    """
    if window < 1:
        raise InputError(f"the shuffle window is at least 1 sample, got {window}")
    rng = generator(seed, "order", epoch)
    num_samples = int(shard_rows.sum())
    if window >= num_samples:
        order = rng.permutation(num_samples)
    else:
        starts = np.cumsum(shard_rows) - shard_rows
        turns = [np.arange(starts[s], starts[s] + shard_rows[s]) for s in rng.permutation(len(shard_rows))]
        places = np.arange(num_samples) + rng.random(num_samples) * window
        order = np.concatenate(turns)[np.argsort(places, kind="stable")]
    order = order.astype(np.int64, copy=False)
    return order if removed is None else order[~removed[order]]


@dataclass(frozen=True, slots=True)
class Part:
    """What one rank reads for one micro-batch: `ids` int64 [n] and `weights` float32 [n] (1, or 0 for a repeat)."""

    ids: Ids
    weights: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Batching:
    """How an order is cut: `global_batch` images a step, over `world` ranks, in `micro_batches` each.

    Raises InputError when the global batch is no multiple of world times micro-batches.
    """

    global_batch: int
    world: int = 1
    micro_batches: int = 1

    def __post_init__(self) -> None:
        if min(self.global_batch, self.world, self.micro_batches) < 1:
            raise InputError(f"global batch, ranks and micro-batches are at least 1, got {self}")
        if self.global_batch % self.num_parts:
            raise InputError(
                f"a global batch of {self.global_batch} cannot be shared evenly by {self.world} ranks with "
                f"{self.micro_batches} micro-batches each: take a multiple of {self.num_parts}"
            )

    @property
    def num_parts(self) -> int:
        """Micro-batches of a step over all ranks."""
        return self.world * self.micro_batches

    @property
    def part_size(self) -> int:
        """Images of a micro-batch, the last step's apart."""
        return self.global_batch // self.num_parts

    @property
    def paired(self) -> bool:
        """Whether cuts fall between pairs (0, 1), (2, 3), … of the global batch, as mixing needs."""
        return self.part_size % 2 == 0

    def num_steps(self, num_samples: int) -> int:
        """Steps of an epoch, the same on every rank; the last may be short."""
        return -(-num_samples // self.global_batch)

    def batch(self, order: Ids, step: int) -> Ids:
        """The ids of a step over all ranks, int64 [global batch], or fewer at the end."""
        return order[step * self.global_batch : (step + 1) * self.global_batch]

    def parts(self, order: Ids, step: int, rank: int) -> list[Part]:
        """What `rank` reads at `step`, one part per micro-batch, each with at least one image.

        In a short last step some parts may have nothing left: they repeat the step's first images with weight 0, so
        that every rank still takes part in the step.
        """
        ids = self.batch(order, step)
        unit = 2 if self.paired else 1
        units = -(-len(ids) // unit)
        cuts = np.minimum(np.arange(self.num_parts + 1) * units // self.num_parts * unit, len(ids))
        first = rank * self.micro_batches
        parts = []
        for start, stop in zip(cuts[first:], cuts[first + 1 : first + 1 + self.micro_batches], strict=False):
            chosen = ids[start:stop] if stop > start else ids[:unit]
            parts.append(Part(chosen, np.full(len(chosen), stop > start, np.float32)))
        return parts


def live_shards(order: Ids, shard_of: Ids) -> int:
    """The most shards that are in use at once: begun and not finished. `shard_of` int64 [samples] by id."""
    if not len(order):
        return 0
    shards = shard_of[order]
    places = np.arange(len(order))
    num_shards = int(shard_of.max()) + 1
    first = np.full(num_shards, len(order))
    last = np.full(num_shards, -1)
    np.minimum.at(first, shards, places)
    np.maximum.at(last, shards, places)
    used = last >= 0
    change = np.bincount(first[used], minlength=len(order) + 1) - np.bincount(last[used] + 1, minlength=len(order) + 1)
    return int(np.cumsum(change).max())
