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
from torch.utils.data import Dataset

from dlth.data.decode import BadImageError, decode
from dlth.data.identity import content_hash
from dlth.data.index import ShardIndex
from dlth.data.views import render
from dlth.data.workers import Failure, Queue, make_loader, results
from dlth.tickets import ViewSpec
from dlth.tickets.errors import DlthError, shown


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


class ShardRows(Dataset[ShardBatch | Failure]):
    """Reads and decodes rows [start, stop) of a shard into the selector's view."""

    def __init__(self, index: ShardIndex, view: ViewSpec) -> None:
        self.index, self.view = index, view

    def __getitem__(self, request: tuple[int, int, int]) -> ShardBatch | Failure:
        try:
            return self._read(*request)
        except DlthError as error:
            return Failure(error)

    def _read(self, shard: int, start: int, stop: int) -> ShardBatch:
        first = int(self.index.row_start[shard])
        encoded = self.index.read_many(list(range(first + start, first + stop)))
        images = torch.zeros(len(encoded), 3, self.view.height, self.view.width, dtype=torch.uint8)
        problems: list[str] = []
        good = np.ones(len(encoded), dtype=bool)
        for row, data in enumerate(encoded):
            where = f"shard {shown(self.index.shards[shard].name)}, key {shown(self.index.key(first + start + row))}"
            try:
                images[row] = render(decode(data, where=where), self.view)
            except BadImageError as error:
                good[row] = False
                problems.append(str(error))
        hashes = np.frombuffer(b"".join(map(content_hash, encoded)), dtype=np.uint8).reshape(-1, 16)
        return ShardBatch(shard, start, images, hashes, good, tuple(problems))


def read_shards(
    shards: Iterable[int], index: ShardIndex, view: ViewSpec, batch_size: int, workers: int
) -> Iterator[ShardBatch]:
    """Decoded batches of the shards, in the order in which `shards` names them; they are named a few batches ahead.

    Raises:
        DlthError: a shard that cannot be read, or a reading process that died
    """
    queue = Queue()
    queue.items = _requests(shards, index, batch_size)
    yield from results(make_loader(ShardRows(index, view), queue, workers))


def _requests(shards: Iterable[int], index: ShardIndex, batch_size: int) -> Iterator[tuple[int, int, int]]:
    for shard in shards:
        rows = index.shards[shard].rows
        for start in range(0, rows, batch_size):
            yield shard, start, min(start + batch_size, rows)
