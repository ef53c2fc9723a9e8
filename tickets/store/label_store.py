"""An open token label file: what its annotator saw in each cell of an image, beside what every kind of file has."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dlth.tickets.format.label_header import LabelHeader
from dlth.tickets.format.label_rows import NO_CLASS, LabelLayout, ShardLabels, check_cells
from dlth.tickets.format.rows import RuleError
from dlth.tickets.store.stored_file import StoredFile


class CellLabels(NamedTuple):
    """`classes` uint16 and `scores` float16, both [rows, best, grid rows, grid columns]: best first.

    Where a row has no labels, its classes are NO_CLASS and its scores NaN.
    """

    classes: NDArray[np.uint16]
    scores: NDArray[np.float16]


class LabelStore(StoredFile):
    """A finished token label file, open for reading; what every file has, and its errors, as `StoredShards` says."""

    HEADER = LabelHeader
    NOUN = "token label"
    COMMAND = "dlth label"
    header: LabelHeader
    layout: LabelLayout

    def read(self, shard_index: int) -> ShardLabels:
        """All rows of one shard; arrays are read-only. Raises DamageError naming shard and file."""
        labels, skipped = self._labels(shard_index)
        return ShardLabels(self.keys(shard_index), self.image_hashes(shard_index), *labels, skipped)

    def labels(self, shard_index: int) -> CellLabels:
        """The labels of one shard's rows. Reads two chunks."""
        return self._labels(shard_index)[0]

    def skipped(self, shard_index: int) -> NDArray[np.bool_]:
        """Bool [rows]: images that could not be read when the labels were made. From the same chunks as `labels`."""
        return self._labels(shard_index)[1]

    def labels_at(self, numbers: NDArray[np.int64]) -> CellLabels:
        """The labels of the rows with these numbers; none below 0."""
        shape = (len(numbers), *self.layout.classes.chunk[1:])
        labels = CellLabels(np.full(shape, NO_CLASS, np.uint16), np.full(shape, np.nan, np.float16))
        for shard_index, at, rows in self.by_shard(numbers):
            stored = self.labels(shard_index)
            labels.classes[at], labels.scores[at] = stored.classes[rows], stored.scores[rows]
        return labels

    @property
    def content_reads(self) -> tuple[Callable[[int], object], ...]:
        """Classes and scores, which are checked together."""
        return (self.labels,)

    def _layout(self, key_width: int) -> LabelLayout:
        return LabelLayout.of(self.header, len(self.shards), self.max_rows, key_width)

    def _labels(self, shard_index: int) -> tuple[CellLabels, NDArray[np.bool_]]:
        """Labels and skipped rows of one shard, every value checked."""

        def load() -> tuple[CellLabels, NDArray[np.bool_]]:
            classes = self._rows(self.layout.classes, shard_index)
            scores = self._rows(self.layout.scores, shard_index)
            skipped: NDArray[np.bool_] = (classes == NO_CLASS).all(axis=(1, 2, 3))
            check_cells(classes, scores, skipped, self.header.num_classes)
            if not np.isnan(scores[skipped]).all():
                raise RuleError("a row without classes has a score")
            if int(skipped.sum()) != self.shards[shard_index].skipped:
                listed = self.shards[shard_index].skipped
                raise RuleError(f"{skipped.sum()} rows are skipped, the manifest says {listed}")
            skipped.flags.writeable = False
            return CellLabels(classes, scores), skipped

        return self._cached("classes", shard_index, load)
