"""Stage 1's reading side: shards in order, each cut into batches that never cross a shard's edge.

Batches depend on the shard and the batch size alone, never on which process or worker reads them: together with
single-threaded arithmetic (`dlth.training.selectors.batch_ranker`) that makes the same bytes come out of any number.
Worker processes do the rest. Requests are made in the main process, so that is where shards are claimed, a few batches
before their images are needed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dlth.data.images.decode import BadImageError
from dlth.data.images.several_views import SeveralViews
from dlth.data.images.views import render
from dlth.data.loading.crashes import Crashed, decode_sample
from dlth.data.loading.sent_images import SentImages
from dlth.data.loading.workers import Pool
from dlth.data.shards.identity import content_hash
from dlth.data.shards.index import ShardIndex
from dlth.tickets import ViewSpec
from dlth.tickets.ranking.view import Matrix


@dataclass(frozen=True)
class ShardBatch(SentImages):
    """Some consecutive rows of one shard, decoded; `last`: the shard ends with them.

    images: uint8 [good, 3, height, width], of the rows that are `good`; with several views [good · views, …], those of
        an image side by side
    maps: float64 [good, views, 2, 3], of each of several views to its image; None if there is one
    hashes: uint8 [rows, 16], content hash of the encoded bytes
    good: bool [rows]
    problems: one text for each bad image
    """

    shard: int
    start: int
    last: bool
    images: Tensor
    maps: Matrix | None
    hashes: np.ndarray
    good: np.ndarray
    problems: tuple[str, ...]


Rows = tuple[int, int, int]
"""A shard's number, and the rows [start, stop) of it."""


@dataclass(frozen=True, eq=False)
class ShardRows:
    """Reads and decodes rows of a shard into the selector's view, or into `several` of which this is the first."""

    index: ShardIndex
    view: ViewSpec
    several: SeveralViews | None = None

    def images(self, request: Rows) -> range:
        """Ids of the images in these rows."""
        shard, start, stop = request
        first = int(self.index.row_start[shard])
        return range(first + start, first + stop)

    def __call__(self, request: Rows, crashed: Crashed) -> ShardBatch:
        """The rows, with those that are in `crashed` as bad images."""
        ids = self.images(request)
        encoded = self.index.read_many(list(ids))
        views = 1 if self.several is None else len(self.several)
        images = torch.empty(len(encoded), views, 3, self.view.height, self.view.width, dtype=torch.uint8)
        maps = np.empty((len(encoded), views, 2, 3))
        problems: list[str] = []
        good = np.zeros(len(encoded), dtype=bool)
        for row, (sample_id, data) in enumerate(zip(ids, encoded, strict=True)):
            try:
                image = decode_sample(self.index, sample_id, data, crashed)
                place = row - len(problems)
                if self.several is None:
                    images[place] = render(image, self.view)
                else:
                    images[place], maps[place] = self.several.of(image, self.index.key(sample_id))
                good[row] = True
            except BadImageError as error:
                problems.append(str(error))
        decoded = int(good.sum())
        hashes = np.frombuffer(b"".join(map(content_hash, encoded)), dtype=np.uint8).reshape(-1, 16)
        shard, start, stop = request
        last = stop == self.index.shards[shard].rows
        known = None if self.several is None else maps[:decoded]
        return ShardBatch(shard, start, last, images[:decoded].flatten(0, 1), known, hashes, good, tuple(problems))


def read_shards(
    shards: Iterable[int],
    index: ShardIndex,
    view: ViewSpec,
    batch_size: int,
    workers: int,
    several: SeveralViews | None = None,
) -> Iterator[ShardBatch]:
    """Decoded batches of the shards, in the order in which `shards` names them; they are named a few batches ahead.

    A batch has at most `batch_size` images, and with several views as many images as give so many views, at least one.

    Raises:
        DlthError: a shard that cannot be read, or a reading process that died
    """
    rows = batch_size if several is None else max(1, batch_size // len(several))
    yield from Pool(ShardRows(index, view, several), workers).results(_requests(shards, index, rows))


def _requests(shards: Iterable[int], index: ShardIndex, batch_size: int) -> Iterator[Rows]:
    for shard in shards:
        rows = index.shards[shard].rows
        for start in range(0, max(rows, 1), batch_size):  # an empty shard is one batch without rows
            yield shard, start, min(start + batch_size, rows)
