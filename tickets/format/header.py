"""The header: everything a reader must know to use a ticket file, and nothing about the machine that made it.

`created` is empty unless the user gives a text: the same run must give the same bytes.
"""

import math
from dataclasses import dataclass, field
from typing import Any

from dlth.tickets.errors import MismatchError, shown
from dlth.tickets.format.fields import (
    MAX_ITEMS,
    MAX_SIDE,
    MAX_TEXT,
    VERSION,
    StoredHeader,
    check_rate,
    check_sha256,
    check_side,
    check_version,
    differences,
    require,
)
from dlth.tickets.ranking.grid import Grid
from dlth.tickets.ranking.view import View

__all__ = [
    "FORMAT",
    "FORMS",
    "LOST_BY_FORM",
    "MAX_ITEMS",
    "MAX_SIDE",
    "MAX_TEXT",
    "VERSION",
    "DatasetInfo",
    "Preprocessing",
    "SelectorInfo",
    "TicketHeader",
    "ViewSpec",
    "check_version",
    "differences",
]

FORMAT = "dlth-tickets"
LOST_BY_FORM = {
    "full": (),
    "top": ("keeps above its own", "projection to crops and other views"),
    "mask": ("any keep but its own", "projection to crops and other views", "the order of patches"),
}
"""What a ticket file of each form cannot give, in words for a person."""
FORMS = tuple(LOST_BY_FORM)


@dataclass(frozen=True)
class ViewSpec:
    """The frame in which the selector saw every image: how a decoded image became `height` x `width` pixels.

    kind 'whole': resized to the size, shape not kept; 'center': timm's evaluation crop (resize so that the size is
    `crop_pct` of it, cut the centre). `crop_pct` is decimal text.
    """

    kind: str
    height: int
    width: int
    crop_pct: str = "1"
    interpolation: str = "bicubic"
    antialias: bool = True

    def __post_init__(self) -> None:
        require(self.kind in ("whole", "center"), "kind", f"must be 'whole' or 'center', got {shown(self.kind)}")
        check_side(self.height, "height")
        check_side(self.width, "width")
        check_rate(self.crop_pct, "crop_pct")

    def resized(self, image_height: int, image_width: int) -> tuple[int, int]:
        """(height, width) in pixels to which an image of the given size is resized before any cropping."""
        if self.kind == "whole":
            return self.height, self.width
        scale = float(self.crop_pct)
        target = math.floor(self.height / scale), math.floor(self.width / scale)
        if target[0] == target[1]:  # torchvision's Resize of the shorter side
            short, long = sorted((image_height, image_width))
            other = int(target[0] * long / short)
            return (other, target[0]) if image_width <= image_height else (target[0], other)
        ratio = min(image_height / target[0], image_width / target[1])  # timm's ResizeKeepRatio
        return round(image_height / ratio), round(image_width / ratio)

    def crop(self, image_height: int, image_width: int) -> tuple[int, int]:
        """(top, left) in pixels of the view within the resized image."""
        height, width = self.resized(image_height, image_width)
        return round((height - self.height) / 2.0), round((width - self.width) / 2.0)

    def view_of(self, image_height: int, image_width: int, grid: Grid) -> View:
        """The view of an image of the given size in pixels."""
        if self.kind == "whole":
            return View.whole(grid)
        height, width = self.resized(image_height, image_width)
        top, left = self.crop(image_height, image_width)
        return View.from_box(
            left / width, top / height, (left + self.width) / width, (top + self.height) / height, grid
        )


