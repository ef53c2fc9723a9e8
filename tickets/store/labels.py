"""Labels of a ticket file's rows. The file holds none: whoever has the images brings them along."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from dlth.tickets.errors import InputError
from dlth.tickets.store.ticket_store import TicketStore

NO_LABEL = -1
MAX_CLASSES = 100_000

Labels = NDArray[np.int64] | Callable[[int], NDArray[np.int64]]
"""Int64 [rows of the file], shards in order, or a function from a shard's index to int64 [rows]; -1 is 'unknown'."""


class RowLabels:
    """Labels shard by shard, checked."""

    def __init__(self, labels: Labels, store: TicketStore) -> None:
        self._labels = labels
        self._shards = store.shards
        self._starts = np.cumsum([0, *(shard.rows for shard in store.shards)])
        if not callable(labels) and np.shape(labels) != (store.num_rows,):
            raise InputError(f"one label a row is needed, {store.num_rows} in all, got {list(np.shape(labels))}")

    def of(self, shard_index: int) -> NDArray[np.int64]:
        """Int64 [rows] of one shard; raises InputError for labels below -1 or from MAX_CLASSES on."""
        start, stop = self._starts[shard_index : shard_index + 2]
        labels = np.asarray(self._labels(shard_index) if callable(self._labels) else self._labels[start:stop])
        if labels.shape != (stop - start,) or labels.dtype.kind not in "iu":
            raise InputError(
                f"shard {self._shards[shard_index].name} needs {stop - start} whole numbers as labels, "
                f"got {labels.dtype} {list(labels.shape)}"
            )
        if labels.size and (labels.min() < NO_LABEL or labels.max() >= MAX_CLASSES):
            raise InputError(f"labels must be from {NO_LABEL} (none) to {MAX_CLASSES - 1}, got up to {labels.max()}")
        return labels.astype(np.int64)
