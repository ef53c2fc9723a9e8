"""The header of a token label file: which classes an annotator sees in which cell of an image, and how it looked.

A kind of its own rather than a ticket header with empty fields: neither patches kept nor selection blocks mean
anything here. What both need to find their images (view, preprocessing, data set) is declared once, in `header.py`.
"""

from dataclasses import dataclass, field
from typing import Any

from dlth.tickets.format.fields import VERSION, StoredHeader, check_sha256, check_side, require
from dlth.tickets.format.header import DatasetInfo, Preprocessing, ViewSpec
from dlth.tickets.ranking.grid import Grid

MAX_CLASSES = 65_535
"""Two bytes a class, of which the last value is fill."""
MAX_CELLS = 1 << 20
NUM_BEST = 5
"""Classes stored of each cell unless said otherwise: those of the maps that LV-ViT's authors published."""


@dataclass(frozen=True)
class AnnotatorInfo:
    """The model that scored the cells: weights by digest, and where they came from; `imported` where maps came."""

    model: str
    weights_sha256: str
    weights_source: str
    dtype: str = "float32"

    def __post_init__(self) -> None:
        check_sha256(self.weights_sha256, "weights_sha256")


@dataclass(frozen=True)
class LabelHeader(StoredHeader):
    """The header of a token label file; raises SchemaError, naming the field, when made with values that cannot be.

    `grid` of the cells of the view; `num_best`: classes stored of each cell, of `num_classes`. `extensions` is the only
    place for fields this version does not know.
    """

    kind = "dlth-token-labels"
    attribute = "dlth_token_labels"

    grid: Grid
    num_best: int
    num_classes: int
    view: ViewSpec
    preprocessing: Preprocessing
    annotator: AnnotatorInfo
    dataset: DatasetInfo
    versions: dict[str, str] = field(default_factory=dict)
    creator: str = ""
    license: str = ""
    created: str = ""
    extensions: dict[str, Any] = field(default_factory=dict)
    format: str = kind
    version: str = VERSION

    def __post_init__(self) -> None:
        self.check_common()
        check_side(self.grid.rows, "grid.rows")
        check_side(self.grid.cols, "grid.cols")
        cells = self.grid.num_patches
        require(cells <= MAX_CELLS, "grid", f"must have at most {MAX_CELLS} cells, got {cells}")
        classes = self.num_classes
        require(2 <= classes <= MAX_CLASSES, "num_classes", f"must be from 2 to {MAX_CLASSES}, got {classes}")
        require(1 <= self.num_best <= classes, "num_best", f"must be from 1 to {classes} classes, got {self.num_best}")
