"""The join: which row of a ticket file belongs to which image, settled once, before the first step.

By position first, then by key, then by content hash of the encoded image, which finds an image in any packing but has
to read it. A sample of content hashes is compared in any case, of lettered keys and of running numbers (``000123``)
apart (`dlth.tickets.store.matching` has the rule): each shard's numbers are believed only if the sample of that shard
agrees to an image; a shard that is not believed is matched by content. Remote shards are not all fetched for that:
while those looked at agree, the others are believed too. Where the bytes agree, the loader goes on comparing every
image that it reads, so a wrong ticket never trains. Rejected: joining while streaming, where a missing ticket is found
after hours.
"""

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

import numpy as np

from dlth.data.joining.matcher import Matcher
from dlth.data.remote.addresses import is_remote
from dlth.data.shards.identity import SAMPLE_SHARDS, by_shard, content_hashes, spread, spread_over_shards
from dlth.data.shards.index import ShardIndex
from dlth.tickets.callbacks import Progress
from dlth.tickets.errors import InputError, MismatchError, MissingTicketError, shown
from dlth.tickets.format.header import DatasetInfo, TicketHeader
from dlth.tickets.ranking.grid import Grid
from dlth.tickets.store.matching import NO_TICKET, Flags, Rows, same_bytes, stored_hashes
from dlth.tickets.store.stored_file import StoredFile
from dlth.tickets.store.ticket_store import TicketStore

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
    noun: str = "ticket"

    def __str__(self) -> str:
        matched = self.by_position + self.by_key + self.by_content
        how = ((self.by_position, "position"), (self.by_key, "key"), (self.by_content, "content"))
        ways = ", ".join(f"{count:,} by {way}" for count, way in how if count)
        lines = [
            f"{self.noun}s for {matched - self.bad:,} of {self.num_images:,} images ({ways or 'none matched'}); "
            f"the file has {self.num_rows:,} rows"
        ]
        if self.bad:
            lines.append(f"{self.bad:,} bad images were skipped when the {self.noun}s were made, and {_BAD[self.noun]}")
        if self.missing:
            rest = self.missing - len(self.examples)
            listed = ", ".join(shown(key, 60) for key in self.examples) + (f" and {rest:,} more" if rest > 0 else "")
            lines.append(f"{self.missing:,} images without a {self.noun} ({_POLICY[self.policy]}): {listed}")
        if matched and not self.identical:
            lines.append(
                f"the images' bytes are not those the {self.noun}s were made from (re-encoded?): matched by key alone"
            )
        return "\n".join(lines)


_POLICY = {"error": "an error", "dense": "shown whole", "random": "shown on random patches", "skip": "left out"}

_BAD = {"ticket": "are left out here too", "token label": "have their own label in every patch, if they can be read"}

Store = TypeVar("Store", bound=StoredFile)


@dataclass(frozen=True, eq=False)
class Join(Generic[Store]):
    """Where each image's ticket lies, or its token labels: `ticket_row` int64 [images] by id, the row in the file.

    NO_TICKET (-1) where there is none, BAD_IMAGE (-2) where stage 1 could not read the image. `identical` bool
    [images]: has the bytes that its ticket was made from, as far as was seen; the loader compares them when it reads.
    """

    store: Store
    ticket_row: Rows
    identical: Flags
    coverage: Coverage

    @functools.cached_property
    def removed(self) -> Flags:
        """Bool [images]: left out of the order, by every arm: with 'skip', those without a ticket."""
        without: Flags = self.ticket_row == NO_TICKET
        return without & (self.coverage.policy == "skip")

    @functools.cached_property  # asked for at each batch
    def bad(self) -> Flags:
        """Bool [images]: could not be read when the tickets were made; they stay in the order, and count nothing."""
        unreadable: Flags = self.ticket_row == BAD_IMAGE
        return unreadable


def check_compatible(
    header: TicketHeader,
    *,
    grid: Grid,
    k: int | None = None,
    moved: bool = True,
    dataset: str = "",
    split: str = "",
) -> None:
    """Refuse tickets that cannot serve, before any image is read; all reasons at once, both sides shown.

    `grid`: the model's, to which tickets of another are projected; `k`: most patches asked for; `moved`: whether
    tickets will be projected to other views; `dataset` and `split`: what the images are called, compared where both
    sides say. Raises MismatchError.
    """
    theirs = header.dataset
    wrong = []
    if header.grid != grid:
        if header.form != "full":
            wrong.append(f"grid: the file has {header.grid} patches, the model {grid}")
        moved = True
    elif k is not None and not header.serves(k):
        held = f"a set of {header.k} without order" if header.form == "mask" else f"the {header.ranked} best patches"
        wrong.append(f"keep: the file holds {held} (keep {header.keep}), asked for {k}")
    if moved and header.form != "full":
        lost = ", ".join(header.lost)
        wrong.append(
            f"form: the file is '{header.form}' and cannot give {lost}; moving tickets to crops or to other grids"
            " needs 'full'"
        )
    for name, ours, other in (("dataset", dataset, theirs.name), ("split", split, theirs.split)):
        if ours and other and ours != other:
            wrong.append(f"{name}: the file is for {shown(other)!r}, the images are {shown(ours)!r}")
    if wrong:
        raise MismatchError("these tickets do not fit:\n  " + "\n  ".join(wrong))


