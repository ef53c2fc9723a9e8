"""The packed form: one zip, the same bytes from everyone, refused unless it is exactly that."""

import hashlib
import io
import os
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import zarr
from makers.tampering import flip
from makers.tickets import tree_bytes

from dlth.tickets import TicketStore
from dlth.tickets.errors import DamageError, DlthError, InputError, LimitError, MissingFileError, UnsafeError
from dlth.tickets.exchange.archive import Archive, pack, unpack, write_zip


@pytest.fixture
def packed(store_path: Path, tmp_path: Path) -> Path:
    pack(TicketStore(store_path), tmp_path / "toy.zarr.zip")
    return tmp_path / "toy.zarr.zip"


def members(packed: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(packed) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_pack_and_unpack_give_back_every_byte(packed: Path, store_path: Path, tmp_path: Path) -> None:
    """The unpacked folder equals the one that was packed, under the same identity; both count their files."""
    told: list[tuple[int, int]] = []
    store = unpack(packed, tmp_path / "again.zarr", lambda done, total: told.append((done, total)))
    assert tree_bytes(tmp_path / "again.zarr") == tree_bytes(store_path)
    assert store.identity == TicketStore(store_path).identity
    assert told[-1] == (2 * store.num_files, 2 * store.num_files)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again.zarr", "toy.zarr", "toy.zarr.zip"]


def test_everyone_makes_the_same_zip(packed: Path, tmp_path: Path) -> None:
    """Packing a copy (other times, other order on disk) gives the same bytes; the golden digest pins them."""
    unpack(packed, tmp_path / "again.zarr")
    pack(TicketStore(tmp_path / "again.zarr"), tmp_path / "again.zip")
    assert (tmp_path / "again.zip").read_bytes() == packed.read_bytes()
    fixed = io.BytesIO()
    write_zip(fixed, [("a/zarr.json", b"{}"), ("zarr.json", b"[]")])
    assert hashlib.sha256(fixed.getvalue()).hexdigest() == GOLDEN


GOLDEN = "3c6acdb0fed5c45394d49f5a53c5ee7998ba033e2ca590f0b854e1b6206a1049"


def test_other_programs_read_it(packed: Path, store_path: Path) -> None:
    """Python's zipfile finds nothing wrong, and plain zarr reads the arrays from the zip as it is."""
    with zipfile.ZipFile(packed) as archive:
        assert archive.testzip() is None
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}
    group = zarr.open_group(zarr.storage.ZipStore(packed, mode="r"), mode="r")
    np.testing.assert_array_equal(np.asarray(group["patches"][0]), TicketStore(store_path).patches(0).tolist() + FILL)


FILL = [[255] * 16] * 2


@pytest.mark.parametrize("num_members", [65_534, 65_535, 70_000])
def test_many_files_take_zip64(num_members: int) -> None:
    """Around 65,535 files, where a zip's counts get wider, zipfile reads what was written."""
    buffer = io.BytesIO()
    write_zip(buffer, ((f"a/c.{number:06d}", b"") for number in range(num_members)))
    with zipfile.ZipFile(buffer) as archive:
        assert len(archive.namelist()) == num_members


def test_large_offsets_take_zip64(tmp_path: Path) -> None:
    """Beyond 4 GiB the directory's offsets get wider; written into a sparse file, so it takes no space."""
    big = bytes(64 * 2**20)
    with open(tmp_path / "big.zip", "wb") as file:
        write_zip(_Sparse(file), ((f"a/c.{number:02d}", big) for number in range(66)))  # type: ignore[arg-type]
    with zipfile.ZipFile(tmp_path / "big.zip") as archive:
        last = archive.infolist()[-1]
        assert (last.filename, last.file_size, last.CRC) == ("a/c.65", len(big), zlib.crc32(big))
        assert last.header_offset > 2**32
        with archive.open(last) as member:
            assert member.read(10) == bytes(10)


class _Sparse:
    """Writes long zeros as holes."""

    def __init__(self, file: io.BufferedWriter) -> None:
        self._file = file

    def write(self, raw: bytes) -> None:
        if len(raw) > 2**20:
            self._file.seek(len(raw), os.SEEK_CUR)
        else:
            self._file.write(raw)


def _with(
    change: Callable[[dict[str, bytes]], object], **options: object
) -> Callable[[bytes, dict[str, bytes]], bytes]:
    """A zip made by zipfile, as an attacker has it, of changed members."""

    def make(raw: bytes, contents: dict[str, bytes]) -> bytes:
        change(contents)
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", **options) as archive:  # type: ignore[call-overload]
            for name, content in contents.items():
                archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), content, options.get("compression"))
        return buffer.getvalue()

    return make


def _ours(change: Callable[[list[tuple[str, bytes]]], object]) -> Callable[[bytes, dict[str, bytes]], bytes]:
    """A zip put together exactly as dlth does, of changed members."""

    def make(raw: bytes, contents: dict[str, bytes]) -> bytes:
        listed = list(contents.items())
        change(listed)
        buffer = io.BytesIO()
        write_zip(buffer, listed)
        return buffer.getvalue()

    return make


def _patched(old: bytes, new: bytes, count: int = 1) -> Callable[[bytes, dict[str, bytes]], bytes]:
    return lambda raw, contents: raw.replace(old, new, count)


