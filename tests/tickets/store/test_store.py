"""Writing and reading back: the same rows, by shard, by key, in workers, and by plain zarr."""

import multiprocessing
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from makers.tickets import make_header, make_store, make_tickets

from dlth.tickets import Grid, ShardSpec, ShardTickets, TicketHeader, TicketStore, TicketWriter
from dlth.tickets.errors import IncompleteError, InputError, MissingFileError, MissingTicketError
from dlth.tickets.format.chunks import decode, encode, padded
from dlth.tickets.format.layout import Layout


def assert_rows(found: ShardTickets, expected: ShardTickets, fill: int) -> None:
    good = ~expected.skipped
    assert found.keys == expected.keys
    assert (found.images == expected.images).all()
    assert (found.skipped == expected.skipped).all()
    assert (found.patches[good] == expected.patches[good]).all()
    assert (found.patches[~good] == fill).all()
    assert np.array_equal(found.gap[good], expected.gap[good])
    assert np.isnan(found.gap[~good]).all()


def test_rows_read_back(store_path: Path) -> None:
    """What was written is read, skipped images are flagged, and every count agrees."""
    store = TicketStore(store_path)
    assert [(shard.name, shard.rows, shard.skipped) for shard in store.shards] == [
        ("toy-000000.tar", 3, 0),
        ("toy-000001.tar", 5, 1),
        ("toy-000002.tar", 2, 0),
    ]
    assert (store.num_rows, store.num_skipped, store.max_rows, store.num_patches_stored) == (10, 1, 5, 16)
    for index, rows in enumerate((3, 5, 2)):
        assert_rows(store.read(index), make_tickets(index, rows, skipped=[4] if index == 1 else []), 255)
    assert store.verify() == []


@pytest.mark.parametrize(
    ("grid", "dtype", "fill"),
    [(Grid(15, 17), "uint8", 255), (Grid(16, 16), "uint16", 65535), (Grid(3, 100), "uint16", 65535)],
)
def test_index_type_follows_the_grid(tmp_path: Path, grid: Grid, dtype: str, fill: int) -> None:
    """255 patches fit a byte whose 255 is the fill; from 256 on two bytes, little-endian, are used."""
    path = make_store(tmp_path / "t.zarr", skipped=[0], grid=grid)
    store = TicketStore(path)
    assert store.patches(0).dtype == np.dtype(dtype).newbyteorder("<")
    assert_rows(store.read(1), make_tickets(1, 5, grid.num_patches, grid.num_patches, [0]), fill)
    assert int(store.patches(0).max()) == grid.num_patches - 1


def test_form_top_keeps_k_patches(tmp_path: Path) -> None:
    """The smaller form stores the k best alone, in order."""
    store = TicketStore(make_store(tmp_path / "t.zarr", form="top"))
    assert (store.header.form, store.num_patches_stored) == ("top", 6)
    assert_rows(store.read(0), make_tickets(0, 3, 16, 6), 255)
    assert store.verify() == []


def test_plain_zarr_reads_the_same(store_path: Path) -> None:
    """zarr alone opens the folder without a warning and finds the same numbers, fill where nothing is."""
    group = zarr.open_group(str(store_path), mode="r", zarr_format=3)
    store = TicketStore(store_path)
    assert sorted(group.array_keys()) == ["gap", "images", "keys", "manifest", "patches"]
    assert TicketHeader.from_json(group.attrs["dlth_tickets"]) == store.header
    assert bytes(group["manifest"][...]).startswith(b'{"content":')
    for index, shard in enumerate(store.shards):
        rows = store.read(index)
        assert (group["patches"][index, : shard.rows] == rows.patches).all()
        assert (group["patches"][index, shard.rows :] == 255).all()
        assert (group["images"][index, : shard.rows] == rows.images).all()
        assert np.array_equal(group["gap"][index, : shard.rows], rows.gap, equal_nan=True)
        keys = [bytes(row).rstrip(b"\0").decode() for row in group["keys"][index, : shard.rows]]
        assert tuple(keys) == rows.keys


def test_join_costs_one_chunk_a_shard(store_path: Path) -> None:
    """Opening reads no chunk; patches or keys of a shard are one chunk, all of it four, and the second time none."""
    store = TicketStore(store_path)
    counts = [store.chunk_reads]
    for call in (store.patches, store.patches, store.skipped, store.keys, store.read, store.read):
        call(1)
        counts.append(store.chunk_reads)
    assert counts == [0, 1, 1, 1, 2, 4, 4]


