"""Accidents on the way: whatever is cut, flipped, deleted or mixed up is refused, and its place is named."""

import re
import shutil
from pathlib import Path

import pytest
from makers.tampering import flipped
from makers.tickets import make_store, tree_bytes

from dlth.tickets import TicketStore
from dlth.tickets.errors import DamageError, DlthError, IncompleteError

CHUNKS = [f"{name}/c.{shard}.0{end}" for shard in range(3) for name, end in
          (("patches", ".0"), ("keys", ".0"), ("images", ".0"), ("gap", ""))]  # fmt: skip
METADATA = ["zarr.json", *(f"{name}/zarr.json" for name in ("gap", "images", "keys", "manifest", "patches"))]


def read_all(path: Path) -> None:
    """What a run does with a ticket file: open it and read every shard."""
    store = TicketStore(path)
    for shard in range(len(store.shards)):
        store.read(shard)


def test_the_lists_above_are_complete(store_path: Path) -> None:
    """These tests see every file of a ticket file."""
    assert set(tree_bytes(store_path)) == {*CHUNKS, *METADATA, "manifest/c.0"}


@pytest.mark.parametrize("name", CHUNKS)
def test_a_damaged_chunk_names_shard_and_file(store_path: Path, name: str) -> None:
    """Deleted, emptied, cut or grown is seen at open; a flipped bit at the first read; verify names it too."""
    chunk = store_path / name
    sound = chunk.read_bytes()
    shard = f"toy-00000{name.split('.')[1]}.tar"
    place = rf"{re.escape(name)} \(shard {shard}\)"
    for broken, message in [
        (None, f"{place} is missing"),
        (b"", f"{place} has 0 bytes instead of {len(sound)}"),
        (sound[:-1], f"{place} has {len(sound) - 1} bytes instead of {len(sound)}"),
        (sound + b"\0", f"{place} has {len(sound) + 1} bytes instead of {len(sound)}"),
    ]:
        chunk.unlink(missing_ok=True)
        if broken is not None:
            chunk.write_bytes(broken)
        with pytest.raises(DamageError, match=message) as caught:
            TicketStore(store_path)
        assert (caught.value.shard, caught.value.file) == (shard, name)
    chunk.write_bytes(flipped(sound, -8))
    store = TicketStore(store_path)
    with pytest.raises(DamageError, match=f"{place} is damaged: its sha256 is .*, the manifest says") as caught:
        store.read(int(name.split(".")[1]))
    assert (caught.value.shard, caught.value.file) == (shard, name)
    assert [(found.shard, found.file) for found in store.verify()] == [(shard, name)]
    chunk.write_bytes(sound)
    assert store.verify() == []


def test_damage_after_opening_is_found(store_path: Path) -> None:
    """A chunk that vanishes or changes while a run goes on is an error at its next read, never fill values."""
    store = TicketStore(store_path)
    (store_path / "patches/c.1.0.0").unlink()
    with pytest.raises(
        DamageError, match=r"patches/c.1.0.0 \(shard toy-000001.tar\) changed since the file was opened"
    ):
        store.patches(1)
    (store_path / "patches/c.1.0.0").write_bytes(b"\0" * 10_000)
    with pytest.raises(DamageError, match=r"10000 bytes, the bound is"):
        store.patches(1)


@pytest.mark.parametrize("name", [*METADATA, "manifest/c.0"])
def test_damaged_metadata_is_refused_at_open(store_path: Path, name: str) -> None:
    """Deleted, emptied, cut, grown, or one space more: nothing is opened on altered metadata."""
    file = store_path / name
    sound = file.read_bytes()
    for broken in (None, b"", sound[:-1], sound + b" ", sound.replace(b'"', b' "', 1), sound.replace(b"3", b"4", 1)):
        file.unlink(missing_ok=True)
        if broken is not None:
            file.write_bytes(broken)
        with pytest.raises(DlthError) as caught:
            TicketStore(store_path)
        lost = name.startswith("manifest") and broken is None  # how an unfinished file looks
        assert ("has no manifest" if lost else name) in str(caught.value)


def test_one_flipped_bit_in_any_byte_is_refused(tmp_path: Path) -> None:
    """Every byte of every file, metadata included: one bit each, and no altered file reads to the end."""
    path = make_store(tmp_path / "t.zarr", rows=(1,))
    flips = 0
    for file in sorted(path.rglob("*")):
        if file.is_file():
            sound = file.read_bytes()
            with open(file, "r+b", buffering=0) as handle:
                for place, byte in enumerate(sound):
                    handle.seek(place)
                    handle.write(bytes([byte ^ (1 << place % 8)]))
                    with pytest.raises(DlthError):
                        read_all(path)
                    handle.seek(place)
                    handle.write(bytes([byte]))
                    flips += 1
    assert flips > 4_000
    read_all(path)


def test_chunks_of_equal_size_cannot_be_swapped(tmp_path: Path) -> None:
    """Two shards' chunks exchanged, or one taken from another valid file, are not taken for each other."""
    path = make_store(tmp_path / "a.zarr", rows=(4, 4))
    other = make_store(tmp_path / "b.zarr", rows=(4, 4), skipped=[1])
    first, second = path / "images/c.0.0.0", path / "images/c.1.0.0"
    one, two = first.read_bytes(), second.read_bytes()
    assert len(one) == len(two)
    first.write_bytes(two)
    second.write_bytes(one)
    assert {found.shard for found in TicketStore(path).verify()} == {"toy-000000.tar", "toy-000001.tar"}
    first.write_bytes(one)
    second.write_bytes(two)
    shutil.copy(other / "patches/c.1.0.0", path / "patches/c.1.0.0")
    with pytest.raises(DamageError, match=r"patches/c.1.0.0 \(shard toy-000001.tar\)"):
        read_all(path)


def test_verify_lists_every_damaged_chunk(store_path: Path) -> None:
    """All findings in one pass, each once, in the order of the shards."""
    for name in ("patches/c.0.0.0", "keys/c.0.0.0", "gap/c.2.0"):
        raw = (store_path / name).read_bytes()
        (store_path / name).write_bytes(raw[:-1] + b"?")
    assert [found.file for found in TicketStore(store_path).verify()] == [
        "patches/c.0.0.0",
        "keys/c.0.0.0",
        "gap/c.2.0",
    ]


def test_a_partial_copy_is_no_file(tmp_path: Path, store_path: Path) -> None:
    """A transfer that stopped anywhere never opens, whichever file came last."""
    files = sorted(file for file in store_path.rglob("*") if file.is_file())
    for number in range(len(files)):
        copy = tmp_path / f"copy{number}.zarr"
        shutil.copytree(store_path, copy)
        (copy / files[number].relative_to(store_path)).unlink()
        with pytest.raises((DamageError, IncompleteError)):
            TicketStore(copy)
