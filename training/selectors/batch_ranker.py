"""Stage 1's computing side: batches of images in, rankings or token labels out, on a GPU or on all cores of a CPU.

On a CPU each batch is computed by one thread and several batches run side by side. One batch over all cores would be
no faster, and its sums would be split by the number of threads: the last bits of a score, and with them a tie, would
depend on the machine's load or on torchrun's OMP_NUM_THREADS. This way they depend on the images alone.
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
from dlth.training.device.precision import Precision
from dlth.training.models.frame import Frame
from dlth.training.models.pixels import Pixels
from dlth.training.selectors.patch_ranker import PatchRanker

Ranked = tuple[np.ndarray, np.ndarray]
"""Rankings int64 [batch, patches] and gaps float32 [batch] of a batch (a gap is NaN where scores are no numbers), or
classes and scores of its cells."""


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
        if not len(images):  # a black one says of what shape nothing is
            first, second = self._rank(images.new_zeros(1, *images.shape[1:]), 1)
            return first[:0], second[:0]
        parts: list[Ranked] = []
        at = 0
        while at < len(images):
            size = self.batch_size or len(images)
            try:
                parts.append(self._rank(images[at : at + size], size))
            except torch.OutOfMemoryError:
                if size == 1:
                    raise
                self.batch_size = size // 2
                self.note(f"batch of {size} does not fit into the device's memory: going on with {self.batch_size}")
                continue
            at += size
        return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])

    @torch.inference_mode()
    def _rank(self, images: Tensor, size: int) -> Ranked:
        count = len(images)
        if self.torchcompile is not None and count < size:  # a compiled graph knows one batch size
            images = torch.cat([images, images.new_zeros(size - count, *images.shape[1:])])
        x = self._pixels(images.to(self.ranker.device, non_blocking=True))
        with self._precision():
            first, second = self._select(x)
        return first[:count].cpu().numpy(), second[:count].cpu().numpy()


def rank_batches(
    batches: Iterable[ShardBatch], ranker: BatchRanker, threads: int | None = None
) -> Iterator[tuple[ShardBatch, Ranked]]:
    """Rank the good images of a stream of batches, in its order; on a CPU `threads` batches at a time, or as many as
    there are cores.
    """
    if ranker.ranker.device.type != "cpu":
        for batch in batches:
            yield batch, _ranked(batch, ranker)
        return
    threads = threads or num_cores()
    waiting: deque[tuple[ShardBatch, Future[Ranked]]] = deque()
    with one_thread_each(), ThreadPoolExecutor(threads) as pool:
        for batch in batches:
            waiting.append((batch, pool.submit(_ranked, batch, ranker)))
            if len(waiting) > threads:
                done, future = waiting.popleft()
                yield done, future.result()
        for done, future in waiting:
            yield done, future.result()


def _ranked(batch: ShardBatch, ranker: BatchRanker) -> Ranked:
    """Rankings and gaps of a batch's images; those of several views are averaged, and a gap is one of their means, as a
    share of log2(patches), the most that a mean can be.
    """
    patches, gap = ranker(batch.images)
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