def test_opening_reads_metadata_only(tmp_path: Path) -> None:
    """However many shards, opening touches seven files: a big file costs its manifest, not its chunks."""
    import sys

    shards = [ShardSpec(f"{index}.tar", 1) for index in range(12)]
    writer = TicketWriter(tmp_path / "t.zarr", make_header(), shards, 12)
    rng = np.random.default_rng(0)
    for index in range(12):
        one = ShardTickets(
            (f"k{index}",),
            rng.integers(0, 256, (1, 16), np.uint8),
            np.arange(16)[None],
            np.ones(1, np.float32),
            np.zeros(1, bool),
        )
        with writer.claim(index):
            writer.write(index, one)
    assert writer.finish()
    opened: list[str] = []
    watching = True

    def watch(event: str, args: tuple[object, ...]) -> None:
        if watching and event == "open" and not isinstance(args[0], int):
            opened.append(str(args[0]))

    sys.addaudithook(watch)
    TicketStore(tmp_path / "t.zarr")
    watching = False
    names = sorted(name.split("t.zarr/")[1] for name in set(opened))
    arrays = [f"{name}/zarr.json" for name in ("gap", "images", "keys", "manifest", "patches")]
    assert names == sorted(["manifest/c.0", "zarr.json", *arrays])


def test_the_cache_is_bounded(store_path: Path) -> None:
    """With room for one shard, going back to an earlier one reads it again, and arrays cannot be written to."""
    store = TicketStore(store_path, cache_shards=1)
    for index in (0, 1, 0):
        store.read(index)
    assert store.chunk_reads == 12
    with pytest.raises(ValueError, match="read-only"):
        store.patches(0)[0, 0] = 1
    with pytest.raises(InputError, match="cache_shards must be at least 1, got 0"):
        TicketStore(store_path, cache_shards=0)


def test_rows_by_key(store_path: Path) -> None:
    """Every key with a ticket is found at its place, one by one and in bulk; an unknown one is an error, or -1."""
    store = TicketStore(store_path)
    places = [(shard, row) for shard, entry in enumerate(store.shards) for row in np.flatnonzero(~store.skipped(shard))]
    keys = [store.keys(shard)[row] for shard, row in places]
    assert [store.find(key) for key in keys] == places
    rows = store.find_many([*keys, "nobody", ""])
    assert rows.tolist() == [shard * store.max_rows + row for shard, row in places] + [-1, -1]
    with pytest.raises(MissingTicketError, match=r"toy.zarr has no ticket for the key 'no\\x1bbody'"):
        store.find("no\x1bbody")


@pytest.mark.parametrize("form", ["full", "top", "mask"])
def test_skipped_images_are_never_handed_out_as_tickets(tmp_path: Path, form: str) -> None:
    """A skipped image has a row and no ticket: find says so, find_many gives -1, rankings tell it from unknown keys."""
    store = TicketStore(make_store(tmp_path / "toy.zarr", skipped=(1, 3), form=form))
    assert store.num_skipped
    keys = [key for shard in range(len(store.shards)) for key in store.keys(shard)]
    skipped = np.concatenate([store.skipped(shard) for shard in range(len(store.shards))])
    patches = np.concatenate([store.patches(shard) for shard in range(len(store.shards))])
    asked = np.random.default_rng(0).permutation(len(keys))
    got = store.rankings([keys[i] for i in asked] + ["nobody"])
    assert got.patches.dtype == patches.dtype
    assert np.array_equal(got.patches[:-1], patches[asked])
    assert np.array_equal(got.skipped, [*skipped[asked], False])
    assert np.array_equal(got.found, [*~skipped[asked], False])
    assert (got.patches[~got.found] == store.layout.patches.fill).all()
    assert np.array_equal(store.find_many(keys) < 0, skipped)
    with pytest.raises(InputError, match="a list of keys is needed"):
        store.rankings(keys[0])  # whose letters would be looked up as keys
    assert np.array_equal(store.rankings([]).patches.shape, (0, store.num_patches_stored))
    with pytest.raises(MissingTicketError, match="could not be read when the tickets were made, and was skipped"):
        store.find(keys[int(np.flatnonzero(skipped)[0])])


def test_shards_that_are_not_there(store_path: Path) -> None:
    """A shard number is never wrapped around as a negative index would be."""
    store = TicketStore(store_path)
    for index in (-1, 3):
        with pytest.raises(InputError, match=rf"toy.zarr has shards 0 … 2, asked for {index}"):
            store.patches(index)


def _read_in_child(store: TicketStore, index: int) -> list[list[int]]:
    return store.patches(index).tolist()


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_loader_workers_can_use_it(store_path: Path, method: str) -> None:
    """A store that was used is pickled or forked into workers, without its cache, and reads the same there."""
    store = TicketStore(store_path)
    store.find("n0001_0")
    assert len(pickle.dumps(store)) < 20_000
    with multiprocessing.get_context(method).Pool(2) as pool:
        found = pool.starmap(_read_in_child, [(store, index) for index in (0, 1, 2, 0)])
    assert found == [store.patches(index).tolist() for index in (0, 1, 2, 0)]


