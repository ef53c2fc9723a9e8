"""The header: everything a reader must know to use a ticket file, and nothing about the machine that made it.

Frozen dataclasses that check themselves when made, so an invalid header cannot exist; the same declaration drives
reading, writing and the differences shown to a user. Rejected: pydantic, because a lab that only reads tickets has
numpy and zarr alone. `created` is empty unless the user gives a text: the same run must give the same bytes.
"""

import dataclasses
import math
import re
from dataclasses import dataclass, field
from typing import Any, get_args, get_origin, get_type_hints

from dlth.tickets.errors import DlthError, InputError, MismatchError, SchemaError, shown
from dlth.tickets.format.jsontext import Json, canonical
from dlth.tickets.ranking.grid import Grid
from dlth.tickets.ranking.view import View

FORMAT = "dlth-tickets"
VERSION = "1.0"
LOST_BY_FORM = {
    "full": (),
    "top": ("keeps above its own", "projection to crops and other views"),
    "mask": ("any keep but its own", "projection to crops and other views", "the order of patches"),
}
"""What a ticket file of each form cannot give, in words for a person."""
FORMS = tuple(LOST_BY_FORM)
MAX_TEXT = 1_000
MAX_ITEMS = 64
MAX_SIDE = 65_536

_SHA256 = re.compile(r"(?:[0-9a-f]{64})?")
_RATE = re.compile(r"1(?:\.0*)?|0?\.[0-9]*[1-9][0-9]*")


def _require(ok: bool, name: str, message: str) -> None:
    if not ok:
        raise SchemaError(f"{name}: {message}")


def _sha256_or_empty(value: str, name: str) -> None:
    _require(_SHA256.fullmatch(value) is not None, name, f"must be 64 hexadecimal digits or empty, got {shown(value)}")


def _rate(value: str, name: str) -> None:
    fine = len(value) <= 32 and _RATE.fullmatch(value) is not None
    _require(fine, name, f"must be plain decimal text above 0 and at most 1, got '{shown(value, 60)}'")


def _side(value: int, name: str) -> None:
    _require(1 <= value <= MAX_SIDE, name, f"must be from 1 to {MAX_SIDE}, got {value}")


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
        _require(self.kind in ("whole", "center"), "kind", f"must be 'whole' or 'center', got {shown(self.kind)}")
        _side(self.height, "height")
        _side(self.width, "width")
        _rate(self.crop_pct, "crop_pct")

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
        _require(1 <= len(self.mean) == len(self.std) <= 16, "mean", "must be as long as std, from 1 to 16 numbers")
        _require(all(value > 0 for value in self.std), "std", "must be above 0")


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
        _sha256_or_empty(self.weights_sha256, "weights_sha256")
        ordered = all(low < high for low, high in zip((-1, *self.blocks), self.blocks, strict=False))
        _require(ordered and self.blocks[-1:] < (10_000,), "blocks", "must ascend from 0")


@dataclass(frozen=True)
class DatasetInfo:
    """The images: name, split, number of samples, and sha256 over the sorted keys."""

    name: str
    split: str
    count: int
    fingerprint: str

    def __post_init__(self) -> None:
        _require(0 <= self.count <= 10**12, "count", f"must be from 0 to 10^12, got {self.count}")
        _sha256_or_empty(self.fingerprint, "fingerprint")


@dataclass(frozen=True)
class TicketHeader:
    """The header of a ticket file; raises SchemaError, naming the field, when made with values that cannot be.

    form 'full': all patches ranked, 'top': the k best alone, 'mask': the k best as a set without order. `keep` and
    `stage_keep` are decimal text, `stage_tokens` the tokens kept at each selection stage. `extensions` is the only
    place for fields this version does not know.
    """

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
        _require(self.format == FORMAT, "format", f"must be {FORMAT!r}, got '{shown(self.format)}'")
        check_version(self.version)
        _require(self.form in FORMS, "form", f"must be one of {', '.join(FORMS)}, got '{shown(self.form)}'")
        _side(self.patch_size, "patch_size")
        patches = self.grid.num_patches
        _require(1 <= self.k <= patches, "k", f"must be from 1 to {patches} (the patches of the grid), got {self.k}")
        _rate(self.keep, "keep")
        _rate(self.stage_keep, "stage_keep")
        tokens = self.stage_tokens
        _require(len(tokens) == len(self.selector.blocks), "stage_tokens", "must be one number per selection block")
        _require(all(1 <= count <= 2 * patches for count in tokens), "stage_tokens", "must be from 1 to the patches")
        _values(self.to_json(), "header")

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

    def to_json(self) -> dict[str, Json]:
        """The header as a JSON object; every field is written."""
        result: dict[str, Json] = _plain(self)
        return result

    @classmethod
    def from_json(cls, value: Json) -> "TicketHeader":
        """The header of a JSON object; raises SchemaError naming the path of what is missing, unknown or wrong."""
        if isinstance(value, dict) and isinstance(value.get("version"), str):
            check_version(value["version"])
        header: TicketHeader = _typed(value, cls, "header")
        return header


