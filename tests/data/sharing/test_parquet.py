"""Parquet in and out: round trip, other labs' files, and refusals by name."""

import os
import resource
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from makers.tickets import make_header

from dlth.data.confined import Confined
from dlth.data.sharing.parquet import ParquetTable, export_parquet
from dlth.tickets import DatasetInfo, Grid, ShardSpec, ShardTickets, TicketStore, generator
from dlth.tickets.derive.draft import Draft
from dlth.tickets.errors import DamageError, DlthError, InputError, LimitError
from dlth.tickets.exchange.imports import ImportOptions, import_draft

GRID = ImportOptions(grid=Grid(4, 4), patch_size=8, k=6)


def rankings(rows: int) -> np.ndarray:
    return generator("tests/parquet").permuted(np.tile(np.arange(16), (rows, 1)), axis=1)


@pytest.fixture
def store(tmp_path: Path) -> TicketStore:
    """Three shards of 3, 0 and 2 rows, one row skipped."""
    header = make_header(dataset=DatasetInfo("toy", "train", 5, ""))
    order, rng, shards, start = rankings(5), generator("hashes"), [], 0
    for count in (3, 0, 2):
        at = slice(start, start + count)
        keys = tuple(f"ключ_{row}" for row in range(start, start + count))
        images = rng.integers(0, 256, (count, 16), dtype=np.uint8)
        skipped = np.arange(start, start + count) == 4
        shards.append(ShardTickets(keys, images, order[at], rng.random(count, np.float32), skipped))
        start += count
    specs = tuple(ShardSpec(f"s-{index}.tar", shard.num_rows) for index, shard in enumerate(shards))
    return Draft(header, specs, 16, shards.__getitem__).write(tmp_path / "toy.zarr")


def write(path: Path, **columns: Any) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


def test_round_trip_keeps_every_row(store: TicketStore, tmp_path: Path) -> None:
    """Export, import: the same shards (an empty one too), keys, hashes, rankings, gaps, skipped rows and header."""
    export_parquet(store, tmp_path / "a.parquet")
    made = import_draft(ParquetTable(tmp_path / "a.parquet"), ImportOptions()).write(tmp_path / "made")
    assert made.shards == store.shards
    assert made.content == store.content
    assert made.header.selector == store.header.selector
    for index in range(3):
        ours, theirs = store.read(index), made.read(index)
        assert ours.keys == theirs.keys
        for name in ("images", "patches", "gap", "skipped"):
            np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))
    frame = pq.read_table(tmp_path / "a.parquet")
    assert frame.column("shard").to_pylist() == ["s-0.tar"] * 3 + ["s-2.tar"] * 2
    assert frame.column("patches").to_pylist()[0] == store.patches(0)[0].tolist()
    with pytest.raises(InputError, match="exists and is not overwritten"):
        export_parquet(store, tmp_path / "a.parquet")


def test_a_labs_rankings_in_one_large_row_group(tmp_path: Path) -> None:
    """Plain lists of 64-bit numbers, thousands of rows in one group, are cut into shards and read in any order."""
    order = rankings(2500)
    path = write(tmp_path / "a.parquet", key=[f"k{row}" for row in range(2500)], patches=list(order))
    table = ParquetTable(path)
    assert np.array_equal(table.read(1500, 1502).ranking, order[1500:1502])
    assert np.array_equal(table.read(998, 1003).ranking, order[998:1003])
    made = import_draft(table, GRID, shard_rows=900).write(tmp_path / "made")
    assert made.verify() == []
    assert [shard.rows for shard in made.shards] == [900, 900, 700]
    assert np.array_equal(made.patches(2), order[1800:])


def test_masks_are_taken(tmp_path: Path) -> None:
    """A column 'mask' of lists of booleans gives a file of sets."""
    masks = np.zeros((4, 16), dtype=bool)
    masks[:, [1, 5, 7]] = True
    path = write(tmp_path / "a.parquet", key=list("abcd"), mask=[row.tolist() for row in masks])
    made = import_draft(ParquetTable(path), ImportOptions(grid=Grid(4, 4), patch_size=8)).write(tmp_path / "made")
    assert (made.header.form, made.patches(0).tolist()) == ("mask", [[1, 5, 7]] * 4)


