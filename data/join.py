"""The join: which row of a ticket file belongs to which image, settled once, before the first step.

By position first (the same shards in the same order: a comparison of keys shard by shard), then by key, then by content
hash of the encoded image, which finds an image in any packing but has to read it. A sample of content hashes is
compared in any case. Keys that are running numbers (``000123``) mean nothing outside their own packing: they are
believed only if the sample's bytes agree. Where the bytes agree, the loader goes on comparing every image that it
reads. Rejected: joining while streaming, where a missing ticket is found after hours; a dict of a million keys.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from dlth.data.identity import content_hashes, spread_over_shards
from dlth.data.index import ShardIndex
from dlth.data.matching import (
    NO_TICKET,
    READ_AT_ONCE,
    ContentIndex,
    Progress,
    Rows,
    match_by_key,
    match_by_position,
)
from dlth.tickets.errors import InputError, MismatchError, MissingTicketError, shown
from dlth.tickets.grid import Grid
from dlth.tickets.header import TicketHeader
from dlth.tickets.pairing import is_running_number
from dlth.tickets.store import TicketStore

__all__ = ["BAD_IMAGE", "MISSING", "NO_TICKET", "Coverage", "Join", "Missing", "check_compatible", "join"]

Missing = Literal["error", "dense", "random", "skip"]
MISSING: tuple[Missing, ...] = ("error", "dense", "random", "skip")
BAD_IMAGE = -2

_SAMPLE_ROWS = 8
_EXAMPLES = 10


@dataclass(frozen=True)
class Coverage:
    """How a data set and a ticket file met; `str()` is the report that a user sees before the first step.

    Counts are images: `by_position`, `by_key` and `by_content` have a ticket, `bad` could not be read in stage 1,
    `missing` have no row. `identical`: the sampled images' bytes are those the tickets were made from. `examples`: the
    first missing keys.
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
    "dense": "trained on all patches",
    "random": "trained on random patches",
    "skip": "left out",
}


@dataclass(frozen=True, eq=False)
class Join:
    """Where each image's ticket lies: `ticket_row` int64 [images] by id, shard index · store.max_rows + row.

    NO_TICKET (-1) where there is none, BAD_IMAGE (-2) where stage 1 could not read the image.
    """

    store: TicketStore
    ticket_row: Rows
    coverage: Coverage

    @property
    def removed(self) -> NDArray[np.bool_]:
        """Bool [images]: left out of the order, by every arm: bad images, and with 'skip' those without a ticket."""
        return self.ticket_row <= (NO_TICKET if self.coverage.policy == "skip" else BAD_IMAGE)


def check_compatible(
    header: TicketHeader, *, grid: Grid, k: int | None = None, moved: bool = True, dataset: str = "", split: str = ""
) -> None:
    """Refuse tickets that cannot serve, before any image is read; all reasons at once, both sides shown.

    `grid`: the model's; `k`: most patches asked for; `moved`: whether tickets will be projected to other views;
    `dataset` and `split`: what the images are called, compared where both sides say. Raises MismatchError.
    """
    theirs = header.dataset
    wrong = []
    if header.grid != grid:
        wrong.append(f"grid: the file has {header.grid} patches, the model {grid}")
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
    by_position = int((rows >= 0).sum())
    match_by_key(index, store, rows)
    by_key = int((rows >= 0).sum()) - by_position
    identical = _bytes_agree(index, store, rows)
    if not identical and _running_numbers(index):
        rows[:] = NO_TICKET
        by_position = by_key = 0
    by_content = _by_content(index, store, rows, progress)
    identical = identical or (by_content > 0 and by_position + by_key == 0)
    if not (rows >= 0).any():
        raise MismatchError(_nothing_matches(index, store))
    lost = np.flatnonzero(rows == NO_TICKET)
    rows[np.isin(rows, _bad_rows(store))] = BAD_IMAGE
    coverage = Coverage(
        num_images=index.num_samples,
        num_rows=store.num_rows,
        by_position=by_position,
        by_key=by_key,
        by_content=by_content,
        bad=int((rows == BAD_IMAGE).sum()),
        missing=len(lost),
        identical=identical,
        policy=missing,
        examples=tuple(index.key(int(i)) for i in lost[:_EXAMPLES]),
    )
    if missing == "error" and len(lost):
        raise MissingTicketError(
            f"{coverage}\ngive --missing dense, random or skip, or run dlth select on these shards"
        )
    return Join(store, rows, coverage)


def _bytes_agree(index: ShardIndex, store: TicketStore, rows: Rows) -> bool:
    """Whether most of a sample of matched images, from a few shards, have the bytes that the tickets were made from."""
    sample = spread_over_shards(index, np.flatnonzero(rows >= 0), _SAMPLE_ROWS)
    if not len(sample):
        return False
    agreed = [
        np.array_equal(found, store.images(int(row) // store.max_rows)[int(row) % store.max_rows])
        for found, row in zip(content_hashes(index, sample), rows[sample], strict=True)
    ]
    return bool(2 * sum(agreed) > len(agreed))


def _running_numbers(index: ShardIndex) -> bool:
    return all(is_running_number(key) for place in range(len(index.shards)) for key in index.keys(place))


def _by_content(index: ShardIndex, store: TicketStore, rows: Rows, progress: Progress | None) -> int:
    """Fill in rows by the hash of the image bytes; returns how many. Reads nothing if the file has no rows to spare."""
    left = np.flatnonzero(rows == NO_TICKET)
    if not len(left) or len(np.unique(rows[rows >= 0])) >= store.num_rows:
        return 0
    contents = ContentIndex(store)
    for start in range(0, len(left), READ_AT_ONCE):
        ids = left[start : start + READ_AT_ONCE]
        rows[ids] = contents.find(content_hashes(index, ids))
        if progress:
            progress(min(start + READ_AT_ONCE, len(left)), len(left))
    return int((rows[left] >= 0).sum())


def _bad_rows(store: TicketStore) -> Rows:
    """Rows of images that stage 1 could not read."""
    parts: Sequence[Rows] = [
        place * store.max_rows + np.flatnonzero(store.skipped(place))
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