def check_version(version: str) -> None:
    """Accept every 1.x; raises SchemaError for another major version, saying what to do."""
    match = re.fullmatch(r"([0-9]{1,4})\.([0-9]{1,4})", version)
    _require(match is not None, "version", f"must look like {VERSION}, got '{shown(version)}'")
    if match is not None and match[1] != VERSION.split(".")[0]:
        raise SchemaError(f"version: the file is version {version}, this dlth reads {VERSION[0]}.x; update dlth")


def checked_header(header: TicketHeader) -> TicketHeader:
    """The header that a caller gives; raises InputError for anything else."""
    if not isinstance(header, TicketHeader):
        raise InputError(f"a TicketHeader is needed, found {shown(header)!r}")
    return header


def differences(left: TicketHeader, right: TicketHeader) -> list[str]:
    """Every field that differs, as 'keep: file has 0.7, asked 0.5' (`left` is the file)."""
    ours, theirs = (_flat(checked_header(header).to_json()) for header in (left, right))
    paths = [*ours, *(path for path in theirs if path not in ours)]
    return [
        f"{path}: file has {shown(ours.get(path, 'nothing'), 80)}, asked {shown(theirs.get(path, 'nothing'), 80)}"
        for path in paths
        if ours.get(path) != theirs.get(path)
    ]


def _flat(value: Json, path: str = "") -> dict[str, str]:
    if isinstance(value, dict):
        return {name: text for key, item in value.items() for name, text in _flat(item, f"{path}.{key}").items()}
    return {path[1:]: value if isinstance(value, str) else canonical(value).decode()}


def _plain(value: Any) -> Json:
    if dataclasses.is_dataclass(value):
        return {item.name: _plain(getattr(value, item.name)) for item in dataclasses.fields(value)}
    return list(value) if isinstance(value, tuple) else value


def _typed(value: Json, kind: Any, path: str) -> Any:
    """`value` as `kind` (a dataclass, tuple[item, ...], dict, or plain type), nothing converted but int to float."""
    if dataclasses.is_dataclass(kind):
        return _build(value, kind, path)
    if get_origin(kind) is tuple:
        _require(isinstance(value, list) and len(value) <= MAX_ITEMS, path, f"must be a list of at most {MAX_ITEMS}")
        return tuple(_typed(item, get_args(kind)[0], f"{path}[{index}]") for index, item in enumerate(value))
    if get_origin(kind) is dict:
        _require(isinstance(value, dict), path, "must be an object")
        item_kind = get_args(kind)[1]
        return value if item_kind is Any else {key: _typed(item, str, f"{path}.{key}") for key, item in value.items()}
    if kind is float and type(value) is int:
        return float(value)
    _require(type(value) is kind, path, f"must be {_NAMES[kind]}, got {shown(value, 60)}")
    return value


_NAMES = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}


def _build(value: Json, kind: Any, path: str) -> Any:
    _require(isinstance(value, dict), path, "must be an object")
    hints = get_type_hints(kind)
    unknown, missing = sorted(set(value) - set(hints)), sorted(set(hints) - set(value))
    if unknown:
        names = ", ".join(shown(name, 60) for name in unknown[:5])
        raise SchemaError(f"{path}: unknown field {names}; version {VERSION} allows new fields under 'extensions' only")
    _require(not missing, path, f"field {', '.join(missing[:5])} is missing")
    fields = {name: _typed(value[name], hint, f"{path}.{name}") for name, hint in hints.items()}
    try:
        return kind(**fields)
    except DlthError as error:
        raise SchemaError(f"{path}.{error}") from error


def _values(value: Json, path: str) -> None:
    """Every text is short and encodable, every list short, every number finite."""
    if isinstance(value, dict):
        _require(len(value) <= MAX_ITEMS, path, f"must have at most {MAX_ITEMS} fields")
        for key, item in value.items():
            _values(key, path)
            _values(item, f"{path}.{key}")
    elif isinstance(value, list | tuple):
        _require(len(value) <= MAX_ITEMS, path, f"must have at most {MAX_ITEMS} items")
        for item in value:
            _values(item, path)
    elif isinstance(value, str):
        fine = len(value) <= MAX_TEXT and not any("\ud800" <= char <= "\udfff" for char in value)
        _require(fine, path, f"must be Unicode text of at most {MAX_TEXT} characters")
    elif isinstance(value, float):
        _require(math.isfinite(value), path, "must be a finite number")
    else:
        _require(value is None or type(value) in (int, bool), path, f"cannot hold a {type(value).__name__}")