@dataclass(frozen=True)
class Preprocessing:
    """What was done to pixels: channel mean and standard deviation (of values in [0, 1]), decoder, colour, EXIF."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    decoder: str
    exif: str = "ignored"
    color: str = "RGB"

    def __post_init__(self) -> None:
        require(1 <= len(self.mean) == len(self.std) <= 16, "mean", "must be as long as std, from 1 to 16 numbers")
        require(all(value > 0 for value in self.std), "std", "must be above 0")


@dataclass(frozen=True)
class SelectorInfo:
    """The model that ranked the patches and how: weights by digest, selection blocks from 0, head pooling."""

    model: str
    weights_sha256: str
    weights_source: str
    blocks: tuple[int, ...]
    heads: str = "mean"
    fuse_tokens: bool = False
    score_dtype: str = "float32"
    block_dtype: str = "float32"

    def __post_init__(self) -> None:
        check_sha256(self.weights_sha256, "weights_sha256")
        ordered = all(low < high for low, high in zip((-1, *self.blocks), self.blocks, strict=False))
        require(ordered and self.blocks[-1:] < (10_000,), "blocks", "must ascend from 0")


@dataclass(frozen=True)
class DatasetInfo:
    """The images: name, split, number of samples, and sha256 over the sorted keys."""

    name: str
    split: str
    count: int
    fingerprint: str

    def __post_init__(self) -> None:
        require(0 <= self.count <= 10**12, "count", f"must be from 0 to 10^12, got {self.count}")
        check_sha256(self.fingerprint, "fingerprint")


@dataclass(frozen=True)
class TicketHeader(StoredHeader):
    """The header of a ticket file; raises SchemaError, naming the field, when made with values that cannot be.

    form 'full': all patches ranked, 'top': the k best alone, 'mask': the k best as a set without order. `keep` and
    `stage_keep` are decimal text, `stage_tokens` the tokens kept at each selection stage. `extensions` is the only
    place for fields this version does not know.
    """

    kind = FORMAT
    attribute = "dlth_tickets"

    form: str
    grid: Grid
    patch_size: int
    k: int
    keep: str
    stage_keep: str
    stage_tokens: tuple[int, ...]
    view: ViewSpec
    preprocessing: Preprocessing
    selector: SelectorInfo
    dataset: DatasetInfo
    versions: dict[str, str] = field(default_factory=dict)
    creator: str = ""
    license: str = ""
    created: str = ""
    extensions: dict[str, Any] = field(default_factory=dict)
    format: str = FORMAT
    version: str = VERSION

    def __post_init__(self) -> None:
        self.check_common()
        require(self.form in FORMS, "form", f"must be one of {', '.join(FORMS)}, got '{shown(self.form)}'")
        check_side(self.patch_size, "patch_size")
        patches = self.grid.num_patches
        require(1 <= self.k <= patches, "k", f"must be from 1 to {patches} (the patches of the grid), got {self.k}")
        check_rate(self.keep, "keep")
        check_rate(self.stage_keep, "stage_keep")
        tokens = self.stage_tokens
        require(len(tokens) == len(self.selector.blocks), "stage_tokens", "must be one number per selection block")
        require(all(1 <= count <= 2 * patches for count in tokens), "stage_tokens", "must be from 1 to the patches")

    @property
    def ranked(self) -> int:
        """Patches stored per row: all of the grid in form 'full', k in the other forms."""
        return self.grid.num_patches if self.form == "full" else self.k

    @property
    def lost(self) -> tuple[str, ...]:
        """What the file's form cannot give, in words for a person."""
        return LOST_BY_FORM[self.form]

    def serves(self, k: int) -> bool:
        """Whether the file can say which k patches of every image are the best."""
        return k == self.k if self.form == "mask" else 1 <= k <= self.ranked

    def check_serves(self, k: int) -> None:
        """Raises MismatchError, naming the form, unless the file `serves` k patches."""
        if self.form == "mask" and k != self.k:
            raise MismatchError(
                f"the file is of form 'mask': it keeps a set of {self.k} patches (keep {self.keep}) without order, so "
                f"it cannot say which {k} are best; use the file that it was made from"
            )
        if not self.serves(k):
            raise MismatchError(
                f"the file is of form '{self.form}' and holds the {self.ranked} best patches (keep {self.keep}), "
                f"asked for {k}"
            )