HOSTILE = {
    "no zip": (lambda raw, contents: b"hello" * 100, UnsafeError, "does not end as a zip"),
    "empty": (lambda raw, contents: b"", UnsafeError, "does not end as a zip"),
    "cut off": (lambda raw, contents: raw[:-30], UnsafeError, "does not end as a zip"),
    "cut in front": (lambda raw, contents: raw[30:], UnsafeError, "do not fit together|not put together"),
    "bytes in front": (lambda raw, contents: b"#!/bin/sh\n" + raw, UnsafeError, "not put together|holds"),
    "bytes behind": (lambda raw, contents: raw + b"x", UnsafeError, "does not end as a zip"),
    "comment": (lambda raw, contents: raw[:-2] + b"\1\0x", UnsafeError, "does not end as a zip"),
    "another program's": (_with(lambda contents: None), UnsafeError, "is not put together as dlth does"),
    "compressed": (
        _with(lambda contents: None, compression=zipfile.ZIP_DEFLATED),
        UnsafeError,
        "is not put together as dlth does",
    ),
    "path escape": (_ours(lambda items: items.insert(0, ("../evil", b"x"))), UnsafeError, r"holds '\.\./evil'"),
    "absolute path": (_ours(lambda items: items.insert(0, ("/etc/evil", b"x"))), UnsafeError, "holds '/etc/evil'"),
    "device name": (_ours(lambda items: items.insert(0, ("a\\..\\b", b"x"))), UnsafeError, "holds"),
    "escape codes": (_ours(lambda items: items.insert(0, ("\x1b[2J", b"x"))), UnsafeError, r"holds '\\x1b\[2J'"),
    "folder": (_ours(lambda items: items.insert(0, ("a/", b""))), UnsafeError, "holds 'a/'"),
    "twin": (_ours(lambda items: items.insert(0, items[0])), UnsafeError, "one stands twice"),
    "unsorted": (_ours(lambda items: items.reverse()), UnsafeError, "not sorted"),
    "foreign file": (
        _ours(lambda items: items.insert(0, ("a/c.0", b"x"))),
        DamageError,
        "'a/c.0' is not as the manifest",
    ),
    "lost file": (_ours(lambda items: items.pop(0)), DamageError, r"'gap/c\.0\.0' is not as the manifest lists"),
    "lost manifest": (
        _ours(lambda items: items.__setitem__(slice(None), [i for i in items if "manifest" not in i[0]])),
        UnsafeError,
        "has no manifest",
    ),
    "local header lies": (_patched(b"PK\3\4\x14\0\0", b"PK\3\4\x14\0\1"), UnsafeError, "is not its header"),
    "hidden symlink": (
        lambda raw, contents: raw.replace(
            (0o100644 << 16).to_bytes(4, "little"), (0o120777 << 16).to_bytes(4, "little")
        ),
        UnsafeError,
        "is not put together",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_zip_is_refused_before_anything_is_written(packed: Path, tmp_path: Path, name: str) -> None:
    """Nothing appears, not even for a moment, next to a zip that is not exactly as dlth makes it."""
    make, error, match = HOSTILE[name]
    packed.write_bytes(make(packed.read_bytes(), members(packed)))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(error, match=match):
        unpack(packed, tmp_path / "out.zarr")
    assert sorted(tmp_path.rglob("*")) == before


def test_sizes_that_lie_are_refused_before_they_are_read(packed: Path) -> None:
    """A directory that claims a huge file, or more files than there are bytes, allocates nothing."""
    raw = packed.read_bytes()
    place = raw.index(b"PK\1\2")
    packed.write_bytes(raw[: place + 24] + b"\xff\xff\xff\x7f" + raw[place + 28 :])
    with pytest.raises(LimitError, match="has 2147483647 bytes, the bound is"):
        Archive(packed)
    packed.write_bytes(raw[:-22] + raw[-22:-12] + b"\xff\xff" + raw[-10:])
    with pytest.raises(UnsafeError, match="do not fit together"):
        Archive(packed)


def test_every_flipped_byte_is_found(packed: Path, tmp_path: Path) -> None:
    """One changed byte anywhere in the zip, headers included: refused, and nothing is left behind."""
    raw = packed.read_bytes()
    for place in range(0, len(raw), 7):
        packed.write_bytes(raw[:place] + bytes([raw[place] ^ 0x10]) + raw[place + 1 :])
        with pytest.raises(DlthError):
            unpack(packed, tmp_path / "out.zarr")
        assert not (tmp_path / "out.zarr").exists()


def test_nothing_is_overwritten(packed: Path, store_path: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="exists and is not overwritten"):
        unpack(packed, store_path)
    with pytest.raises(InputError, match="exists and is not overwritten"):
        pack(TicketStore(store_path), packed)
    with pytest.raises(MissingFileError, match="there is no file"):
        unpack(tmp_path / "none.zip", tmp_path / "out.zarr")
    with pytest.raises(MissingFileError, match="there is no folder"):
        unpack(packed, tmp_path / "no" / "out.zarr")
    os.mkfifo(tmp_path / "fifo.zip")
    with pytest.raises(UnsafeError, match="not a regular file"):
        unpack(tmp_path / "fifo.zip", tmp_path / "out.zarr")


def test_a_damaged_file_is_not_packed(store_path: Path, tmp_path: Path) -> None:
    """A chunk that changed on disk is named, and no zip appears."""
    store = TicketStore(store_path)
    flip(store_path / "keys/c.1.0.0", 80)
    with pytest.raises(DamageError, match=r"keys/c\.1\.0\.0 \(shard toy-000001\.tar\) is damaged"):
        pack(store, tmp_path / "out.zip")
    assert not (tmp_path / "out.zip").exists()
