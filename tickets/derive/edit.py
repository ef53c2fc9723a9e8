"""Fewer or more rows: shards made by two labs put together, and rows chosen by key or class.

Both keep every ticket as it is. Shards and keys of files that are merged must be different ones: if one file's rows won
over another's, nobody could say whose ticket an image has.
"""

import hashlib
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from dlth.tickets.arguments import listed, whole_number
from dlth.tickets.derive.draft import Draft, made_header
from dlth.tickets.errors import InputError, MismatchError, MissingTicketError, shown
from dlth.tickets.format.header import TicketHeader, differences
from dlth.tickets.format.jsontext import Json
from dlth.tickets.format.manifest import ShardSpec
from dlth.tickets.format.provenance import AVERAGED, RANKER
from dlth.tickets.format.rows import ShardTickets
from dlth.tickets.store.labels import NO_LABEL, Labels, RowLabels
from dlth.tickets.store.ticket_store import TicketStore, open_store, open_stores


def merge(stores: Sequence[TicketStore]) -> Draft:
    """The shards of several files in one, sorted by name as `dlth select` sorts them.

    The headers must agree in everything but the size of the data set, creator, date, library versions and extensions
    other than ranker and views; no shard name and no key may stand in two files. Raises MismatchError naming every
    difference, and the shard or a key that stands twice.
    """
    stores = open_stores(stores)
    if len(stores) < 2:
        raise InputError(f"a merge needs at least two ticket files, got {len(stores)}")
    for other in stores[1:]:
        _check_mergeable(stores[0], other)
    owner: dict[str, tuple[TicketStore, int]] = {}
    for store in stores:
        for shard_index, shard in enumerate(store.shards):
            if shard.name in owner:
                raise MismatchError(
                    f"the shard {shown(shard.name)} stands in {shown(owner[shard.name][0].path.name)} and in "
                    f"{shown(store.path.name)}; files to be merged hold different shards"
                )
            owner[shard.name] = store, shard_index
    names = sorted(owner)
    places = [owner[name] for name in names]
    shards = tuple(
        ShardSpec(name, store.shards[index].rows) for name, (store, index) in zip(names, places, strict=True)
    )
    key_width = max(store.layout.key_width for store in stores)
    fingerprint = keys_fingerprint((store.keys(index) for store, index in places), key_width)
    dataset = replace(stores[0].header.dataset, count=sum(store.num_rows for store in stores), fingerprint=fingerprint)
    header = made_header(stores, "merge", dataset=dataset)

    def rows(shard_index: int) -> ShardTickets:
        store, index = places[shard_index]
        return store.read(index)

    return Draft(header, shards, key_width, rows)


def subset_by_keys(store: TicketStore, keys: Collection[str]) -> Draft:
    """The rows with the given keys, in the file's order; shards without any are left out.

    Raises MissingTicketError, naming the first ten, when the file lacks a key; InputError when `keys` is empty.
    """
    keys = listed(keys, "keys")
    if not keys:
        raise InputError("no key was given; a subset needs at least one")
    for key in keys:
        if not isinstance(key, str):
            raise InputError(f"a key is text, found {shown(key)!r}")
    wanted = list(dict.fromkeys(keys))
    numbers = open_store(store).find_rows(wanted)
    lost = [wanted[item] for item in np.flatnonzero(numbers < 0)]
    if lost:
        raise MissingTicketError(
            f"{shown(store.path.name)} lacks {len(lost)} of {len(wanted)} keys: "
            + ", ".join(shown(key, 60) for key in lost[:10])
        )
    by_shard = {shard_index: rows for shard_index, _, rows in store.by_shard(numbers)}

    def chosen(shard_index: int) -> NDArray[np.int64]:
        return by_shard.get(shard_index, np.empty(0, dtype=np.int64))

    return _subset(store, chosen, {"by": "keys"})


