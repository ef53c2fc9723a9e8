"""Odd values at the ticket tools' public functions, rows and shards that are none, and files that somebody takes away.

Everything that a caller may get wrong is one error of the family, or works; nothing ends in a library's own exception.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from makers.tickets import ROWS, make_header, make_specs, make_store, make_tickets, tree_bytes

from dlth.tickets import Grid, TicketStore, TicketWriter, View, blend, differences, paste, project
from dlth.tickets.derive.algebra import intersection, inverse, union
from dlth.tickets.derive.controls import KINDS, control
from dlth.tickets.derive.edit import common_rows, merge, subset_by_classes, subset_by_keys
from dlth.tickets.derive.shrink import shrink
from dlth.tickets.errors import DlthError, InputError, MissingFileError, MissingTicketError
from dlth.tickets.exchange.archive import pack
from dlth.tickets.exchange.card import card
from dlth.tickets.exchange.coco import export_coco
from dlth.tickets.exchange.npz import export_npz
from dlth.tickets.statistics.compare import compare
from dlth.tickets.statistics.stats import ticket_stats


@pytest.fixture
def store(tmp_path: Path) -> TicketStore:
    return TicketStore(make_store(tmp_path / "toy.zarr", skipped=[4]))


@pytest.mark.parametrize(
    "value",
    [None, 5, {"n0000_0"}, {"n0000_0": 1}, "n0000_0", b"x", iter(["n0000_0"])],
    ids=lambda value: type(value).__name__,
)
def test_keys_that_are_no_list_are_refused(store: TicketStore, value: Any) -> None:
    """Whatever it is: it is shown, and what is needed is said."""
    for find in (store.find_many, store.find_rows, store.rankings):
        with pytest.raises(InputError, match="a list of keys is needed, found "):
            find(value)


def test_keys_that_are_no_text_have_no_ticket(store: TicketStore) -> None:
    """A list may hold anything; only text can be a key."""
    assert store.find_many(["n0000_0", None, 3, b"n0000_0", "\udcff"]).tolist() == [0, -1, -1, -1, -1]
    for key in (None, ["n0000_0"], "\udcff", ""):
        with pytest.raises(MissingTicketError):
            store.find(key)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [None, "0", 1.5, -1, 99, 2**70])
def test_numbers_that_cannot_be_are_refused(store: TicketStore, value: Any) -> None:
    """Shards, k, parts, caches: not there, no number, no whole one, or one that is out of bounds."""
    wrong: list[Callable[[], object]] = [
        lambda: store.read(value),
        lambda: store.mask(value),
        lambda: store.verify(subset=(value, 3)),
        lambda: store.verify(subset=value if value is not None else ()),
        lambda: compare(store, store, (value,)),
    ]
    wrong += [] if value is None else [lambda: ticket_stats(store, k=value)]
    wrong += [] if value in (99, 2**70) else [lambda: TicketStore(store.path, value)]
    wrong += [lambda: compare(store, store, num_worst=value)] if value not in (99, 2**70) else []
    wrong += [lambda: control(store, "random", value)] if value not in (99, -1) else []
    for call in wrong:
        with pytest.raises(InputError):
            call()


@pytest.mark.parametrize(
    "value", [None, 5, "toy.zarr", Path("toy.zarr"), [None], object()], ids=lambda value: type(value).__name__
)
def test_what_is_no_open_ticket_file_is_refused(store: TicketStore, tmp_path: Path, value: Any) -> None:
    """One file, or a list of files, at every tool: its path, nothing, a list with nothing in it."""
    several: list[Callable[[Any], object]] = [union, intersection, merge]
    one: list[Callable[[Any], object]] = [
        inverse,
        ticket_stats,
        lambda given: control(given, "random"),
        lambda given: shrink(given, "top"),
        lambda given: compare(given, store),
        lambda given: compare(store, given),
        lambda given: common_rows(store, given),
        lambda given: subset_by_keys(given, ["n0000_0"]),
        lambda given: subset_by_classes(given, [0], np.zeros(10, int)),
        lambda given: card(given, "toy.zip", 1),
        lambda given: pack(given, tmp_path / "a"),
        lambda given: export_npz(given, tmp_path / "b"),
        lambda given: export_coco(given, tmp_path / "c"),
    ]
    for call in several:
        for given in (value, [store, value]):
            with pytest.raises(InputError):
                call(given)
    for call in one:
        with pytest.raises(InputError, match="an open ticket file is needed, found"):
            call(value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["toy.zarr"]


@pytest.mark.parametrize(
    "value",
    [None, 5, "x", [[0], [1, 2]], np.ma.array(np.arange(16), mask=True), np.full((2, 16), np.nan), [["n0000_0"]]],
    ids=["None", "5", "text", "ragged", "masked", "nan", "list in list"],
)
def test_values_of_another_kind_are_refused(store: TicketStore, tmp_path: Path, value: Any) -> None:
    """Keys, classes, counts, kinds, rankings, views, boxes, headers, shards: one error of the family each."""
    view, ranking = View.whole(Grid(4, 4)), np.arange(16)[None]
    labels = np.zeros(10, int)
    header, shards = make_header(), make_specs()
    calls: list[Callable[[], object]] = [
        lambda: subset_by_keys(store, value),
        lambda: subset_by_classes(store, value, labels),
        lambda: control(store, value),
        lambda: shrink(store, value),
        lambda: project(value, view, view),
        lambda: project(ranking, value, view),
        lambda: paste(ranking, ranking, value, Grid(4, 4)),
        lambda: paste(value, value, [0, 0, 1, 1], Grid(4, 4)),
        lambda: blend(value, value, 0.5),
        lambda: blend(ranking, ranking, value),
        lambda: View(value, Grid(4, 4)),
        lambda: differences(header, value),
        lambda: TicketWriter(tmp_path / "new.zarr", value, shards, 12),
        lambda: TicketWriter(tmp_path / "new.zarr", header, value, 12),
    ]
    if value is not None and not isinstance(value, int):  # those are numbers of patches, and widths
        calls.append(lambda: TicketWriter(tmp_path / "new.zarr", header, shards, value))
        calls += [lambda: compare(store, store, value), lambda: union([store, store], value)]
    for number, call in enumerate(calls):
        try:
            call()
        except DlthError:
            continue
        raise AssertionError(f"call {number} took {value!r}")


def test_seeds_of_either_sign_to_64_bits_make_controls(store: TicketStore, tmp_path: Path) -> None:
    """2^64 - 1 and its negative are seeds like any other; each gives a file of its own."""
    made = [control(store, "random", seed).write(tmp_path / f"{seed}.zarr") for seed in (2**64 - 1, 1 - 2**64, 0)]
    assert len({file.identity for file in made}) == 3


def test_every_tool_takes_shards_without_rows(tmp_path: Path) -> None:
    """Empty shards first and last: each tool writes a file that verifies, and counts what is there."""
    store = TicketStore(make_store(tmp_path / "toy.zarr", rows=(0, 3, 0)))
    drafts = {kind: control(store, kind) for kind in KINDS}
    drafts |= {"inverted": inverse(store), "union": union([store, store]), "top": shrink(store, "top")}
    for name, draft in drafts.items():
        made = draft.write(tmp_path / f"{name}.zarr")
        assert made.verify() == []
        assert [shard.rows for shard in made.shards] == [0, 3, 0]
    assert compare(store, store).num_compared == ticket_stats(store).overall.num_tickets == 3


def test_nothing_is_written_into_a_ticket_file(store: TicketStore, tmp_path: Path) -> None:
    """A foreign entry would make it unreadable: another ticket file, a zip, a table are refused there."""
    before = tree_bytes(store.path)
    writes: list[Callable[[Path], object]] = [
        control(store, "centre").write,
        lambda path: pack(store, path),
        lambda path: export_npz(store, path),
    ]
    for write in writes:
        for place in (store.path / "new", store.path / "patches" / "new", store.path / "deep" / "new"):
            with pytest.raises(InputError, match=r"would lie in the ticket file .*toy\.zarr: choose a place outside"):
                write(place)
    assert tree_bytes(store.path) == before


def test_an_unfinished_file_that_is_taken_away_is_told(tmp_path: Path) -> None:
    """Removed before a claim, under a claim, or before the end: an error that names it, never 'others will finish'."""
    path, rows = tmp_path / "toy.zarr", ROWS

    def begun() -> TicketWriter:
        writer = TicketWriter(path, make_header(), make_specs(rows), key_width=12)
        for index in range(len(rows) - 1):
            with writer.claim(index):
                writer.write(index, make_tickets(index, rows[index]))
        return writer

    writer, last = begun(), len(rows) - 1
    with writer.claim(last):
        shutil.rmtree(f"{path}.partial")
        with pytest.raises(MissingFileError, match=r"toy\.zarr\.partial.* was removed"):
            writer.write(last, make_tickets(last, rows[last]))
    with writer.claim(last) as mine:
        assert not mine
    for ask in (writer.finish, writer.wait):
        with pytest.raises(MissingFileError, match=r"toy\.zarr\.partial was removed before the file was finished"):
            ask()
    assert not path.exists()
    make_store(path)
    assert TicketStore(path).verify() == []


@pytest.mark.parametrize("path", [None, 5, b"x", "", "a\0b", "/", "x" * 256, "below/" * 1000, ["x"]], ids=repr)
def test_what_is_no_path_is_refused(store: TicketStore, path: Any) -> None:
    """To read or to write: text without NUL, with names that a file can have."""
    calls: list[Callable[[Any], object]] = [TicketStore, control(store, "centre").write]
    for call in [*calls, lambda place: pack(store, place), lambda place: export_npz(store, place)]:
        with pytest.raises(DlthError):
            call(path)
