"""The rows of one shard: their type, how keys are stored, and every rule they must keep, each as one named function.

The same rules stand before writing, at each read and in `verify`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dlth.tickets.errors import shown
from dlth.tickets.format.layout import HASH_BYTES, Layout


@dataclass(frozen=True, slots=True, eq=False)
class ShardTickets:
    """The tickets of one shard, rows in the order of its samples.

    `keys` one per row; `images` uint8 [rows, 16], xxh3_128 of the encoded image; `patches` unsigned [rows, ranked],
    best first; `gap` float32 [rows], score of the k-th patch minus that of the next (inf when nothing was cut);
    `skipped` bool [rows], images that could not be read: their patches are the fill value and their gap is NaN.
    """

    keys: tuple[str, ...]
    images: NDArray[np.uint8]
    patches: NDArray[np.integer]
    gap: NDArray[np.float32]
    skipped: NDArray[np.bool_]

    @property
    def num_rows(self) -> int:
        """Rows of the shard, skipped ones among them."""
        return len(self.keys)


class StoredRows(Protocol):
    """What the rows of one shard have in every kind of file; each as `ShardTickets` says."""

    @property
    def keys(self) -> tuple[str, ...]:
        """One per row."""

    @property
    def images(self) -> NDArray[np.uint8]:
        """Content hashes [rows, 16]."""

    @property
    def skipped(self) -> NDArray[np.bool_]:
        """[rows]: images that could not be read."""


@dataclass(frozen=True, slots=True, eq=False)
class Rankings:
    """The tickets of some keys, in their order.

    `patches` unsigned [keys, ranked], best first, the fill value throughout where there is no ticket; `row` int64
    [keys], the row number in the file, -1 where the key does not stand in it; `skipped` bool [keys]: it stands there
    without a ticket, as the image could not be read.
    """

    patches: NDArray[np.integer]
    row: NDArray[np.int64]
    skipped: NDArray[np.bool_]

    @property
    def found(self) -> NDArray[np.bool_]:
        """Bool [keys]: has a ticket."""
        return (self.row >= 0) & ~self.skipped


class RuleError(ValueError):
    """A rule is broken; the caller turns it into InputError (writing) or DamageError (reading), naming the place."""


def check_shapes(tickets: ShardTickets, num_rows: int, ranked: int) -> None:
    """Every array has one entry per row, of the right type."""
    check_identities(tickets.keys, tickets.images, tickets.skipped, num_rows)
    check_array("patches", tickets.patches, (num_rows, ranked), "iu")
    check_array("gap", tickets.gap, (num_rows,), "f")


def check_identities(keys: Sequence[str], images: NDArray[Any], skipped: NDArray[Any], num_rows: int) -> None:
    """What every kind of file has of its rows: keys, image hashes, and which were skipped."""
    if len(keys) != num_rows:
        raise RuleError(f"{len(keys)} keys were given for {num_rows} rows")
    check_array("images", images, (num_rows, HASH_BYTES), "u")
    if images.dtype.itemsize != 1:
        raise RuleError(f"'images' has the wrong type {images.dtype}")
    check_array("skipped", skipped, (num_rows,), "b")


def check_array(name: str, values: NDArray[Any], shape: tuple[int, ...], kinds: str) -> None:
    """Raises RuleError, naming the array, unless it has this shape and a type of these kinds (numpy's letters)."""
    if values.shape != shape:
        raise RuleError(f"'{name}' must have shape {list(shape)}, got {list(values.shape)}")
    if values.dtype.kind not in kinds:
        raise RuleError(f"'{name}' has the wrong type {values.dtype}")


def check_patches(patches: NDArray[np.integer], num_patches: int) -> None:
    """Each row [ranked] names patches of the grid, none twice."""
    rows, ranked = patches.shape
    if rows == 0:
        return
    low, high = int(patches.min()), int(patches.max())
    if low < 0 or high >= num_patches:
        row = int(np.argmax(((patches < 0) | (patches >= num_patches)).any(axis=1)))
        raise RuleError(f"row {row} names a patch outside 0 … {num_patches - 1} (found {low if low < 0 else high})")
    index_type = np.int32 if rows * num_patches < 2**31 else np.int64
    starts = np.arange(0, rows * num_patches, num_patches, dtype=index_type)
    seen = np.zeros(rows * num_patches, dtype=bool)
    seen[(patches + starts[:, None]).ravel()] = True
    if np.count_nonzero(seen) != rows * ranked:  # a row that names a patch twice marks fewer than `ranked`
        counts = seen.reshape(rows, num_patches).sum(axis=1)
        raise RuleError(f"row {int(np.argmax(counts != ranked))} names a patch twice")


def check_gap(gap: NDArray[np.floating], skipped: NDArray[np.bool_]) -> None:
    """Gaps are at least 0 (inf when nothing was cut), and NaN exactly on skipped rows."""
    wrong = (np.isnan(gap) != skipped) | (gap < 0)
    if wrong.any():
        row = int(np.argmax(wrong))
        raise RuleError(f"row {row} has the gap {gap[row]}: it is at least 0, or NaN on a skipped row alone")


def encoded_keys(keys: Sequence[str], key_width: int) -> NDArray[np.uint8]:
    """Keys as uint8 [rows, key_width], NUL-padded; RuleError for an empty, too long, repeated or unstorable one."""
    raws: list[bytes] = []
    for row, key in enumerate(keys):
        try:
            raws.append(key.encode("utf-8"))
        except UnicodeEncodeError as error:
            raise RuleError(f"the key '{shown(key)}' of row {row} is not valid Unicode") from error
        if not 1 <= len(raws[-1]) <= key_width or b"\0" in raws[-1]:
            raise RuleError(f"the key '{shown(key)}' of row {row} must be 1 to {key_width} bytes without NUL")
    _check_unique(keys)
    return np.array(raws, dtype=f"S{key_width}").view(np.uint8).reshape(len(keys), key_width)


def decoded_keys(matrix: NDArray[np.uint8]) -> tuple[str, ...]:
    """The inverse of `encoded_keys`; raises RuleError for what it could not have written."""
    filled = matrix != 0
    lengths = np.logical_and.accumulate(filled, axis=1).sum(axis=1)
    if (lengths != filled.sum(axis=1)).any() or (lengths == 0).any():
        raise RuleError("a key is empty or has bytes after its end")
    try:
        raws = np.ascontiguousarray(matrix).view(f"S{matrix.shape[1]}").ravel().tolist()
        keys = tuple(raw.decode("utf-8") for raw in raws)
    except UnicodeDecodeError as error:
        raise RuleError("a key is not valid UTF-8") from error
    _check_unique(keys)
    return keys


def _check_unique(keys: Sequence[str]) -> None:
    if len(set(keys)) != len(keys):
        first: dict[str, int] = {}
        row, key = next((row, key) for row, key in enumerate(keys) if first.setdefault(key, row) != row)
        raise RuleError(f"the key '{shown(key)}' stands in rows {first[key]} and {row}")


def check_tickets(tickets: ShardTickets, num_rows: int, layout: Layout) -> None:
    """All rules of one shard's rows but those of keys (`encoded_keys` has them); raises RuleError naming the row.

    Patches and gaps of skipped rows may be anything: the writer fills them.
    """
    check_shapes(tickets, num_rows, layout.ranked)
    check_patches(tickets.patches[~tickets.skipped], layout.num_patches)
    check_gap(np.where(tickets.skipped, np.nan, tickets.gap), tickets.skipped)