def subset_by_classes(store: TicketStore, classes: Iterable[int], labels: Labels) -> Draft:
    """The rows of the given classes, in the file's order; `labels` as in `ticket_stats`.

    Raises InputError when no row has one of the classes.
    """
    wanted = sorted({whole_number(each, "a class", NO_LABEL) for each in listed(classes, "classes")})
    row_labels = RowLabels(labels, open_store(store))

    def chosen(shard_index: int) -> NDArray[np.int64]:
        return np.flatnonzero(np.isin(row_labels.of(shard_index), wanted)).astype(np.int64)

    named = ",".join(map(str, wanted))
    return _subset(store, chosen, {"by": "classes", "classes": named if len(named) <= 1_000 else len(wanted)})


def common_rows(store: TicketStore, other: TicketStore) -> Draft:
    """The rows whose keys stand in `other` too, in this file's order. Memory: 16 bytes a row of `other`."""
    store, other = open_stores([store, other])
    index = other.key_index()

    def chosen(shard_index: int) -> NDArray[np.int64]:
        return np.flatnonzero(index.first_candidates(store.keys(shard_index)) >= 0).astype(np.int64)

    return _subset(store, chosen, {"by": "keys of", "other": other.identity})


def _subset(store: TicketStore, chosen: Callable[[int], NDArray[np.int64]], details: dict[str, Json]) -> Draft:
    counts = np.array([len(chosen(shard_index)) for shard_index in range(len(store.shards))])
    kept = np.flatnonzero(counts)
    if not len(kept):
        raise InputError(f"no row of {shown(store.path.name)} is chosen, and a ticket file has at least one")
    shards = tuple(ShardSpec(store.shards[index].name, int(counts[index])) for index in kept)
    keys = ([store.keys(int(index))[row] for row in chosen(int(index))] for index in kept)
    fingerprint = keys_fingerprint(keys, store.layout.key_width)
    dataset = replace(store.header.dataset, count=int(counts.sum()), fingerprint=fingerprint)

    def rows(shard_index: int) -> ShardTickets:
        source = int(kept[shard_index])
        return taken(store.read(source), chosen(source))

    return Draft(made_header([store], "subset", details, dataset=dataset), shards, store.layout.key_width, rows)


def keys_fingerprint(shards: Iterable[Sequence[str]], key_width: int) -> str:
    """sha256 over the sorted keys of all shards, each followed by NUL, as in every header; `key_width` bytes of memory
    a key. Raises MismatchError for a key that stands twice.
    """
    parts = [np.array([key.encode("utf-8") for key in keys], dtype=f"S{key_width}") for keys in shards]
    ordered = np.sort(np.concatenate(parts))
    twice = np.flatnonzero(ordered[1:] == ordered[:-1])
    if len(twice):
        raise MismatchError(f"the key {shown(ordered[twice[0]].decode())!r} stands in two places; keys must be unique")
    digest = hashlib.sha256()
    for start in range(0, len(ordered), 10_000):
        digest.update(b"".join(key + b"\0" for key in ordered[start : start + 10_000].tolist()))
    return digest.hexdigest()


def taken(tickets: ShardTickets, at: NDArray[np.int64]) -> ShardTickets:
    """Rows `at` of a shard."""
    keys = tuple(tickets.keys[row] for row in at)
    return ShardTickets(keys, tickets.images[at], tickets.patches[at], tickets.gap[at], tickets.skipped[at])


def _check_mergeable(first: TicketStore, other: TicketStore) -> None:
    differing = differences(_bare(first.header), _bare(other.header))
    if differing:
        raise MismatchError(
            f"{shown(other.path.name)} was made in another way than {shown(first.path.name)} ('file' is the latter): "
            "they cannot be one ticket file\n  " + "\n  ".join(differing)
        )


def _bare(header: TicketHeader) -> TicketHeader:
    """The header without what may differ between the parts of a merge."""
    dataset = replace(header.dataset, count=0, fingerprint="")
    ranked_how = {name: value for name, value in header.extensions.items() if name in (RANKER, AVERAGED)}
    return replace(header, dataset=dataset, creator="", created="", versions={}, extensions=ranked_how)
