"""Token label files: written and read as ticket files are, by the same writer and reader."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from makers.tickets import (
    ROWS,
    make_label_header,
    make_label_store,
    make_labels,
    make_specs,
    make_store,
    make_tickets,
    tree_bytes,
)

from dlth.tickets import TicketStore
from dlth.tickets.errors import DamageError, IncompleteError, InputError, MismatchError, SchemaError
from dlth.tickets.exchange.archive import pack, unpack
from dlth.tickets.format.label_header import LabelHeader
from dlth.tickets.format.label_rows import NO_CLASS
from dlth.tickets.store.kinds import open_file
from dlth.tickets.store.label_store import LabelStore
from dlth.tickets.store.label_writer import LabelWriter


@pytest.fixture(scope="module")
def labels_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Token labels of shards of 3, 5 and 2 rows, row 4 of shard 1 skipped."""
    return make_label_store(tmp_path_factory.mktemp("labels") / "labels.zarr", skipped=[4])


def shard_labels(header: LabelHeader, shard: int) -> Any:
    """The labels that `make_label_store` writes of a shard."""
    tickets = make_tickets(shard, ROWS[shard])
    return make_labels(header, tickets.keys, tickets.images)


def test_what_was_written_is_read(labels_path: Path) -> None:
    """Classes, scores, keys and hashes come back as they were, a skipped row as none, in dlth and in plain zarr."""
    store = LabelStore(labels_path)
    wrote, read = shard_labels(store.header, 1), store.read(1)
    assert read.keys == wrote.keys
    assert (read.images == wrote.images).all()
    assert (read.classes[:4] == wrote.classes[:4]).all()
    assert (read.scores[:4] == wrote.scores[:4]).all()
    assert read.skipped.tolist() == [False] * 4 + [True]
    assert (read.classes[4] == NO_CLASS).all()
    assert np.isnan(read.scores[4]).all()
    number = store.find_many([wrote.keys[2]])
    assert (store.labels_at(number).classes[0] == wrote.classes[2]).all()
    assert store.verify() == []
    assert store.header == LabelHeader.from_json(store.header.to_json())
    plain = zarr.open_group(labels_path, mode="r")
    assert (plain["scores"][1, :4] == wrote.scores[:4]).all()


def test_an_interrupted_file_goes_on_to_the_same_bytes(labels_path: Path, tmp_path: Path) -> None:
    """Begun, left, and gone on with by another writer, in another order: the same bytes; begun otherwise: refused."""
    header, path = make_label_header(), tmp_path / "labels.zarr"
    bad = [make_tickets(1, ROWS[1]).keys[4]]
    for shard in (2, 0, 1):
        writer = LabelWriter(path, header, make_specs(), 12)
        tickets = make_tickets(shard, ROWS[shard])
        with writer.claim(shard) as mine:
            assert mine
            writer.write(shard, make_labels(header, tickets.keys, tickets.images, bad))
        if shard == 2:
            with pytest.raises(IncompleteError, match=r"1 of 3 shards are done\); run the same dlth label again"):
                LabelStore(path)
            with pytest.raises(MismatchError, match=r"num_best: file has 3, asked 2"):
                LabelWriter(path, make_label_header(num_best=2), make_specs(), 12)
    assert writer.finish()
    assert tree_bytes(path) == tree_bytes(labels_path)


@pytest.mark.parametrize("name", ["classes/c.1.0.0.0.0", "scores/c.0.0.0.0.0"])
def test_a_flipped_bit_is_found(labels_path: Path, tmp_path: Path, name: str) -> None:
    """Any changed byte of a chunk is an error that names file and shard, at reading and in verify."""
    path = make_label_store(tmp_path / "labels.zarr")
    raw = bytearray((path / name).read_bytes())
    raw[len(raw) // 2] ^= 1
    (path / name).write_bytes(raw)
    assert [finding.file for finding in LabelStore(path).verify()] == [name]
    with pytest.raises(DamageError, match="sha256"):
        LabelStore(path).labels(int(name.split(".")[1]))


BROKEN: dict[str, tuple[Callable[[np.ndarray, np.ndarray], None], str]] = {
    "class beyond the head": (lambda classes, scores: classes.__setitem__((2, 0, 1, 1), 10), "outside 0 … 9"),
    "class twice": (lambda classes, scores: classes.__setitem__((2, 0), classes[2, 1]), "a class twice in one cell"),
    "infinite score": (lambda classes, scores: scores.__setitem__((2, 0, 0, 0), np.inf), "no finite float16"),
    "rising scores": (lambda classes, scores: scores.__setitem__((2, 2), scores[2, 0] + 1), "that do not fall"),
}


@pytest.mark.parametrize(("breaks", "message"), BROKEN.values(), ids=BROKEN)
def test_broken_rows_are_not_written(tmp_path: Path, breaks: Any, message: str) -> None:
    """Labels that no annotator gives are refused before a byte is written, naming shard and row."""
    header = make_label_header()
    writer = LabelWriter(tmp_path / "labels.zarr", header, make_specs(), 12)
    labels = shard_labels(header, 0)
    breaks(labels.classes, labels.scores)
    with writer.claim(0), pytest.raises(InputError, match=f"toy-000000.tar: row 2 .*{message}"):
        writer.write(0, labels)
    assert writer.missing() == [0, 1, 2]


def test_kinds_are_told_apart(labels_path: Path, tmp_path: Path) -> None:
    """A file of one kind is no file of the other, whoever opens it; who takes either opens what it is."""
    tickets = make_store(tmp_path / "tickets.zarr")
    with pytest.raises(InputError, match=r"labels.zarr is a file of the format dlth-token-labels, and no ticket file"):
        TicketStore(labels_path)
    with pytest.raises(InputError, match=r"tickets.zarr is a file of the format dlth-tickets, and no token label file"):
        LabelStore(tickets)
    assert isinstance(open_file(tickets), TicketStore)
    assert isinstance(open_file(labels_path), LabelStore)


def test_packed_and_unpacked(labels_path: Path, tmp_path: Path) -> None:
    """A packed token label file unpacks to the same bytes, of which a cut one gives none."""
    pack(LabelStore(labels_path), tmp_path / "labels.zip")
    assert unpack(tmp_path / "labels.zip", tmp_path / "again.zarr").identity == LabelStore(labels_path).identity
    assert tree_bytes(tmp_path / "again.zarr") == tree_bytes(labels_path)


@pytest.mark.parametrize("fields", [{"num_classes": 1}, {"num_best": 11}, {"num_classes": 1 << 16}, {"kind": "x"}])
def test_headers_that_cannot_be(fields: dict[str, Any]) -> None:
    """A header whose numbers no file can have is refused when it is made, or read."""
    with pytest.raises(SchemaError, match=next(iter(fields))):
        LabelHeader.from_json(make_label_header().to_json() | fields)
    assert dataclasses.replace(make_label_header()) == make_label_header()
