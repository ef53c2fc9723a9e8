"""Sample order: which images every rank reads at every step, as pure functions of (seed, epoch).

An epoch's order is computed, never discovered: permute the shards, then jitter every sample forward by less than
`window` places and sort. No sample moves further than the window, so shards are opened in order, few at a time, and
memory stays bounded. The order is cut into *global* batches first and those into equal contiguous parts for ranks and
micro-batches, so neither the number of ranks, nor of loader workers, nor of accumulation steps changes what a step
trains on. The state of the reader is therefore (epoch, step), and resuming costs nothing.

What is left after the last full batch is shared evenly by the last two steps, so that no step is made on a handful of
images, or dropped. With repeated augmentation (DeiT's) an epoch shows the first images of its order in several views
each; within a global batch all first views come first, then all second ones, so that contiguous parts put an image's
views on different ranks and mixing meets different images.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dlth.tickets.errors import InputError
from dlth.tickets.seeding import generator

DEFAULT_WINDOW = 16_384
"""Samples: about 13 of ImageNet's usual shards, 2 GB of images that the page cache holds."""

REPEATS_CUT = 256
"""An epoch of repeated views ends at a multiple of this many (DeiT's rule), where there are as many images."""

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
    """What one rank reads for one micro-batch.

    `ids` int64 [n]; `views` int64 [n]: which of its views of the epoch an image shows, from 0; `weights` float32 [n]:
    1, or 0 for a repeat; `start`: place of the first among the images of the step.
    """

    ids: Ids
    views: Ids
    weights: NDArray[np.float32]
    start: int


@dataclass(frozen=True, slots=True)
class Batching:
    """How an order is cut: `global_batch` images a step, over `world` ranks, in `micro_batches` each.

    `aug_repeats`: views of each image in an epoch, which then shows the first part of its order alone; 0 or 1: one view
    of every image. `drop_last`: leave out what does not fill a global batch, unless that is all there is. Raises
    InputError when the global batch is no multiple of world times micro-batches.
    """

    global_batch: int
    world: int = 1
    micro_batches: int = 1
    aug_repeats: int = 0
    drop_last: bool = False

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

    @property
    def num_views(self) -> int:
        """Views of an image in an epoch."""
        return max(self.aug_repeats, 1)

    def num_steps(self, num_samples: int) -> int:
        """Steps of an epoch of an order of that many images, the same on every rank."""
        whole, left = divmod(self._num_places(num_samples), self.global_batch)
        return whole if self.drop_last and whole else whole + (left > 0)

    def num_shown(self, num_samples: int) -> int:
        """How many of that many images an epoch shows: the first of its order, the last perhaps in fewer views."""
        return -(-self._edge(num_samples, self.num_steps(num_samples)) // self.num_views)

    def num_images(self, num_samples: int) -> int:
        """How many images the steps of an epoch take in all, each of an image's views counted."""
        return self._edge(num_samples, self.num_steps(num_samples))

    def step_images(self, num_samples: int, step: int) -> int:
        """How many of these a step takes: a global batch, but for the last two."""
        return self._edge(num_samples, step + 1) - self._edge(num_samples, step)

    def batch(self, order: Ids, step: int) -> Ids:
        """The ids of a step over all ranks, int64 [images of the step], the first views first."""
        return order[self._places(len(order), step) // self.num_views]

    def parts(self, order: Ids, step: int, rank: int) -> list[Part]:
        """What `rank` reads at `step`, one part per micro-batch, each with at least one image.

        In a short step some parts may have nothing left: they repeat the step's first images with weight 0, so that
        every rank still takes part in the step.
        """
        places = self._places(len(order), step)
        ids, views = order[places // self.num_views], places % self.num_views
        units = -(-len(ids) // self._unit)
        cuts = np.minimum(np.arange(self.num_parts + 1) * units // self.num_parts * self._unit, len(ids)).tolist()
        first = rank * self.micro_batches
        parts = []
        for start, stop in zip(cuts[first:], cuts[first + 1 : first + 1 + self.micro_batches], strict=False):
            rows = slice(start, stop) if stop > start else slice(0, self._unit)
            weights = np.full(len(ids[rows]), stop > start, np.float32)
            parts.append(Part(ids[rows], views[rows], weights, rows.start))
        return parts

    @property
    def _unit(self) -> int:
        return 2 if self.paired else 1

    def _num_places(self, num_samples: int) -> int:
        """Length of an epoch's list, in which each image stands once, or `aug_repeats` times in a row."""
        whole = self.num_views > 1 and num_samples >= REPEATS_CUT
        return num_samples // REPEATS_CUT * REPEATS_CUT if whole else num_samples

    def _edge(self, num_samples: int, step: int) -> int:
        """Where `step` begins in the epoch's list, and the step before it ends."""
        num_places, num_steps = self._num_places(num_samples), self.num_steps(num_samples)
        short = num_places % self.global_batch
        if step == num_steps - 1 > 0 and short and not self.drop_last:
            left = self.global_batch + short  # of these the last step but one takes half, in whole pairs
            return num_places - left + -(-(left // 2) // self._unit) * self._unit
        return min(step * self.global_batch, num_places)

    def _places(self, num_samples: int, step: int) -> Ids:
        """The step's part of the epoch's list, as places int64 [images of the step], by view and then by image."""
        places = np.arange(self._edge(num_samples, step), self._edge(num_samples, step + 1))
        return places[np.argsort(places % self.num_views, kind="stable")]


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
