"""Writing a token label file; how any file is written stands in `shard_writer.py`."""

from pathlib import Path

import numpy as np

from dlth.tickets.format.label_header import LabelHeader
from dlth.tickets.format.label_rows import NO_CLASS, LabelLayout, ShardLabels, check_labels
from dlth.tickets.format.layout import Array, ArraySpec
from dlth.tickets.store.label_store import LabelStore
from dlth.tickets.store.shard_writer import ShardWriter


class LabelWriter(ShardWriter[LabelHeader, ShardLabels]):
    """Writes a token label file, shard by shard: see `ShardWriter`."""

    HEADER = LabelHeader
    NOUN = "token label"
    layout: LabelLayout

    def _layout(self, max_rows: int, key_width: int) -> LabelLayout:
        return LabelLayout.of(self.header, len(self.shards), max_rows, key_width)

    def _open(self, path: Path) -> LabelStore:
        return LabelStore(path)

    def _content(self, rows: ShardLabels, num_rows: int) -> list[tuple[ArraySpec, Array]]:
        check_labels(rows, num_rows, self.layout, self.header.num_classes)
        without = rows.skipped[:, None, None, None]
        classes = np.where(without, NO_CLASS, rows.classes).astype(np.uint16)
        scores = np.where(without, np.float16(np.nan), rows.scores).astype(np.float16)
        return [(self.layout.classes, classes), (self.layout.scores, scores)]
