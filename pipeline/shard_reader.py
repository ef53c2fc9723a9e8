"""Stage 1's reading side: shards in order, each cut into batches that never cross a shard's edge.

Batches depend on the shard and the batch size alone, never on which process or worker reads them: together with
single-threaded arithmetic (see `ranker.py`) that is what makes the same bytes come out of any number of them.
A map-style dataset under torch's DataLoader does the rest: its batch sampler runs in the main process, so it is the
place where shards are claimed, a few batches before their images are needed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dlth.data.decode import BadImageError, content_hash, decode
from dlth.data.index import ShardIndex
from dlth.data.views import render
from dlth.tickets import ViewSpec
from dlth.tickets.errors import shown


@dataclass(frozen=True)
class ShardBatch:
    """Some consecutive rows of one shard, decoded.

    images: uint8 [batch, 3, height, width], black where `good` is false
    hashes: uint8 [batch, 16], content hash of the encoded bytes
    good: bool [batch]
    problems: one text for each bad image
    """

    shard: int
    start: int
    images: Tensor
    hashes: np.ndarray
    good: np.ndarray
    problems: tuple[str, ...]


class ShardRows(Dataset[ShardBatch]):
    """Reads and decodes rows [start, stop) of a shard into the selector's view."""

    def __init__(self, index: ShardIndex, view: ViewSpec, max_pixels: int) -> None:
        self.index, self.view, self.max_pixels = index, view, max_pixels

    def __getitem__(self, request: tuple[int, int, int]) -> ShardBatch:
        shard, start, stop = request
        first = int(self.index.row_start[shard])
        encoded = self.index.read_many(list(range(first + start, first + stop)))
        images = torch.zeros(len(encoded), 3, self.view.height, self.view.width, dtype=torch.uint8)
        problems: list[str] = []
        good = np.ones(len(encoded), dtype=bool)
        for row, data in enumerate(encoded):
            where = f"shard {shown(self.index.shards[shard].name)}, key {shown(self.index.key(first + start + row))}"
            try:
                images[row] = render(decode(data, where=where, max_pixels=self.max_pixels), self.view)
            except BadImageError as error:
                good[row] = False
                problems.append(str(error))
        hashes = np.frombuffer(b"".join(map(content_hash, encoded)), dtype=np.uint8).reshape(-1, 16)
        return ShardBatch(shard, start, images, hashes, good, tuple(problems))


class _Requests:
    """Cuts a stream of shards into requests; iterated in the main process, a few batches ahead."""

    def __init__(self, shards: Iterable[int], rows: list[int], batch_size: int) -> None:
        self.shards, self.rows, self.batch_size = shards, rows, batch_size

    def __iter__(self) -> Iterator[tuple[int, int, int]]:
        for shard in self.shards:
            for start in range(0, self.rows[shard], self.batch_size):
                yield shard, start, min(start + self.batch_size, self.rows[shard])


def read_shards(
    shards: Iterable[int], index: ShardIndex, view: ViewSpec, batch_size: int, workers: int, max_pixels: int
) -> Iterator[ShardBatch]:
    """Decoded batches of the shards, in the order in which `shards` names them."""
    requests = _Requests(shards, [shard.rows for shard in index.shards], batch_size)
    loader = DataLoader(
        ShardRows(index, view, max_pixels),
        batch_size=None,
        sampler=requests,
        num_workers=workers,
        prefetch_factor=4 if workers else None,
    )
    yield from loader
