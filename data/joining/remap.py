"""Whose ticket belongs to which image of another packing: found, counted, and written as that packing's own file.

Labs pack the same images differently: other shards, other order, other keys, sometimes other bytes. Every image whose
key is a running number is read; of the others a sample (all, on request): where the bytes differ, the image was
re-encoded or resized, and the ticket is believed by its name alone.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlth.data.joining.matcher import WAYS, Matcher, Way
from dlth.data.shards.identity import spread
from dlth.data.shards.index import ShardIndex
from dlth.tickets.callbacks import Progress
from dlth.tickets.derive.draft import Draft, made_header
from dlth.tickets.derive.reorder import Reordered
from dlth.tickets.errors import MismatchError, MissingTicketError, shown
from dlth.tickets.format.manifest import ShardSpec
from dlth.tickets.format.rows import ShardTickets
from dlth.tickets.store.matching import NO_TICKET, Flags, Hashes, Rows, believed, same_bytes, stored_hashes
from dlth.tickets.store.ticket_store import TicketStore

_SAMPLE = 1_000
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
    read: Flags
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
    matcher = Matcher(index, store, progress)
    ambiguous = matcher.by_base_name()
    rows, numbered = matcher.rows, matcher.numbered
    matched = rows != NO_TICKET
    wanted = (matched & numbered) | read_all
    wanted[spread(np.flatnonzero(matched & ~numbered), _SAMPLE)] = True
    matcher.read_images(wanted)
    stored = stored_hashes(store, rows)
    same, unknown = same_bytes(matcher.hashes, stored), ~stored.any(axis=1)
    distrusted = matched & ~believed(numbered, matcher.hashes, stored)
    matcher.take_back(distrusted)
    by_name = matched & ~distrusted
    re_encoded = np.flatnonzero(matcher.read & by_name & ~unknown & ~same)
    matcher.by_content()
    return Match(
        num_rows=store.num_rows,
        ticket_row=rows,
        way=matcher.way,
        read=matcher.read,
        hashes=matcher.hashes,
        identical=int((by_name & same).sum()) + int(matcher.found("content").sum()),
        re_encoded=len(re_encoded),
        unknown=int((by_name & unknown).sum()),
        distrusted=int(distrusted.sum()),
        ambiguous=ambiguous,
        examples=tuple(index.key(sample) for sample in re_encoded[:_EXAMPLES].tolist()),
    )


def remap(
    index: ShardIndex, store: TicketStore, allow_missing: bool = False, progress: Progress | None = None
) -> tuple[Draft, Match]:
    """The draft of the ticket file for the packing of `index`: its shards, order, keys and content hashes.

    Reads every image. Images without a row are left out with `allow_missing`, else refused. The header says how many
    images were matched in which way and how many are re-encoded copies; those have the ticket of the original, in the
    original's view. Raises MissingTicketError; MismatchError when nothing matches.
    """
    matched = match(index, store, read_all=True, progress=progress)
    lost = np.flatnonzero(matched.ticket_row == NO_TICKET)
    if not matched.num_matched:
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
    return _draft(index, store, matched), matched


def _draft(index: ShardIndex, store: TicketStore, matched: Match) -> Draft:
    kept = np.flatnonzero(matched.ticket_row != NO_TICKET)
    starts = np.searchsorted(kept, index.row_start)
    shards = tuple(
        ShardSpec(shard.name, int(count)) for shard, count in zip(index.shards, np.diff(starts), strict=True)
    )
    complete = len(kept) == index.num_samples
    details: dict[str, Any] = {
        "matched": {way.replace(" ", "_"): count for way, count in matched.counts.items() if count},
        "re_encoded": matched.re_encoded,
    }
    if matched.re_encoded:
        details["view_of"] = "the originals; re-encoded copies must show the same frame"
    dataset = replace(store.header.dataset, count=len(kept), fingerprint=index.fingerprint if complete else "")
    header = made_header([store], "remap", details, dataset=dataset)
    reordered = Reordered(store, matched.ticket_row[kept])

    def rows(shard_index: int) -> ShardTickets:
        start, stop = starts[shard_index : shard_index + 2].tolist()
        samples = kept[start:stop]
        keys = tuple(map(index.key, samples.tolist()))
        return replace(reordered.rows(start, stop), keys=keys, images=matched.hashes[samples])

    return Draft(header, shards, index.key_width, rows)
