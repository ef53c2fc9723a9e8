"""Files that lie on purpose: the attacker changes what he likes and digests everything anew.

Each attack is one function on a sound file's folder; each must be refused with its own reason, without opening anything
outside the folder, without a process or a connection, and within a few megabytes.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numcodecs.zstd import Zstd

from dlth.tickets import TicketStore
from dlth.tickets.chunks import decode, encode, frame_size
from dlth.tickets.disk import read_file
from dlth.tickets.errors import DamageError, DlthError, LimitError, SchemaError, UnsafeError

Attack = Callable[[Path], None]
MEMORY_BOUND = 32 * 2**20
WATCHED = ("open", "socket.connect", "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork")

events: list[tuple[str, str]] = []
watching = False


def _watch(event: str, args: tuple[Any, ...]) -> None:
    if watching and event in WATCHED and not (event == "open" and isinstance(args[0], int)):
        events.append((event, str(args[0])))


sys.addaudithook(_watch)  # cannot be removed; `watching` keeps it quiet outside these tests


def use(path: Path) -> None:
    """Open, read every shard, verify; the first finding is raised."""
    store = TicketStore(path)
    for shard in range(len(store.shards)):
        store.read(shard)
    for finding in store.verify():
        raise finding


def refused(path: Path, error: type[DlthError], message: str) -> None:
    """Opening, reading all and verifying ends in `error`, and does nothing else."""
    global watching
    events.clear()
    tracemalloc.start()
    watching = True
    try:
        with pytest.raises(error, match=message):
            use(path)
    finally:
        watching = False
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    root = os.path.realpath(path)
    assert [event for event in events if event[0] != "open" or not event[1].startswith(root)] == []
    assert peak < MEMORY_BOUND


# --- the tree: nothing but the named regular files ---


def link(path: Path) -> None:
    (path / "patches/c.0.0.0").rename(path.parent / "moved")
    (path / "patches/c.0.0.0").symlink_to(path.parent / "moved")


def link_out(path: Path) -> None:
    (path / "manifest/c.0").unlink()
    (path / "manifest/c.0").symlink_to("/etc/hostname")


def linked_folder(path: Path) -> None:
    (path / "keys").rename(path.parent / "keys")
    (path / "keys").symlink_to(path.parent / "keys")


def fifo(path: Path) -> None:
    (path / "gap/c.1.0").unlink()
    os.mkfifo(path / "gap/c.1.0")


def fifo_manifest(path: Path) -> None:
    (path / "manifest/c.0").unlink()
    os.mkfifo(path / "manifest/c.0")


def listening_socket(path: Path) -> None:
    (path / "zarr.json").unlink()
    here = os.getcwd()
    os.chdir(path)  # a socket's path is short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("zarr.json")
    os.chdir(here)


def folder_as_chunk(path: Path) -> None:
    (path / "images/c.0.0.0").unlink()
    (path / "images/c.0.0.0").mkdir()


def foreign_file(path: Path) -> None:
    (path / "patches/c.3.0.0").write_bytes(b"x")


def foreign_array(path: Path) -> None:
    (path / "extra").mkdir()
    (path / "extra/zarr.json").write_text("{}")


def zarr_v2(path: Path) -> None:
    (path / "patches/.zarray").write_text('{"zarr_format":2,"filters":[{"id":"pickle"}]}')


def case_twin(path: Path) -> None:
    (path / "patches/C.0.0.0").write_bytes((path / "patches/c.0.0.0").read_bytes())


TREE: list[tuple[Attack, type[DlthError], str]] = [
    (link, UnsafeError, "patches/c.0.0.0: only regular files, one folder deep"),
    (link_out, UnsafeError, "manifest/c.0: only regular files"),
    (linked_folder, UnsafeError, "keys: only regular files"),
    (fifo, UnsafeError, "gap/c.1.0: only regular files"),
    (fifo_manifest, UnsafeError, "manifest/c.0: only regular files"),
    (listening_socket, UnsafeError, "zarr.json: only regular files"),
    (folder_as_chunk, UnsafeError, "images/c.0.0.0: only regular files, one folder deep"),
    (foreign_file, UnsafeError, "patches/c.3.0.0 .* does not belong into a ticket file; remove it"),
    (foreign_array, UnsafeError, "extra/zarr.json .* does not belong"),
    (zarr_v2, UnsafeError, "patches/.zarray .* does not belong"),
    (case_twin, UnsafeError, "patches/[cC].0.0.0: another entry has the same name but for its case"),
]


@pytest.mark.parametrize(("attack", "error", "message"), TREE, ids=[case[0].__name__ for case in TREE])
def test_trees(store_path: Path, attack: Attack, error: type[DlthError], message: str) -> None:
    """Links, devices, foreign and doubled names are refused before any of them is opened."""
    attack(store_path)
    refused(store_path, error, message)


# --- metadata, digested anew ---


def edited(name: str, *path: str | int, value: Any) -> Attack:
    """An attack that sets one place of one JSON file; `...` deletes it."""

    def attack(root: Path) -> None:
        content = json.loads((root / name).read_bytes())
        place = content
        for key in path[:-1]:
            place = place[key]
        if value is ...:
            del place[path[-1]]
        else:
            place[path[-1]] = value
        (root / name).write_text(json.dumps(content))

    return attack


def text(name: str, old: bytes, new: bytes) -> Attack:
    """An attack that replaces bytes of a file."""

    def attack(root: Path) -> None:
        raw = (root / name).read_bytes()
        assert old in raw
        (root / name).write_bytes(raw.replace(old, new, 1))

    return attack


GROUP, ATTRIBUTES = "zarr.json", ("attributes", "dlth_tickets")
PATCHES = "patches/zarr.json"
NOT_AS_ASKED = "patches/zarr.json: is not what the header and 3 shards ask for"
METADATA: list[tuple[str, Attack, type[DlthError], str]] = [
    ("other attribute", edited(GROUP, "attributes", "more", value=1), SchemaError, "must be a Zarr v3 group whose one"),
    ("consolidated", edited(GROUP, "consolidated_metadata", value={}), SchemaError, "must be a Zarr v3 group"),
    ("array as group", edited(GROUP, "node_type", value="array"), SchemaError, "must be a Zarr v3 group"),
    ("no attributes", edited(GROUP, "attributes", value=[]), SchemaError, "must be a Zarr v3 group"),
    ("list as group", lambda root: (root / GROUP).write_text("[]") and None, SchemaError, "must be a Zarr v3 group"),
    ("next major", edited(GROUP, *ATTRIBUTES, "version", value="2.0"), SchemaError, "this dlth reads 1.x; update dlth"),
    ("other minor", edited(GROUP, *ATTRIBUTES, "version", value="1.9"), SchemaError, "header is version 1.9, the man"),
    ("unknown form", edited(GROUP, *ATTRIBUTES, "form", value="best"), SchemaError, "must be one of full, top, mask"),
    ("larger grid", edited(GROUP, *ATTRIBUTES, "grid", "rows", value=5), SchemaError, NOT_AS_ASKED),
    ("top of full", edited(GROUP, *ATTRIBUTES, "form", value="top"), SchemaError, NOT_AS_ASKED),
    (
        "deep",
        text(GROUP, b'"extensions":{}', b'"extensions":' + b"[" * 60 + b"]" * 60),
        SchemaError,
        "nested more than",
    ),
    ("very deep", text(GROUP, b'"extensions":{}', b'"extensions":' + b"[" * 9999 + b"]" * 9999), SchemaError, "nested"),
    ("twice", text(GROUP, b'"k":6', b'"k":6,"k":6'), SchemaError, "zarr.json: .* a key appears twice"),
    ("NaN", text(GROUP, b"0.485", b"NaN"), SchemaError, "NaN is not a number"),
    ("huge number", text(GROUP, b'"k":6', b'"k":' + b"6" * 5000), SchemaError, "a whole number is out of range"),
    ("huge file", text(GROUP, b'"k":6', b" " * 70_000 + b'"k":6'), LimitError, "listed with at most 65536 bytes"),
    ("no UTF-8", text(GROUP, b"toy", b"\xff\xff\xff"), SchemaError, "zarr.json: not the JSON"),
    ("shape", edited(PATCHES, "shape", 1, value=10**15), SchemaError, NOT_AS_ASKED),
    ("shape as text", edited(PATCHES, "shape", 0, value="3"), SchemaError, NOT_AS_ASKED),
    (
        "true for 1",
        edited(PATCHES, "chunk_grid", "configuration", "chunk_shape", 0, value=True),
        SchemaError,
        NOT_AS_ASKED,
    ),
    (
        "tiny chunks",
        edited(PATCHES, "chunk_grid", "configuration", "chunk_shape", 1, value=1),
        SchemaError,
        NOT_AS_ASKED,
    ),
    ("type", edited(PATCHES, "data_type", value="object"), SchemaError, NOT_AS_ASKED),
    ("valid fill", edited(PATCHES, "fill_value", value=0), SchemaError, NOT_AS_ASKED),
    ("codec", edited(PATCHES, "codecs", 1, value={"name": "numcodecs.pickle"}), SchemaError, NOT_AS_ASKED),
    ("no checksum", edited(PATCHES, "codecs", 2, value=...), SchemaError, NOT_AS_ASKED),
    ("transformer", edited(PATCHES, "storage_transformers", value=[{"name": "x"}]), SchemaError, NOT_AS_ASKED),
    ("extra field", edited(PATCHES, "more", value={"must_understand": False}), SchemaError, NOT_AS_ASKED),
    (
        "separator",
        edited(PATCHES, "chunk_key_encoding", "configuration", "separator", value="/"),
        SchemaError,
        NOT_AS_ASKED,
    ),
    ("key width", edited("keys/zarr.json", "shape", 2, value=2**40), LimitError, "number of key bytes must be from 1"),
    ("key shape", edited("keys/zarr.json", "shape", value=[3]), SchemaError, "shape of three whole numbers"),
]


@pytest.mark.parametrize(("attack", "error", "message"), [case[1:] for case in METADATA], ids=[c[0] for c in METADATA])
def test_metadata(
    store_path: Path, resign: Callable[..., None], attack: Attack, error: type[DlthError], message: str
) -> None:
    """Metadata that the header and sizes do not ask for is refused, however well it is digested."""
    attack(store_path)
    resign(store_path)
    refused(store_path, error, message)


# --- the manifest ---

SHARD = {"name": "x.tar", "rows": 1, "skipped": 0}
MANIFEST: list[tuple[str, dict[str, Any], type[DlthError], str]] = [
    ("unknown field", {"more": 1}, SchemaError, "must be an object with the fields"),
    ("other version", {"version": "9.0"}, SchemaError, "this dlth reads 1.x"),
    ("version as number", {"version": 1}, SchemaError, "must be an object with the fields"),
    ("wrong total", {"rows": 11}, SchemaError, "its totals are wrong or its text is not canonical"),
    ("wrong skipped total", {"skipped": 0}, SchemaError, "its totals are wrong"),
    ("wrong format", {"format": "else"}, SchemaError, "its totals are wrong"),
    ("content no digest", {"content": "x"}, SchemaError, "content must be a sha256"),
    ("shards no list", {"shards": {}}, LimitError, "shards must be a list"),
    ("no shard", {"shards": []}, LimitError, "0 shards with 0 rows"),
    ("too many shards", {"shards": [SHARD] * 100_001}, LimitError, "at most 100000"),
    ("shard name twice", {"shards": [SHARD, SHARD]}, SchemaError, "the name 'x.tar' appears twice"),
    ("shard name no text", {"shards": [SHARD | {"name": 1}]}, SchemaError, "a name must be text"),
    ("shard name surrogate", {"shards": [SHARD | {"name": "\ud800"}]}, SchemaError, "a name must be text"),
    ("negative rows", {"shards": [SHARD | {"rows": -1}]}, SchemaError, "must be a whole number, got -1"),
    ("absurd rows", {"shards": [SHARD | {"rows": 10**15}]}, LimitError, "1 shards with 1000000000000000 rows"),
    (
        "large rows",
        {"shards": [SHARD | {"rows": 10**8}], "rows": 10**8, "skipped": 0},
        LimitError,
        "from 1 to 67108864",
    ),
    ("more skipped than rows", {"shards": [SHARD | {"skipped": 2}]}, SchemaError, "x.tar has 2 skipped of 1 rows"),
    ("skipped as text", {"shards": [SHARD | {"skipped": "0"}]}, SchemaError, "exactly name, rows and skipped"),
    ("files no object", {"files": []}, SchemaError, "files must be an object"),
    ("no files", {"files": {}}, LimitError, "zarr.json: must be listed"),
    ("digest no digest", {"files": {"zarr.json": [1, "x"]}}, SchemaError, "zarr.json must have a size and a sha256"),
]


@pytest.mark.parametrize(("fields", "error", "message"), [case[1:] for case in MANIFEST], ids=[c[0] for c in MANIFEST])
def test_manifest_fields(
    store_path: Path, resign: Callable[..., None], fields: dict[str, Any], error: type[DlthError], message: str
) -> None:
    """A manifest with another field, type, total or size is refused before any size of it is used."""
    resign(store_path, **fields)
    refused(store_path, error, message)


@pytest.mark.parametrize("name", ["../outside", "/etc/hostname", "patches/c.7.0.0", "zarr.json/../../x"])
def test_the_manifest_decides_no_path(store_path: Path, set_manifest: Callable[..., None], name: str) -> None:
    """File names follow from the layout; a path in the manifest is compared with them and never opened."""
    manifest = json.loads((store_path / "manifest/c.0").read_bytes())
    manifest["files"][name] = [1, "0" * 64]
    set_manifest(store_path, json.dumps(manifest, sort_keys=True, separators=(",", ":")).encode())
    refused(store_path, SchemaError, f"must list 17 files; missing or unknown: {name}")
    del manifest["files"][name], manifest["files"]["gap/c.1.0"]
    set_manifest(store_path, json.dumps(manifest, sort_keys=True, separators=(",", ":")).encode())
    refused(store_path, SchemaError, "missing or unknown: gap/c.1.0")


def test_a_manifest_has_one_text(store_path: Path, set_manifest: Callable[..., None]) -> None:
    """Spaces, another key order or another escape would be another identity of the same file: refused."""
    raw = (store_path / "manifest/c.0").read_bytes()
    for other in (raw.replace(b":", b": ", 1), raw + b"\n", raw.replace(b"toy", b"\\u0074oy", 1)):
        set_manifest(store_path, other)
        refused(store_path, SchemaError, "its text is not canonical")
    (store_path / "manifest/c.0").write_bytes(raw)
    refused(store_path, DamageError, "manifest/c.0 is damaged: manifest/zarr.json states another length or sha256")


def test_a_bound_on_the_manifest(store_path: Path) -> None:
    """A manifest of 64 MiB and more is not read (the file is sparse and costs no disk)."""
    os.truncate(store_path / "manifest/c.0", 2**40)
    refused(store_path, LimitError, r"manifest/c.0 has 1099511627776 bytes, the bound is 67108864")


def test_a_bound_on_chunks(store_path: Path, resign: Callable[..., None], set_manifest: Callable[..., None]) -> None:
    """A chunk that its manifest lists as larger than its content can be is not read."""
    manifest = json.loads((store_path / "manifest/c.0").read_bytes())
    manifest["files"]["keys/c.0.0.0"][0] = 2**40
    os.truncate(store_path / "keys/c.0.0.0", 2**40)
    set_manifest(store_path, json.dumps(manifest, sort_keys=True, separators=(",", ":")).encode())
    refused(store_path, LimitError, r"keys/c.0.0.0 has 1099511627776 bytes, the bound is 1084")


# --- chunks, digested anew ---

IN_TWO = "the key 'n0000_0' stands in the shards toy-000000.tar and toy-000002.tar"
FIRST_ROWS = "the key 'n0000_0' stands in rows 0 and 1"
ODD_KEY = "a key is empty or has bytes after its end"


def stored(array: str, shard: int, change: Callable[[np.ndarray], None]) -> Attack:
    """An attack that changes the values of one chunk [rows, …] and encodes it as zarr would."""

    def attack(root: Path) -> None:
        store = TicketStore(root)
        spec = getattr(store.layout, array)
        name = spec.chunk_file(shard)
        chunk = decode(spec, (root / name).read_bytes(), name)
        change(chunk)
        (root / name).write_bytes(encode(spec, chunk))

    return attack


def at(*place: int, value: Any) -> Callable[[np.ndarray], None]:
    return lambda chunk: chunk.__setitem__(place, value)


def swapped_frame(frame: Callable[[bytes], bytes]) -> Attack:
    """An attack that replaces the zstd frame of a patches chunk (80 bytes decoded)."""

    def attack(root: Path) -> None:
        chunk = root / "patches/c.0.0.0"
        chunk.write_bytes(frame(Zstd().decode(chunk.read_bytes()[:-4])) + b"\0\0\0\0")

    return attack


def bomb(_: bytes) -> bytes:
    return bytes(Zstd(level=1).encode(bytes(2**22)))


def lying_bomb(_: bytes) -> bytes:
    """4 MiB of zeros whose header claims 80 bytes."""
    frame = bytes(Zstd(level=1).encode(bytes(2**22)))
    assert frame[4] >> 6 == 2
    return frame[:4] + bytes([frame[4]]) + frame[5 : 5 + (frame[4] & 0x20 == 0)] + struct.pack("<I", 80) + frame[10:]


def sizeless(content: bytes) -> bytes:
    """A valid frame of one raw block that states no size."""
    return b"\x28\xb5\x2f\xfd\x00\x58" + ((len(content) << 3) | 1).to_bytes(3, "little") + content


CHUNKS: list[tuple[str, Attack, type[DlthError], str]] = [
    (
        "index outside",
        stored("patches", 0, at(2, 5, value=16)),
        DamageError,
        "toy-000000.tar.* outside 0 … 15 .found 16",
    ),
    ("index outside, last row", stored("patches", 1, at(3, 15, value=254)), DamageError, "row 3 names a patch outside"),
    ("one fill value", stored("patches", 0, at(1, 0, value=255)), DamageError, "row 1 names a patch outside 0 … 15"),
    (
        "index twice",
        stored("patches", 0, lambda chunk: at(0, 0, value=chunk[0, 1])(chunk)),
        DamageError,
        "row 0 names a patch twice",
    ),
    ("hidden skip", stored("patches", 0, at(0, value=255)), DamageError, "1 rows are skipped, the manifest says 0"),
    (
        "padding",
        stored("patches", 0, at(4, 3, value=0)),
        DamageError,
        "padding after the last row is not the fill value",
    ),
    ("negative gap", stored("gap", 0, at(0, value=-1.0)), DamageError, "row 0 has the gap -1.0"),
    ("NaN gap", stored("gap", 2, at(1, value=np.nan)), DamageError, "toy-000002.tar.*row 1 has the gap nan"),
    ("gap of a skipped row", stored("gap", 1, at(4, value=0.5)), DamageError, "row 4 has the gap 0.5"),
    ("gap padding", stored("gap", 0, at(4, value=0.0)), DamageError, "padding after the last row"),
    ("empty key", stored("keys", 0, at(1, value=0)), DamageError, ODD_KEY),
    ("key after its end", stored("keys", 0, at(1, 11, value=65)), DamageError, ODD_KEY),
    ("key no UTF-8", stored("keys", 0, at(1, 0, value=255)), DamageError, "a key is not valid UTF-8"),
    ("key twice", stored("keys", 0, lambda chunk: at(1, value=chunk[0])(chunk)), DamageError, FIRST_ROWS),
    ("key padding", stored("keys", 0, at(4, 0, value=65)), DamageError, "padding after the last row"),
    ("key in two shards", stored("keys", 2, at(0, 4, value=ord("0"))), DamageError, IN_TWO),
    ("other content", stored("images", 0, at(0, 0, value=0)), DamageError, "the image hashes give the content"),
    ("bomb", swapped_frame(bomb), DamageError, "not one zstd frame of 80 bytes .its header says 4194304"),
    ("lying bomb", swapped_frame(lying_bomb), DamageError, "the zstd frame is broken"),
    ("no size", swapped_frame(sizeless), DamageError, "its header says None"),
    (
        "two frames",
        swapped_frame(lambda c: bytes(Zstd().encode(c)) * 2),
        DamageError,
        "the zstd frame is broken|not one zstd frame",
    ),
    ("short content", swapped_frame(lambda c: bytes(Zstd().encode(c[:-1]))), DamageError, "its header says 79"),
    ("no frame", swapped_frame(lambda _: b""), DamageError, "its header says None"),
    ("gzip", swapped_frame(lambda _: b"\x1f\x8b" + bytes(40)), DamageError, "its header says None"),
]


@pytest.mark.parametrize(
    ("attack", "error", "message"), [case[1:] for case in CHUNKS], ids=[case[0] for case in CHUNKS]
)
def test_chunks(
    store_path: Path, resign: Callable[..., None], attack: Attack, error: type[DlthError], message: str
) -> None:
    """Values that no writer could have written are refused at the first read, or in verify where they span shards."""
    attack(store_path)
    resign(store_path)
    refused(store_path, error, message)


def test_a_changed_but_valid_file_has_another_identity(store_path: Path, resign: Callable[..., None]) -> None:
    """What an attacker may do is make another valid file: it opens, under an identity of its own."""
    before = TicketStore(store_path)
    ranking = before.patches(0)[0].copy()
    stored("patches", 0, at(0, slice(None), value=ranking[::-1]))(store_path)
    resign(store_path)
    after = TicketStore(store_path)
    assert after.verify() == []
    assert after.identity != before.identity
    assert after.content == before.content


def test_reading_one_file(tmp_path: Path) -> None:
    """Even if the tree changes after the scan: no link is followed, no FIFO or device waited for, no bound passed."""
    (tmp_path / "file").write_bytes(b"12345")
    (tmp_path / "link").symlink_to("file")
    os.mkfifo(tmp_path / "fifo")
    assert read_file(tmp_path / "file", 5, "it") == b"12345"
    cases: list[tuple[Path, type[DlthError], str]] = [
        (tmp_path / "link", UnsafeError, "it is a link or a device"),
        (tmp_path / "fifo", UnsafeError, "it is not a regular file"),
        (tmp_path, UnsafeError, "it is not a regular file"),
        (Path("/dev/zero"), UnsafeError, "it is not a regular file"),
    ]
    for path, error, message in cases:
        with pytest.raises(error, match=message):
            read_file(path, 5, "it")
    with pytest.raises(LimitError, match="it has 5 bytes, the bound is 4"):
        read_file(tmp_path / "file", 4, "it")


@pytest.mark.parametrize("size", [0, 1, 255, 256, 257, 65_535, 65_536, 65_791, 65_792, 10**6])
def test_frame_size_is_what_zstd_says(size: int) -> None:
    """The size field has four widths; each is read as the standard says."""
    assert frame_size(bytes(Zstd(level=1).encode(bytes(size)))[:18]) == size or size == 0


def test_errors_show_nothing_raw(store_path: Path, resign: Callable[..., None]) -> None:
    """Names from a file reach a terminal escaped and cut."""
    name = "\x1b[2J\n\u202e" + "x" * 500
    manifest = json.loads((store_path / "manifest/c.0").read_bytes())
    manifest["shards"][0]["name"] = name
    resign(store_path, shards=manifest["shards"])
    chunk = store_path / "patches/c.0.0.0"
    raw = chunk.read_bytes()
    chunk.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    with pytest.raises(DamageError) as caught:
        TicketStore(store_path).read(0)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 600