def test_files_that_cannot_serve_are_refused_by_column(tmp_path: Path) -> None:
    """Missing columns, wrong types, missing values, ragged rows, and what is no Parquet file."""
    keys, order = list("abc"), rankings(3).tolist()
    refused = {
        "must have the columns 'key' and either 'patches' or 'mask'": {"key": keys},
        "the column 'patches' has the wrong type list<": {"key": keys, "patches": [[0.5]] * 3},
        "the column 'key' has the wrong type int64": {"key": [1, 2, 3], "patches": order},
        "an entry of 'image' is not 16 bytes long": {"key": keys, "patches": order, "image": [b"short"] * 3},
        "'key' has missing values in rows 0 to 2": {"key": ["a", "b", None], "patches": order},
        "row 2 has 15 entries, the first row 16": {"key": keys, "patches": [*order[:2], order[2][:-1]]},
        "'patches' has missing entries": {"key": keys, "patches": [*order[:2], [None, *order[2][1:]]]},
    }
    for number, (message, columns) in enumerate(refused.items()):
        path = write(tmp_path / f"{number}.parquet", **columns)
        with pytest.raises(InputError, match=message):
            import_draft(ParquetTable(path), GRID).write(tmp_path / f"made-{number}")
    good = write(tmp_path / "good.parquet", key=keys, patches=order).read_bytes()
    (tmp_path / "cut.parquet").write_bytes(good[:-20])
    with pytest.raises(DamageError, match=r"cut\.parquet cannot be read as Parquet"):
        ParquetTable(tmp_path / "cut.parquet")


def test_flipped_bytes_end_in_our_errors(tmp_path: Path) -> None:
    """Whatever a damaged file makes of its values, reading it ends in rows or in an error of ours."""
    good = write(tmp_path / "good.parquet", key=list("abc"), patches=rankings(3).tolist()).read_bytes()
    refused = 0
    for place in range(4, len(good), 11):
        flipped = bytearray(good)
        flipped[place] ^= 0xFF
        (tmp_path / "flip.parquet").write_bytes(flipped)
        try:
            import_draft(ParquetTable(tmp_path / "flip.parquet"), GRID).rows(0)
        except DlthError:
            refused += 1
    assert refused > 20


def test_a_row_of_millions_in_a_thousand_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that unpacks to far more than it is asks for memory in a process of its own, is refused, and others are
    read under the same bound."""
    monkeypatch.setattr("dlth.data.sharing.parquet.MAX_MEMORY", 2**26)
    zeros = pa.ListArray.from_arrays(pa.array([0, 8_000_000], pa.int32()), pa.array(np.zeros(8_000_000, np.int64)))
    bomb = write(tmp_path / "bomb.parquet", key=["a"], patches=zeros)
    assert bomb.stat().st_size < 100_000
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(LimitError, match=r"bomb\.parquet asks for more than 0\.0625 GiB of memory"):
        ParquetTable(bomb)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**15  # KiB
    good = write(tmp_path / "good.parquet", key=list("abc"), patches=rankings(3).tolist())
    assert ParquetTable(good).read(0, 3).ranking.shape == (3, 16)


class _Ends:
    """Ends its process as a crash, an abort or an exit would."""

    def signal(self, number: int) -> None:
        os.kill(os.getpid(), number)

    def exit(self, code: int) -> None:
        os._exit(code)


def test_a_reader_that_dies_is_an_error_that_names_the_file() -> None:
    """Whatever ends the child, the parent goes on, with an error of the family."""
    for name, value, error, match in (
        ("signal", signal.SIGSEGV, DamageError, r"x ended the process that read it \(SIGSEGV\)"),
        ("signal", signal.SIGABRT, LimitError, "x asks for more than 1 GiB of memory"),
        ("exit", 3, DamageError, r"x ended the process that read it \(exit code 3\)"),
    ):
        with pytest.raises(error, match=match):
            Confined(_Ends, 2**30, "x").call(name, value)
