"""The join: which row of a ticket file belongs to which image, settled once, before the first step.

By position first (the same shards in the same order: a comparison of keys shard by shard), then by key, then by content
hash of the encoded image, which finds an image in any packing but has to read it. A sample of content hashes is
compared in any case, of lettered keys and of running numbers (``000123``) apart. Numbers mean nothing outside their own
packing (`tickets/pairing.py` has the rule), so each shard's are believed only if the sample of that shard agrees to an
image; a shard that is not believed is matched by content. Remote shards are not all fetched for that: while those
looked at agree, the others are believed too. Where the bytes agree, the loader goes on comparing every image that it
reads, so a wrong ticket never trains. Rejected: joining while streaming, where a missing ticket is found after hours; a
dict of a million keys.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from dlth.data.identity import SAMPLE_SHARDS, content_hashes, spread, spread_over_shards
from dlth.data.index import ShardIndex
from dlth.data.matching import (
    NO_TICKET,
    READ_AT_ONCE,
    ContentIndex,
    Rows,
    compared,
    match_by_key,
    match_by_position,
    numbered_images,
)
from dlth.data.remote import is_remote
from dlth.tickets.errors import InputError, MismatchError, MissingTicketError, shown
from dlth.tickets.grid import Grid
from dlth.tickets.header import TicketHeader
from dlth.tickets.progress import Progress
from dlth.tickets.store import TicketStore

__all__ = ["BAD_IMAGE", "MISSING", "NO_TICKET", "Coverage", "Join", "Missing", "check_compatible", "join"]

Missing = Literal["error", "dense", "random", "skip"]
MISSING: tuple[Missing, ...] = ("error", "dense", "random", "skip")
BAD_IMAGE = -2

_SAMPLE_ROWS = 8  # of a shard, for lettered keys
_NUMBERED_ROWS = 4  # of a shard, for running numbers: 5,000 images where there are 1,282 shards
_EXAMPLES = 10


@dataclass(frozen=True)
class Coverage:
    """How a data set and a ticket file met; `str()` is the report that a user sees before the first step.

    Counts are images: `by_position`, `by_key` and `by_content` have a ticket, `bad` could not be read in stage 1,
    `missing` have no row. `identical`: as far as was seen, all bytes are those the tickets were made from. `examples`:
    the first missing keys.
    """

    num_images: int
    num_rows: int
    by_position: int
    by_key: int
    by_content: int
    bad: int
    missing: int
    identical: bool
    policy: Missing
    examples: tuple[str, ...]

    def __str__(self) -> str:
        found = self.by_position + self.by_key + self.by_content
        how = ((self.by_position, "position"), (self.by_key, "key"), (self.by_content, "content"))
        ways = ", ".join(f"{count:,} by {way}" for count, way in how if count)
        lines = [
            f"tickets for {found - self.bad:,} of {self.num_images:,} images ({ways or 'none matched'}); "
            f"the file has {self.num_rows:,} rows"
        ]
        if self.bad:
            lines.append(f"{self.bad:,} bad images were skipped when the tickets were made, and are left out here too")
        if self.missing:
            rest = self.missing - len(self.examples)
            listed = ", ".join(shown(key, 60) for key in self.examples) + (f" and {rest:,} more" if rest > 0 else "")
            lines.append(f"{self.missing:,} images without a ticket ({_POLICY[self.policy]}): {listed}")
        if found and not self.identical:
            lines.append(
                "the images' bytes are not those the tickets were made from (re-encoded?): matched by key alone"
            )
        return "\n".join(lines)


_POLICY = {
    "error": "an error",
    "dense": "shown whole",
    "random": "shown on random patches",
    "skip": "left out",
}


@dataclass(frozen=True, eq=False)
class Join:
    """Where each image's ticket lies: `ticket_row` int64 [images] by id, the row number in the file.

    NO_TICKET (-1) where there is none, BAD_IMAGE (-2) where stage 1 could not read the image. `identical` bool
    [images]: has the bytes that its ticket was made from, as far as was seen; the loader compares them when it reads.
    """

    store: TicketStore
    ticket_row: Rows
    identical: NDArray[np.bool_]
    coverage: Coverage

    @functools.cached_property
    def removed(self) -> NDArray[np.bool_]:
        """Bool [images]: left out of the order, by every arm: with 'skip', those without a ticket."""
        without: NDArray[np.bool_] = self.ticket_row == NO_TICKET
        return without & (self.coverage.policy == "skip")

    @functools.cached_property  # asked for at each batch
    def bad(self) -> NDArray[np.bool_]:
        """Bool [images]: could not be read when the tickets were made; they stay in the order, and count nothing."""
        unreadable: NDArray[np.bool_] = self.ticket_row == BAD_IMAGE
        return unreadable


def check_compatible(
    header: TicketHeader,
    *,
    grid: Grid,
    k: int | None = None,
    moved: bool = True,
    dataset: str = "",
    split: str = "",
    patch_size: int = 0,
) -> None:
    """Refuse tickets that cannot serve, before any image is read; all reasons at once, both sides shown.

    `grid`: the model's; `k`: most patches asked for; `moved`: whether tickets will be projected to other views;
    `dataset` and `split`: what the images are called, compared where both sides say; `patch_size`: the model's, in
    pixels, to say which image size would fit. Raises MismatchError.
    """
    theirs = header.dataset
    wrong = []
    if header.grid != grid:
        square = header.grid.rows == header.grid.cols
        fits = f" (--img-size {header.grid.rows * patch_size} would fit)" if patch_size and square else ""
        wrong.append(f"grid: the file has {header.grid} patches, the model {grid}{fits}")
    if k is not None and not header.serves(k):
        held = f"a set of {header.k} without order" if header.form == "mask" else f"the {header.ranked} best patches"
        wrong.append(f"keep: the file holds {held} (keep {header.keep}), asked for {k}")
    if moved and header.form != "full":
        lost = ", ".join(header.lost)
        wrong.append(f"form: the file is '{header.form}' and cannot give {lost}; moving tickets to crops needs 'full'")
    for name, ours, other in (("dataset", dataset, theirs.name), ("split", split, theirs.split)):
        if ours and other and ours != other:
            wrong.append(f"{name}: the file is for {shown(other)!r}, the images are {shown(ours)!r}")
    if wrong:
        raise MismatchError("these tickets do not fit:\n  " + "\n  ".join(wrong))


def join(index: ShardIndex, store: TicketStore, missing: Missing = "error", progress: Progress | None = None) -> Join:
    """Find every image's ticket.

    `missing`: what the caller will do with images without one; 'error' refuses here. `progress(done, total)` counts the
    images read for their content hash. Raises MismatchError when no image matches (another data set, or running numbers
    that only look alike), MissingTicketError with `missing='error'`.
    """
    if missing not in MISSING:
        raise InputError(f"missing must be one of {', '.join(MISSING)}, got {shown(missing)!r}")
    rows = match_by_position(index, store)
    positioned = rows >= 0
    match_by_key(index, store, rows)
    identical = _believed(index, store, rows)
    named = rows >= 0
    identical |= _by_content(index, store, rows, progress)
    if not (rows >= 0).any():
        raise MismatchError(_nothing_matches(index, store))
    found, lost = rows >= 0, np.flatnonzero(rows == NO_TICKET)
    rows[np.isin(rows, _bad_rows(store))] = BAD_IMAGE
    coverage = Coverage(
        num_images=index.num_samples,
        num_rows=store.num_rows,
        by_position=int((named & positioned).sum()),
        by_key=int((named & ~positioned).sum()),
        by_content=int((found & ~named).sum()),
        bad=int((rows == BAD_IMAGE).sum()),
        missing=len(lost),
        identical=bool(identical[found].all()),
        policy=missing,
        examples=tuple(index.key(int(i)) for i in lost[:_EXAMPLES]),
    )
    if missing == "error" and len(lost):
        raise MissingTicketError(
            f"{coverage}\ngive --missing dense, random or skip, or run dlth select on these shards"
        )
    return Join(store, rows, identical, coverage)


def _believed(index: ShardIndex, store: TicketStore, rows: Rows) -> NDArray[np.bool_]:
    """Bool [images]: found by a name, with the bytes of its ticket, as far as a sample says.

    Takes back the rows of running numbers that are not believed.
    """
    numbered = numbered_images(index)
    identical = np.zeros(len(rows), dtype=bool)
    lettered = np.flatnonzero((rows >= 0) & ~numbered)
    same = _same_bytes(index, store, rows, spread_over_shards(index, lettered, _SAMPLE_ROWS))
    identical[lettered] = len(same) > 0 and 2 * same.sum() > len(same)
    numbers = np.flatnonzero((rows >= 0) & numbered)
    shard = np.searchsorted(index.row_start, numbers, side="right") - 1
    wrong = np.isin(shard, _shards_of_other_images(index, store, rows, numbers, shard))
    rows[numbers[wrong]] = NO_TICKET
    identical[numbers[~wrong]] = True
    return identical


def _shards_of_other_images(index: ShardIndex, store: TicketStore, rows: Rows, numbers: Rows, shard: Rows) -> list[int]:
    """Shards of which a sampled running number has other bytes; `numbers` int64 [n] are images, `shard` theirs."""
    starts = np.flatnonzero(np.diff(shard, prepend=-1))
    images = dict(zip(shard[starts].tolist(), np.split(numbers, starts[1:]), strict=True)) if len(starts) else {}
    first = spread(np.array(list(images), dtype=np.int64), SAMPLE_SHARDS).tolist()
    wrong: list[int] = []
    for place in [*first, *(place for place in images if place not in first)]:
        if place not in first and not wrong and is_remote(index.shards[place].url):
            continue  # the remote ones that were looked at agree: do not fetch them all
        if not _same_bytes(index, store, rows, spread(images[place], _NUMBERED_ROWS)).all():
            wrong.append(place)
    return wrong


def _same_bytes(index: ShardIndex, store: TicketStore, rows: Rows, ids: Rows) -> NDArray[np.bool_]:
    """Bool [ids]: whether each image has the bytes that its ticket was made from; reads them."""
    return compared(store, rows[ids], content_hashes(index, ids))[0]


def _by_content(index: ShardIndex, store: TicketStore, rows: Rows, progress: Progress | None) -> NDArray[np.bool_]:
    """Fill in rows by the hash of the image bytes; bool [images], which. Reads nothing if the file has no rows left."""
    left = np.flatnonzero(rows == NO_TICKET)
    if len(left) and len(np.unique(rows[rows >= 0])) < store.num_rows:
        contents = ContentIndex(store)
        for start in range(0, len(left), READ_AT_ONCE):
            ids = left[start : start + READ_AT_ONCE]
            rows[ids] = contents.find(content_hashes(index, ids))
            if progress:
                progress(min(start + READ_AT_ONCE, len(left)), len(left))
    filled = np.zeros(len(rows), dtype=bool)
    filled[left] = rows[left] >= 0
    return filled


def _bad_rows(store: TicketStore) -> Rows:
    """Rows of images that stage 1 could not read."""
    parts: Sequence[Rows] = [
        store.row_number(place, np.flatnonzero(store.skipped(place)))
        for place, shard in enumerate(store.shards)
        if shard.skipped
    ]
    return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)


def _nothing_matches(index: ShardIndex, store: TicketStore) -> str:
    theirs = store.header.dataset
    ours = ", ".join(shown(key, 40) for key in index.keys(0)[:3])
    stored = ", ".join(shown(key, 40) for key in store.keys(0)[:3])
    return (
        "no image has a ticket in this file, by position, key or content: it was made for other images\n"
        f"  the file: {shown(theirs.name) or 'unnamed'} {shown(theirs.split)}, {theirs.count:,} images, "
        f"keys such as {stored}\n"
        f"  the images: {shown(index.name)}, {index.num_samples:,} images, keys such as {ours}"
    )