def join(index: ShardIndex, store: Store, missing: Missing = "error", progress: Progress | None = None) -> Join[Store]:
    """Find every image's ticket, or token labels.

    `missing`: what the caller will do with images without one; 'error' refuses here. `progress(done, total)` counts the
    images read for their content hash. Raises MismatchError when no image matches (another data set, or running numbers
    that only look alike), MissingTicketError with `missing='error'`.
    """
    if missing not in MISSING:
        raise InputError(f"missing must be one of {', '.join(MISSING)}, got {shown(missing)!r}")
    matcher = Matcher(index, store, progress)
    identical = _believed(matcher)
    matcher.by_content()
    rows, by_content = matcher.rows, matcher.found("content")
    identical |= by_content
    lost = np.flatnonzero(rows == NO_TICKET)
    if len(lost) == len(rows):
        raise MismatchError(_nothing_matches(index, store))
    rows[store.skipped_at(rows)] = BAD_IMAGE
    coverage = Coverage(
        num_images=index.num_samples,
        num_rows=store.num_rows,
        by_position=int(matcher.found("position").sum()),
        by_key=int(matcher.found("key").sum()),
        by_content=int(by_content.sum()),
        bad=int((rows == BAD_IMAGE).sum()),
        missing=len(lost),
        identical=bool((identical | (rows == NO_TICKET)).all()),
        policy=missing,
        examples=tuple(index.key(int(i)) for i in lost[:_EXAMPLES]),
        noun=store.NOUN,
    )
    if missing == "error" and len(lost):
        others = "give --missing dense, random or skip, or " if isinstance(store, TicketStore) else ""
        raise MissingTicketError(f"{coverage}\n{others}run {store.COMMAND} on these shards")
    return Join(store, rows, identical, coverage)


def _believed(matcher: Matcher) -> Flags:
    """Bool [images]: found by a name, with the bytes of its ticket, as far as a sample says.

    Takes back the rows of running numbers that are not believed.
    """
    index, named = matcher.index, matcher.rows >= 0
    lettered, numbers = (np.flatnonzero(named & kind) for kind in (~matcher.numbered, matcher.numbered))
    same = _same_bytes(matcher, spread_over_shards(index, lettered, _SAMPLE_ROWS))
    identical: Flags = named & (matcher.numbered | (2 * same.sum() > len(same)))
    for others in _of_other_images(matcher, by_shard(index, numbers)):
        matcher.take_back(others)
        identical[others] = False
    return identical


def _of_other_images(matcher: Matcher, numbers: dict[int, Rows]) -> Iterator[Rows]:
    """The images of each shard of which a sampled running number has other bytes; `numbers`: images by shard."""
    first = spread(np.array(list(numbers)), SAMPLE_SHARDS).tolist()
    doubt = False
    for shard in [*first, *(other for other in numbers if other not in first)]:
        if shard not in first and not doubt and is_remote(matcher.index.shards[shard].url):
            continue  # the remote ones that were looked at agree: do not fetch them all
        if not _same_bytes(matcher, spread(numbers[shard], _NUMBERED_ROWS)).all():
            doubt = True
            yield numbers[shard]


def _same_bytes(matcher: Matcher, ids: Rows) -> Flags:
    """Bool [ids]: whether each image has the bytes that its ticket was made from; reads them."""
    return same_bytes(content_hashes(matcher.index, ids), stored_hashes(matcher.store, matcher.rows[ids]))


def _nothing_matches(index: ShardIndex, store: StoredFile) -> str:
    theirs: DatasetInfo = store.header.dataset
    ours = ", ".join(shown(key, 40) for key in index.keys(0)[:3])
    stored = ", ".join(shown(key, 40) for key in store.keys(0)[:3])
    return (
        f"no image has a {store.NOUN} in this file, by position, key or content: it was made for other images\n"
        f"  the file: {shown(theirs.name) or 'unnamed'} {shown(theirs.split)}, {theirs.count:,} images, "
        f"keys such as {stored}\n"
        f"  the images: {shown(index.name)}, {index.num_samples:,} images, keys such as {ours}"
    )