def test_a_relative_or_linked_path_is_the_users_choice(
    store_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder itself may be reached by a link or a relative path, and stays the same after a change of folder."""
    (tmp_path / "link.zarr").symlink_to(store_path)
    monkeypatch.chdir(tmp_path)
    store = TicketStore("link.zarr")
    monkeypatch.chdir("/")
    assert store.read(0).keys == TicketStore(store_path).keys(0)


def test_what_is_no_finished_file(tmp_path: Path, store_path: Path) -> None:
    """Missing, unfinished, a single file, a folder without a manifest: each is told apart."""
    with pytest.raises(MissingFileError, match=r"there is no ticket file .*nowhere.zarr"):
        TicketStore(tmp_path / "nowhere.zarr")
    (tmp_path / "one.zip").write_bytes(b"PK")
    with pytest.raises(InputError, match=r"one.zip is a single file; a ticket file is a folder"):
        TicketStore(tmp_path / "one.zip")
    (tmp_path / "empty.zarr").mkdir()
    with pytest.raises(
        IncompleteError, match=r"empty.zarr has no manifest: it is unfinished, partly copied, or no ticket"
    ):
        TicketStore(tmp_path / "empty.zarr")
    (store_path / "manifest/c.0").unlink()
    with pytest.raises(IncompleteError, match=r"toy.zarr has no manifest"):
        TicketStore(store_path)
    TicketWriter(tmp_path / "new.zarr", make_header(), [ShardSpec("a.tar", 1), ShardSpec("b.tar", 1)], 8)
    with pytest.raises(
        IncompleteError, match=r"new.zarr is not finished \(0 of 2 shards are done\); run the same dlth select"
    ):
        TicketStore(tmp_path / "new.zarr")


def test_verify_reports_progress_and_parts(store_path: Path) -> None:
    """Every shard is counted; the parts n/t cover every shard once between them."""
    store = TicketStore(store_path)
    calls: list[tuple[int, int]] = []
    assert store.verify(lambda done, total: calls.append((done, total))) == []
    assert calls == [(1, 3), (2, 3), (3, 3)]
    (store_path / "keys/c.2.0.0").write_bytes(b"x")
    assert [len(store.verify(subset=(part, 2))) for part in (1, 2)] == [1, 0]
    with pytest.raises(InputError, match="a subset is n/t with 1 <= n <= t, got 3/2"):
        store.verify(subset=(3, 2))


def test_an_empty_shard_and_a_wholly_bad_one(tmp_path: Path) -> None:
    """A tar without images keeps its place, and a shard of bad images alone is not mistaken for a missing one."""
    writer = TicketWriter(tmp_path / "t.zarr", make_header(), [ShardSpec("empty.tar", 0), ShardSpec("bad.tar", 2)], 12)
    for index, rows in enumerate((0, 2)):
        with writer.claim(index):
            writer.write(index, make_tickets(index, rows, skipped=range(rows)))
    assert writer.finish()
    store = TicketStore(tmp_path / "t.zarr")
    assert store.verify() == []
    assert store.read(0).num_rows == 0
    assert store.skipped(1).all()


keys = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=8)


@given(st.lists(keys, min_size=1, max_size=6, unique=True), st.integers(1, 300), st.data())
@settings(deadline=None, max_examples=30)
def test_chunks_read_back_whatever_they_hold(names: list[str], patches: int, data: st.DataObject) -> None:
    """Any keys, any grid, any padding: each array's chunk decodes to what was encoded."""
    rows = len(names) + data.draw(st.integers(0, 3))
    layout = Layout(1, rows, 32, patches, patches)
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    values = {
        "patches": rng.permuted(np.tile(np.arange(patches), (len(names), 1)), axis=1),
        "keys": np.array([name.encode() for name in names], dtype="S32").view(np.uint8).reshape(-1, 32),
        "images": rng.integers(0, 256, (len(names), 16)),
        "gap": rng.random(len(names), dtype=np.float32),
    }
    for spec in layout.arrays:
        chunk = padded(spec, values[spec.name])
        assert np.array_equal(decode(spec, encode(spec, chunk), "here"), chunk, equal_nan=spec.name == "gap")


def test_no_open_files_stay_behind(store_path: Path) -> None:
    """A store holds no file open: thousands of workers cannot run out of descriptors."""
    folder = Path("/proc/self/fd")
    if not folder.exists():
        folder = Path("/dev/fd")
    before = len(os.listdir(folder))
    store = TicketStore(store_path)
    store.read(0)
    assert len(os.listdir(folder)) == before
