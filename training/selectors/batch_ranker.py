"""Stage 1's computing side: batches of images in, rankings or token labels out, on a GPU or on all cores of a CPU.

On a CPU each batch is computed by one thread and several batches run side by side. One batch over all cores would be
no faster, and its sums would be split by the number of threads: the last bits of a score, and with them a tie, would
depend on the machine's load or on torchrun's OMP_NUM_THREADS. This way they depend on the images alone, and on how many
make a batch: libraries choose how to sum by the shape of a product.

On a GPU the next batches are queued before the result of the one before them is read, so that the GPU has work while
that is averaged, hashed and written. A batch that was halved for want of memory gives the tickets that it would have
given, but for those last bits.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, cast

import numpy as np
import torch
from torch import Tensor

from dlth.data.cores import num_cores
from dlth.data.loading.shard_reader import ShardBatch
from dlth.tickets.callbacks import Note
from dlth.tickets.ranking.averaging import average
from dlth.training.device.compiled import compiled
from dlth.training.device.feed import sent_ahead
from dlth.training.device.precision import Precision
from dlth.training.device.reading import read_later
from dlth.training.models.frame import Frame
from dlth.training.models.pixels import Pixels
from dlth.training.selectors.patch_ranker import PatchRanker

Ranked = tuple[np.ndarray, np.ndarray]
"""Rankings int64 [batch, patches] and gaps float32 [batch] of a batch (a gap is NaN where scores are no numbers), or
classes and scores of its cells."""
Reading = Callable[[], Ranked]
"""Waits for what was asked of a device, and gives it."""


class Sees(Protocol):
    """What is asked of each batch: a ranker, or an annotator."""

    @property
    def frame(self) -> Frame:
        """What its images must be."""

    @property
    def device(self) -> torch.device:
        """Where its images must be."""

    def select(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Two tensors [B, …] of normalised float images [B, 3, *frame.size]."""


@dataclass
class BatchRanker:
    """Asks a ranker, or whatever `Sees`, about uint8 images, batch by batch; halves the batch when the device's memory
    is too small.
    """

    ranker: Sees
    amp: bool = False
    amp_dtype: str = "bfloat16"
    torchcompile: str | None = None
    batch_size: int | None = None
    note: Note = lambda text: None

    def __post_init__(self) -> None:
        select: Callable[[Tensor], tuple[Tensor, Tensor]] = self.ranker.select
        self._select = select if self.torchcompile is None else compiled(select, self.torchcompile)
        self._pixels = Pixels(self.ranker.frame.mean, self.ranker.frame.std)
        self._precision = Precision.of(self.amp, self.amp_dtype, self.ranker.device)

    def __call__(self, images: Tensor) -> Ranked:
        """What is seen in uint8 images [batch, 3, height, width]: of a ranker, rankings and gaps."""
        return self.queued(images)()

    def queued(self, images: Tensor) -> Reading:
        """As a call, but on a GPU the result is not waited for. Raises torch.OutOfMemoryError where the device's memory
        is too small for one image.
        """
        while True:
            try:
                return self.queued_whole(images)
            except torch.OutOfMemoryError:
                alone = self._size(images)
                if alone == 1:
                    raise
                size = self.batch_size or alone  # of the whole batch: a short one at a shard's end says little of it
                self.batch_size = size // 2
                self.note(f"batch of {size} does not fit into the device's memory: going on with {self.batch_size}")
            # tried again out here, where the error, whose frames hold on to the device's memory, is gone

    def queued_whole(self, images: Tensor) -> Reading:
        """As `queued`, but nothing is halved. Raises torch.OutOfMemoryError where it would be: a GPU's memory is taken
        as work is queued, and none of what was taken for these images is held then.
        """
        size = self._size(images)
        readings = [self._queued(part, size) for part in images.split(size)]

        def read() -> Ranked:
            firsts, seconds = zip(*([part.numpy() for part in reading()] for reading in readings), strict=True)
            return np.concatenate(firsts), np.concatenate(seconds)

        return read

    def _size(self, images: Tensor) -> int:
        """Of how many images one forward is; of a compiled graph always the same number, whatever there are."""
        size = self.batch_size or max(len(images), 1)
        return size if self.torchcompile is not None else min(size, max(len(images), 1))

    @torch.inference_mode()
    def _queued(self, images: Tensor, size: int) -> Callable[[], list[Tensor]]:
        """One forward of at most `size` images; of no images, a black one says of what shape nothing is."""
        count = len(images)
        shown = size if self.torchcompile is not None else max(count, 1)
        if count < shown:
            images = torch.cat([images, images.new_zeros(shown - count, *images.shape[1:])])
        x = self._pixels(images.to(self.ranker.device, non_blocking=True))
        with self._precision():
            first, second = self._select(x)
        return read_later([first[:count], second[:count]])


