"""Rows from outside (another lab's rankings or masks) as a draft of an ordinary ticket file.

A table says how many rows it has and hands out ranges of them; what they must be is checked by the writer's own rules,
as for every other row. Masks say which patches are kept and not in which order, so they become a file of form 'mask';
all images must keep the same number, as in every ticket file. What the table does not
say stays unknown and is marked so: content hashes of zeros, gaps of infinity, no weights of a selector.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dlth.tickets.derive.draft import Draft, cut_to, unscored
from dlth.tickets.errors import InputError, shown
from dlth.tickets.format.header import DatasetInfo, Preprocessing, TicketHeader, ViewSpec
from dlth.tickets.format.layout import HASH_BYTES, MAX_KEY_BYTES
from dlth.tickets.format.manifest import ShardSpec
from dlth.tickets.format.rows import ShardTickets
from dlth.tickets.ranking.grid import Grid

SHARD_ROWS = 1_000
"""Rows of a shard where the table has no shards of its own."""


@dataclass(frozen=True, eq=False)
class ForeignRows:
    """Some rows of a table: `ranking` integers [rows, ranked] best first or bool [rows, patches]; the rest may lack."""

    keys: tuple[str, ...]
    ranking: NDArray[Any]
    images: NDArray[Any] | None
    gap: NDArray[Any] | None
    skipped: NDArray[Any] | None


class Table(Protocol):
    """Rows from outside. `kind` is 'patches' or 'masks', `width` the entries of a row's ranking, `digest` the sha256
    of the file; `header` and `shards` where the file has them (it was exported by dlth).
    """

    name: str
    kind: str
    num_rows: int
    width: int
    digest: str
    header: TicketHeader | None
    shards: tuple[ShardSpec, ...] | None

    def read(self, start: int, stop: int) -> ForeignRows:
        """Rows [start, stop)."""
        ...

    def keys(self, start: int, stop: int) -> tuple[str, ...]:
        """The keys of rows [start, stop)."""
        ...


@dataclass(frozen=True)
class ImportOptions:
    """What a user says about rows from outside; what is None or empty is taken from the file where it says so.

    `grid` and `patch_size` (pixels) give the view's size; `view` is 'whole' or 'center' (with `crop_pct`); `k` the
    patches a ticket keeps, at least 1.

    Raises InputError for numbers that cannot be, and for a crop's share where nothing is cropped.
    """

    grid: Grid | None = None
    patch_size: int | None = None
    k: int | None = None
    view: str | None = None
    crop_pct: str = "1"
    selector: str = ""
    dataset: str = ""
    split: str = ""
    creator: str = ""
    license: str = ""

    def __post_init__(self) -> None:
        for name, value in (("patch size", self.patch_size), ("number of patches kept", self.k)):
            if value is not None and value < 1:
                raise InputError(f"the {name} is at least 1, got {value}")
        if self.crop_pct != "1" and self.view != "center":
            raise InputError(f"a crop's share ({shown(self.crop_pct)}) belongs to the center view alone: --view center")


def import_draft(table: Table, options: ImportOptions, shard_rows: int = SHARD_ROWS) -> Draft:
    """The draft of a ticket file with the table's rows, in its shards or in shards of `shard_rows`.

    Raises InputError for what is missing or does not fit; rows are checked while the draft is written, errors naming
    shard and row.
    """
    if table.num_rows < 1:
        raise InputError(f"{table.name} has no rows")
    if shard_rows < 1:
        raise InputError(f"a shard has at least 1 row, got {shard_rows}")
    header = _header(table, options)
    shards = table.shards or _cut(table.num_rows, shard_rows)
    starts = np.cumsum([0, *(shard.rows for shard in shards)])
    key_width = max(
        max((len(key.encode("utf-8", "surrogatepass")) for key in table.keys(int(start), int(stop))), default=1)
        for start, stop in pairwise(starts)
    )
    if key_width > MAX_KEY_BYTES:
        raise InputError(f"{table.name} has a key of {key_width} bytes, the bound is {MAX_KEY_BYTES}")

    def rows(shard_index: int) -> ShardTickets:
        start, stop = int(starts[shard_index]), int(starts[shard_index + 1])
        return _checked(table.read(start, stop), table, header, start)

    return Draft(header, shards, key_width, rows)


def decode_keys(keys: Sequence[Any], first_row: int, name: str) -> tuple[str, ...]:
    """Keys given as text or UTF-8 bytes; raises InputError naming the row."""
    result = []
    for row, key in enumerate(keys, first_row):
        try:
            result.append(key.decode("utf-8") if isinstance(key, bytes) else str(key))
        except UnicodeDecodeError as error:
            raise InputError(f"{name}: the key of row {row} is not UTF-8") from error
    return tuple(result)


def _header(table: Table, options: ImportOptions) -> TicketHeader:
    """What the user says goes before what the file's own header says; what neither says is marked as unknown."""
    old = table.header
    grid, patch_size = _said("grid", table, options), _said("patch_size", table, options)
    if not grid or not patch_size:
        raise InputError(f"{table.name} does not say its grid and patch size: give both (--grid 14x14 --patch-size 16)")
    if table.width > grid.num_patches or (table.kind == "masks" and table.width != grid.num_patches):
        raise InputError(f"{table.name}: rows of {table.width} entries do not fit a grid of {grid}")
    k = _kept(table, options)
    ranked = k if table.kind == "masks" else table.width
    cut = cut_to(k, grid.num_patches, ranked)
    if table.kind == "masks" or (old is not None and old.form == "mask"):
        cut["form"] = "mask"
    cut["selector"] = unscored(options.selector or (old.selector.model if old else "unknown"), "imported")
    source = {"operation": "import", "file_sha256": table.digest}
    dataset = DatasetInfo(options.dataset, options.split, table.num_rows, "")
    if old is not None and not (options.dataset or options.split):
        dataset = replace(old.dataset, count=table.num_rows)
    fields: dict[str, Any] = {
        "grid": grid,
        "patch_size": patch_size,
        "view": _view(old, options, grid.rows * patch_size, grid.cols * patch_size),
        "dataset": dataset,
        "creator": _said("creator", table, options),
        "license": _said("license", table, options),
        "extensions": {**(old.extensions if old else {}), "derived": source},
    }
    if old is None:
        unknown = Preprocessing((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), "unknown")
        return TicketHeader(preprocessing=unknown, **fields, **cut)
    same = (old.grid, old.patch_size, old.k, old.ranked) == (grid, patch_size, k, ranked) and not options.selector
    return replace(old, **fields, **({} if same else cut))


