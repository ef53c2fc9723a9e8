"""Whose ticket belongs to which image of another packing: found, counted, and written as that packing's own file.

Labs pack the same images differently: other shards, other order, other keys, sometimes other bytes. In turn:

* position: the same key at the same place of the shard of the same name;
* key: the same key anywhere;
* base name: the same key without folders and extension (`train/n01/x_1.JPEG` is `x_1`), where both sides have it once;
* content: the same encoded bytes, by their xxh3_128, whatever the key.

Keys that are running numbers (`000123`) name an image within one packing only: such a pair counts only if the bytes are
the same. Of the other pairs a sample is read (all, on request): where the bytes differ, the image was re-encoded or
resized, and the ticket is believed by its name alone. Rejected: believing look-alike names, which gives every image
another's ticket and raises no error ever.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dlth.data.identity import content_hashes
from dlth.data.index import ShardIndex
from dlth.data.matching import (
    NO_TICKET,
    READ_AT_ONCE,
    ContentIndex,
    Hashes,
    Rows,
    compared,
    match_by_key,
    match_by_position,
    numbered_images,
)
from dlth.tickets.checks import ShardTickets
from dlth.tickets.derive import Draft, made_header
from dlth.tickets.errors import MismatchError, MissingTicketError, shown
from dlth.tickets.keyindex import key_hashes
from dlth.tickets.manifest import ShardSpec
from dlth.tickets.pairing import base_name
from dlth.tickets.progress import Progress
from dlth.tickets.reorder import Reordered
from dlth.tickets.store import TicketStore

Way = Literal["none", "position", "key", "base name", "content"]
WAYS: tuple[Way, ...] = ("none", "position", "key", "base name", "content")
SAMPLE = 1_000
_EXAMPLES = 10


@dataclass(frozen=True, eq=False)
class Match:
    """How a data set's images meet a ticket file's rows.

    `ticket_row` int64 [images] (see `matching.Rows`) and `way` uint8 [images], a place in WAYS. `hashes` uint8
    [images, 16] of the images whose bytes were read (bool [images] `read`). Counts: `identical` images of those read
    and matched have the bytes the tickets were made from, `re_encoded` have others (`examples` names ten), `unknown`
    have a row without a hash. `distrusted`: running numbers that stand in the file with other bytes; `ambiguous`: base
    names that more than one image or row has.
    """

    num_rows: int
    ticket_row: Rows
    way: NDArray[np.uint8]
    read: NDArray[np.bool_]
    hashes: Hashes
    identical: int
    re_encoded: int
    unknown: int
    distrusted: int
    ambiguous: int
    examples: tuple[str, ...]

    @property
    def counts(self) -> dict[Way, int]:
        """Images by the way in which their ticket was found."""
        return {way: int((self.way == number).sum()) for number, way in enumerate(WAYS)}

    @property
    def num_matched(self) -> int:
        """Images that have a row in the file."""
        return int((self.ticket_row != NO_TICKET).sum())


def match(index: ShardIndex, store: TicketStore, read_all: bool = False, progress: Progress | None = None) -> Match:
    """Find the row of every image; what does not match is counted, and no error.

    Read for their hash are running numbers, images that no name finds (while the file has rows to spare), and of the
    others a sample, or every one with `read_all`. `progress(done, total)` counts the images read.
    """
    rows = match_by_position(index, store)
    way = np.zeros(index.num_samples, dtype=np.uint8)
    _note(way, rows, "position")
    match_by_key(index, store, rows)
    _note(way, rows, "key")
    ambiguous = _match_by_base_name(index, store, rows)
    _note(way, rows, "base name")
    numbered = numbered_images(index)
    reader = _HashReader(index, progress)
    matched = rows != NO_TICKET
    reader.read(np.full(len(rows), True) if read_all else (matched & numbered) | _sample(matched & ~numbered))
    same, unknown = compared(store, rows, reader.hashes)
    distrusted = matched & numbered & ~same
    rows[distrusted], way[distrusted] = NO_TICKET, 0
    _match_by_content(store, rows, reader)
    _note(way, rows, "content")
    by_name = reader.done & matched & ~distrusted & ~unknown
    other = np.flatnonzero(by_name & ~same)
    return Match(
        num_rows=store.num_rows,
        ticket_row=rows,
        way=way,
        read=reader.done,
        hashes=reader.hashes,
        identical=int((by_name & same).sum()) + int((way == WAYS.index("content")).sum()),
        re_encoded=len(other),
        unknown=int((matched & ~distrusted & unknown).sum()),
        distrusted=int(distrusted.sum()),
        ambiguous=ambiguous,
        examples=tuple(index.key(int(sample)) for sample in other[:_EXAMPLES]),
    )


def remap(
    index: ShardIndex,
    store: TicketStore,
    allow_missing: bool = False,
    progress: Progress | None = None,
) -> tuple[Draft, Match]:
    """The draft of the ticket file for the packing of `index`: its shards, order, keys and content hashes.

    Reads every image. Images without a row are left out with `allow_missing`, else refused. The header says how many
    images were matched in which way and how many are re-encoded copies; those have the ticket of the original, in the
    original's view. Raises MissingTicketError; MismatchError when nothing matches.
    """
    found = match(index, store, read_all=True, progress=progress)
    lost = np.flatnonzero(found.ticket_row == NO_TICKET)
    if not found.num_matched:
        raise MismatchError(
            f"no image of {shown(index.name)} has a ticket in {shown(store.path.name)}, by key, base name or content: "
            "it was made for other images"
        )
    if len(lost) and not allow_missing:
        named = ", ".join(shown(index.key(int(sample)), 60) for sample in lost[:_EXAMPLES])
        raise MissingTicketError(
            f"{len(lost)} of {index.num_samples} images have no ticket in {shown(store.path.name)}: {named}; "
            "--allow-missing leaves them out"
        )
    return _draft(index, store, found), found


def _draft(index: ShardIndex, store: TicketStore, found: Match) -> Draft:
    kept = np.flatnonzero(found.ticket_row != NO_TICKET)
    starts = np.searchsorted(kept, index.row_start)
    shards = tuple(
        ShardSpec(shard.name, int(count)) for shard, count in zip(index.shards, np.diff(starts), strict=True)
    )
    complete = len(kept) == index.num_samples
    details: dict[str, Any] = {
        "matched": {way.replace(" ", "_"): count for way, count in found.counts.items() if count},
        "re_encoded": found.re_encoded,
    }
    if found.re_encoded:
        details["view_of"] = "the originals; re-encoded copies must show the same frame"
    dataset = replace(store.header.dataset, count=len(kept), fingerprint=index.fingerprint if complete else "")
    header = made_header([store], "remap", details, dataset=dataset)
    reordered: list[Reordered] = []

    def rows(shard_index: int) -> ShardTickets:
        if not reordered:
            reordered.append(Reordered(store, found.ticket_row[kept]))
        start, stop = int(starts[shard_index]), int(starts[shard_index + 1])
        tickets = reordered[0].rows(start, stop)
        samples = kept[start:stop]
        keys = tuple(index.key(int(sample)) for sample in samples)
        return replace(tickets, keys=keys, images=found.hashes[samples])

    return Draft(header, shards, index.key_width, rows)


class _HashReader:
    """The content hashes of images, read as they are asked for: `hashes` uint8 [images, 16] where `done` is set."""

    def __init__(self, index: ShardIndex, progress: Progress | None) -> None:
        self.index, self.progress = index, progress
        self.done = np.zeros(index.num_samples, dtype=bool)
        self.hashes: Hashes = np.zeros((index.num_samples, 16), dtype=np.uint8)

    def read(self, wanted: NDArray[np.bool_]) -> None:
        """Read the images of `wanted` bool [images] that are not read yet."""
        ids = np.flatnonzero(wanted & ~self.done).astype(np.int64)
        before, total = int(self.done.sum()), int((wanted | self.done).sum())
        for start in range(0, len(ids), READ_AT_ONCE):
            part = ids[start : start + READ_AT_ONCE]
            self.hashes[part] = content_hashes(self.index, part)
            if self.progress is not None:
                self.progress(before + start + len(part), total)
        self.done[ids] = True


def _note(way: NDArray[np.uint8], rows: Rows, name: Way) -> None:
    """Mark the images that were found since the last call."""
    way[(rows != NO_TICKET) & (way == 0)] = WAYS.index(name)


def _sample(matched: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """SAMPLE of the images, evenly spaced."""
    ids = np.flatnonzero(matched)
    chosen = np.zeros(len(matched), dtype=bool)
    if len(ids):
        chosen[ids[np.linspace(0, len(ids) - 1, SAMPLE).astype(np.int64)]] = True
    return chosen


def _match_by_content(store: TicketStore, rows: Rows, reader: _HashReader) -> None:
    """Fill in rows by hash; reads the images that nothing found while the file has rows to spare."""
    left = rows == NO_TICKET
    if left.any() and len(np.unique(rows[~left])) < store.num_rows:
        reader.read(left)
        ids = np.flatnonzero(left)
        rows[ids] = ContentIndex(store).find(reader.hashes[ids])


def _match_by_base_name(index: ShardIndex, store: TicketStore, rows: Rows) -> int:
    """Fill in rows by base name, where image and row have it alone; returns how many images share theirs.

    Rows that an image has already are no longer given.
    """
    left = rows == NO_TICKET
    if not left.any():
        return 0
    ours = np.concatenate([_base_hashes(index.keys(shard)) for shard in range(len(index.shards))])
    theirs = np.concatenate([_base_hashes(store.keys(shard)) for shard in range(len(store.shards))])
    places = np.concatenate(
        [store.row_number(shard, np.arange(entry.rows)) for shard, entry in enumerate(store.shards)]
    )
    known, at, counts = np.unique(theirs, return_index=True, return_counts=True)
    _, own, own_counts = np.unique(ours, return_inverse=True, return_counts=True)
    spot = np.minimum(np.searchsorted(known, ours), len(known) - 1)
    named = left & (known[spot] == ours)
    alone = named & (counts[spot] == 1) & (own_counts[own] == 1) & ~np.isin(places[at[spot]], rows[~left])
    for sample in np.flatnonzero(alone):
        number = int(places[at[spot[sample]]])
        shard, row = store.shard_and_row(number)
        if base_name(store.keys(shard)[row]) == base_name(index.key(int(sample))):  # and not its hash alone
            rows[sample] = number
    return int((named & ~alone).sum())


def _base_hashes(keys: Sequence[str]) -> NDArray[np.uint64]:
    return key_hashes([base_name(key) for key in keys])