def rank_batches(
    batches: Iterable[ShardBatch], ranker: BatchRanker, threads: int | None = None
) -> Iterator[tuple[ShardBatch, Ranked]]:
    """Rank the good images of a stream of batches, in its order; on a CPU `threads` batches at a time, or as many as
    there are cores. Batches come back without their images.
    """
    if ranker.ranker.device.type == "cpu":
        return ranked_side_by_side(batches, ranker, threads or num_cores())
    return ranked_ahead(batches, ranker)


AHEAD = 2
"""Batches that a GPU has queued while the result of the one before them is used: writing a shard and having it on the
disk may take longer than one batch. All that they hold of its memory is their results.
"""


def ranked_ahead(batches: Iterable[ShardBatch], ranker: BatchRanker) -> Iterator[tuple[ShardBatch, Ranked]]:
    """As `rank_batches`, with `AHEAD` batches queued before the result of the one before them is read.

    Where memory is too small for a batch beside those in flight, they are read first, and it is tried once more as it
    is; only then is it halved.
    """
    waiting: deque[tuple[ShardBatch, Reading]] = deque()
    for batch in sent_ahead(batches, ranker.ranker.device):
        try:
            reading = ranker.queued_whole(batch.images)
        except torch.OutOfMemoryError:
            reading = None
        while len(waiting) == AHEAD or (waiting and reading is None):
            yield _read(*waiting.popleft(), ranker)
        waiting.append((batch.without_images(), reading or ranker.queued(batch.images)))
    for queued in waiting:
        yield _read(*queued, ranker)


def ranked_side_by_side(
    batches: Iterable[ShardBatch], ranker: BatchRanker, threads: int
) -> Iterator[tuple[ShardBatch, Ranked]]:
    """As `rank_batches`, each batch in a thread of its own."""

    def ranked(batch: ShardBatch) -> Ranked:
        return _of_views(batch, ranker(batch.images), ranker)

    waiting: deque[tuple[ShardBatch, Future[Ranked]]] = deque()
    with one_thread_each(), ThreadPoolExecutor(threads) as pool:
        for batch in batches:
            waiting.append((batch.without_images(), pool.submit(ranked, batch)))
            if len(waiting) > threads:
                done, future = waiting.popleft()
                yield done, future.result()
        for done, future in waiting:
            yield done, future.result()


def _read(batch: ShardBatch, reading: Reading, ranker: BatchRanker) -> tuple[ShardBatch, Ranked]:
    return batch, _of_views(batch, reading(), ranker)


def _of_views(batch: ShardBatch, ranked: Ranked, ranker: BatchRanker) -> Ranked:
    """Rankings and gaps of a batch's images; those of several views are averaged, and a gap is one of their means, as a
    share of log2(patches), the most that a mean can be.
    """
    patches, gap = ranked
    if batch.maps is None:
        return patches, gap
    made_of = cast(PatchRanker, ranker.ranker)  # nothing else is shown several views
    shape, num_patches, k = batch.maps.shape[:2], patches.shape[1], made_of.budget.k
    patches, mean = average(patches.reshape(*shape, num_patches), batch.maps, made_of.frame.grid)
    lost = np.isnan(gap).reshape(shape).any(axis=1)
    cut = np.diff(np.take_along_axis(mean, patches[:, k - 1 : k + 1], axis=1), axis=1)  # [batch, 0] where all are kept
    gap = cut[:, 0] / np.log2(num_patches) if k < num_patches else np.full(len(patches), np.inf)
    return patches, np.where(lost, np.nan, gap).astype(np.float32)


@contextmanager
def one_thread_each() -> Iterator[None]:
    """Let each Python thread compute alone, so that a result does not depend on how many cores there are."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