def _said(name: str, table: Table, options: ImportOptions) -> Any:
    """A field of the header as the user gives it, else as the file's own header has it; empty where neither does."""
    return getattr(options, name) or getattr(table.header, name, "")


def _view(old: TicketHeader | None, options: ImportOptions, height: int, width: int) -> ViewSpec:
    if old is None:
        return ViewSpec(options.view or "whole", height, width, options.crop_pct)
    if options.view is None and options.grid is None and options.patch_size is None:
        return old.view
    crop_pct = options.crop_pct if options.view == "center" else old.view.crop_pct
    return ViewSpec(options.view or old.view.kind, height, width, crop_pct)


def _kept(table: Table, options: ImportOptions) -> int:
    """How many patches a ticket keeps."""
    if table.kind == "masks":
        rows = table.read(0, min(table.num_rows, SHARD_ROWS))
        counts = rows.ranking.sum(axis=1)
        good = counts if rows.skipped is None else counts[~rows.skipped]
        k = int(good[0]) if len(good) else 0
        if options.k not in (None, k):
            raise InputError(f"{table.name}: the masks keep {k} patches, asked for {options.k}")
        return k
    if k := _said("k", table, options):
        return int(k)
    if options.grid is not None and table.width < options.grid.num_patches:
        return table.width
    raise InputError(f"{table.name} ranks all patches: say how many a ticket keeps (--keep or --tokens)")


def _checked(rows: ForeignRows, table: Table, header: TicketHeader, start: int) -> ShardTickets:
    count = len(rows.keys)
    skipped = np.zeros(count, dtype=bool) if rows.skipped is None else rows.skipped
    gap = np.full(count, np.inf, np.float32) if rows.gap is None else rows.gap.astype(np.float32)
    images = np.zeros((count, HASH_BYTES), np.uint8) if rows.images is None else rows.images
    ranking = rows.ranking[:, : header.ranked] if table.kind == "patches" else rows.ranking
    if table.kind == "masks":
        ranking = _from_masks(ranking, skipped, header.k, table.name, start)
    return ShardTickets(rows.keys, images, ranking, gap, skipped)


def _from_masks(masks: NDArray[Any], skipped: NDArray[Any], k: int, name: str, start: int) -> NDArray[np.int64]:
    """Int64 [rows, k]: the kept patches of masks bool [rows, patches], by number."""
    counts = masks.sum(axis=1)
    wrong = np.flatnonzero((counts != k) & ~skipped)
    if len(wrong):
        raise InputError(
            f"{shown(name)}: the mask of row {start + int(wrong[0])} keeps {int(counts[wrong[0]])} patches, the others "
            f"{k}; every ticket of a file keeps the same number"
        )
    patches = np.zeros((len(masks), k), dtype=np.int64)
    patches[~skipped] = np.nonzero(masks[~skipped])[1].reshape(-1, k)
    return patches


def _cut(num_rows: int, shard_rows: int) -> tuple[ShardSpec, ...]:
    counts = [min(shard_rows, num_rows - start) for start in range(0, num_rows, shard_rows)]
    return tuple(ShardSpec(f"rows-{index:06d}", count) for index, count in enumerate(counts))
