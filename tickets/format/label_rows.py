"""The rows of one shard of token labels: their arrays, and every rule they must keep.

The same rules stand before writing, at each read and in `verify`.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dlth.tickets.format.label_header import LabelHeader
from dlth.tickets.format.layout import ArraySpec, StoredLayout
from dlth.tickets.format.rows import RuleError, check_array, check_identities

NO_CLASS = 65_535


@dataclass(frozen=True, slots=True, eq=False)
class ShardLabels:
    """The token labels of one shard, rows in the order of its samples.

    `keys` one per row; `images` uint8 [rows, 16], xxh3_128 of the encoded image; `classes` unsigned and `scores`
    float16, both [rows, best, grid rows, grid columns]: the best classes of each cell and their raw scores, best first;
    `skipped` bool [rows], images that could not be read: what their cells hold counts nothing.
    """

    keys: tuple[str, ...]
    images: NDArray[np.uint8]
    classes: NDArray[np.integer]
    scores: NDArray[np.float16]
    skipped: NDArray[np.bool_]

    @property
    def num_rows(self) -> int:
        """Rows of the shard, skipped ones among them."""
        return len(self.keys)


@dataclass(frozen=True, slots=True)
class LabelLayout(StoredLayout):
    """The arrays of one token label file."""

    num_best: int
    grid_rows: int
    grid_cols: int

    @classmethod
    def of(cls, header: LabelHeader, num_shards: int, max_rows: int, key_width: int) -> "LabelLayout":
        """The layout that a header and the sizes of its shards ask for."""
        return cls(num_shards, max_rows, key_width, header.num_best, header.grid.rows, header.grid.cols)

    @property
    def classes(self) -> ArraySpec:
        """The best classes of each cell."""
        return self._cells("classes", "uint16", NO_CLASS)

    @property
    def scores(self) -> ArraySpec:
        """Their scores, before any softmax."""
        return self._cells("scores", "float16", float("nan"))

    @property
    def arrays(self) -> tuple[ArraySpec, ...]:
        """All arrays, in the order in which a shard is written."""
        return self.classes, self.scores, self.keys, self.images

    def _cells(self, name: str, dtype: str, fill: int | float) -> ArraySpec:
        chunk = (self.max_rows, self.num_best, self.grid_rows, self.grid_cols)
        return ArraySpec(name, dtype, chunk, ("row", "rank", "grid_row", "grid_col"), fill)


def check_labels(labels: ShardLabels, num_rows: int, layout: LabelLayout, num_classes: int) -> None:
    """All rules of one shard's rows but those of keys; raises RuleError naming the row. Skipped rows may hold
    anything: the writer fills them.
    """
    check_identities(labels.keys, labels.images, labels.skipped, num_rows)
    shape = (num_rows, *layout.classes.chunk[1:])
    for name, kinds in (("classes", "iu"), ("scores", "f")):
        check_array(name, getattr(labels, name), shape, kinds)
    check_cells(labels.classes, labels.scores, labels.skipped, num_classes)


def check_cells(
    classes: NDArray[np.integer], scores: NDArray[np.floating], skipped: NDArray[np.bool_], num_classes: int
) -> None:
    """Of rows that are not skipped, each cell names classes of the head, none twice, by finite scores, best first."""
    ordered = np.sort(classes, axis=1)
    wrong = {
        f"names a class outside 0 … {num_classes - 1}": (ordered[:, :1] < 0) | (ordered[:, -1:] >= num_classes),
        "names a class twice in one cell": ordered[:, 1:] == ordered[:, :-1],
        "has a score that is no finite float16": ~np.isfinite(scores.astype(np.float16)),
        "has scores that do not fall": scores[:, 1:] > scores[:, :-1],
    }
    for what, cells in wrong.items():
        rows = cells.any(axis=(1, 2, 3)) & ~skipped
        if rows.any():
            raise RuleError(f"row {int(np.argmax(rows))} {what}")
