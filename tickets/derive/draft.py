"""Ticket files made from ticket files: a draft says what will be written, and its header says what it was made from.

Every operation (merge, subset, union, a control …) is a function that checks its parents and returns a `Draft`; one
method writes any of them, shard by shard, through the ordinary `TicketWriter`. So a derived file is an ordinary ticket
file, a killed command goes on where it was, and a dry run is a draft that nobody writes.

What a file was made from stands under `extensions.derived` of its header: operation, its settings, and each parent's
identity and selector. Version 1 of the format allows new fields there alone.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from dlth.tickets.callbacks import Progress
from dlth.tickets.errors import InputError, MismatchError, shown
from dlth.tickets.format.header import SelectorInfo, TicketHeader, differences
from dlth.tickets.format.jsontext import Json
from dlth.tickets.format.manifest import ShardSpec
from dlth.tickets.format.provenance import RANKER, ranker_of
from dlth.tickets.format.rows import ShardTickets
from dlth.tickets.ranking.budget import Budget
from dlth.tickets.store.ticket_store import TicketStore
from dlth.tickets.store.writer import TicketWriter

MAX_PARENTS = 64
_FRAME = ("grid", "patch_size", "view")


@dataclass(frozen=True)
class Draft:
    """A ticket file that is not written yet: `rows(shard_index)` gives the rows of one of its `shards`."""

    header: TicketHeader
    shards: tuple[ShardSpec, ...]
    key_width: int
    rows: Callable[[int], ShardTickets]

    @property
    def num_rows(self) -> int:
        """Rows of all shards."""
        return sum(shard.rows for shard in self.shards)

    def write(self, path: str | os.PathLike[str], progress: Progress | None = None) -> TicketStore:
        """Write what is missing of `path` and open it; nothing that stands there is overwritten.

        Raises MismatchError or InputError when something else stands at `path`, LockedError when another process is
        writing it, SpaceError.
        """
        writer = TicketWriter(path, self.header, self.shards, self.key_width)
        writer.fill(self.rows, progress)
        return TicketStore(path)


def made_header(
    parents: Sequence[TicketStore], operation: str, details: dict[str, Json] | None = None, **changes: Any
) -> TicketHeader:
    """The first parent's header with `changes`, and with operation, `details` and parents on record.

    Creator, licence, versions and other extensions stay where all parents agree. Raises InputError above MAX_PARENTS
    parents.
    """
    if not 1 <= len(parents) <= MAX_PARENTS:
        raise InputError(f"{operation} takes from 1 to {MAX_PARENTS} ticket files, got {len(parents)}")
    first = parents[0].header
    headers = [parent.header for parent in parents]
    agreed = {
        name: getattr(first, name) if all(getattr(header, name) == getattr(first, name) for header in headers) else ""
        for name in ("creator", "license", "created")
    }
    record: dict[str, Json] = {
        "operation": operation,
        **(details or {}),
        "parents": [parent_record(parent) for parent in parents],
    }
    versions = _shared([header.versions for header in headers])
    extensions = _shared([header.extensions for header in headers]) | {"derived": record}
    return replace(first, **{**agreed, "versions": versions, "extensions": extensions, **changes})


def _shared(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What all records say alike."""
    return {name: value for name, value in records[0].items() if all(one.get(name) == value for one in records)}


def parent_record(store: TicketStore) -> dict[str, Json]:
    """What a derived file remembers of a parent."""
    header = store.header
    record: dict[str, Json] = {
        "identity": store.identity,
        "selector": header.selector.model,
        "weights_sha256": header.selector.weights_sha256,
        "k": header.k,
    }
    if RANKER in header.extensions:
        record["ranker"] = ranker_of(header)
    derived = header.extensions.get("derived")
    if isinstance(derived, dict) and isinstance(derived.get("operation"), str):
        record["operation"] = derived["operation"]
    return record


def unscored(name: str, source: str = "") -> SelectorInfo:
    """The selector of tickets that no model's scores ordered."""
    return SelectorInfo(name, "", source, (), heads="none", score_dtype="none", block_dtype="none")


def cut_to(k: int, num_patches: int, ranked: int) -> dict[str, Any]:
    """Header fields of a file without selection stages: `ranked` patches a row, the ticket the first k; InputError."""
    if k > ranked:
        raise InputError(f"{k} patches were asked for, the rows hold {ranked}")
    budget = Budget.from_tokens(k, num_patches, 1)
    form = "full" if ranked == num_patches else "top"
    return {"form": form, "k": k, "keep": budget.keep, "stage_keep": budget.stage_keep, "stage_tokens": ()}


def check_same_frame(stores: Sequence[TicketStore]) -> None:
    """Raises MismatchError, showing both sides, unless all files' tickets lie in one grid and view."""
    first = stores[0]
    for other in stores[1:]:
        here, there = first.header, other.header
        if any(getattr(here, name) != getattr(there, name) for name in _FRAME):
            differing = [text for text in differences(here, there) if text.split(":")[0].split(".")[0] in _FRAME]
            raise MismatchError(
                f"{shown(first.path.name)} and {shown(other.path.name)} lie in different frames, so their patches are "
                "not the same places:\n  " + "\n  ".join(differing)
            )


def specs(store: TicketStore) -> tuple[ShardSpec, ...]:
    """A file's shards as a draft names them."""
    return tuple(ShardSpec(shard.name, shard.rows) for shard in store.shards)
