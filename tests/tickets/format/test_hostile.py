"""Files that lie on purpose: the attacker changes what he likes and digests everything anew.

Each attack is one function on a sound file's folder; each must be refused with its own reason, without opening anything
outside the folder, without a process or a connection, and within a few megabytes.
"""

import json
import os
import shutil
import sys
import tracemalloc
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from makers import tampering
from makers.tampering import (
    MANIFEST,
    Change,
    Fifo,
    Folder,
    Link,
    Socket,
    attack,
    canonical,
    edit,
    flip,
    lying_frame,
    put_in_place,
    reframed,
    signed,
    sizeless_frame,
    swap_text,
    with_manifest,
)
from makers.tickets import read_all
from numcodecs.zstd import Zstd

from dlth.tickets import TicketStore
from dlth.tickets.errors import DamageError, DlthError, LimitError, SchemaError, UnsafeError
from dlth.tickets.format.chunks import frame_size
from dlth.tickets.store.disk import read_file

Table = dict[type[DlthError], dict[str, tuple[Any, str]]]
"""By error and name: what is changed, and the message."""
MEMORY_BOUND = 32 * 2**20
WATCHED = ("open", "socket.connect", "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork")

events: list[tuple[str, str]] = []
watching = False


def _watch(event: str, args: tuple[Any, ...]) -> None:
    if watching and event in WATCHED and not (event == "open" and isinstance(args[0], int)):
        events.append((event, str(args[0])))


sys.addaudithook(_watch)  # cannot be removed; `watching` keeps it quiet outside these tests


def cases(table: Table) -> list[Any]:
    """The cases of a table as parameters: what is changed, the message, the error."""
    return [pytest.param(*case, error, id=name) for error, named in table.items() for name, case in named.items()]


def assert_refused(path: Path, error: type[DlthError], message: str) -> None:
    """Opening, reading all and verifying ends in `error`, and does nothing else."""
    global watching
    events.clear()
    tracemalloc.start()
    watching = True
    try:
        with pytest.raises(error, match=message):
            read_all(path)
    finally:
        watching = False
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    root = os.path.realpath(path)
    assert [event for event in events if event[0] != "open" or not event[1].startswith(root)] == []
    assert peak < MEMORY_BOUND


# --- the tree: nothing but the named regular files ---


CHUNK = "patches/c.0.0.0"
TREE: Table = {
    UnsafeError: {
        "link": (
            put_in_place(CHUNK, Link(f"../../sound/{CHUNK}")),
            "patches/c.0.0.0: only regular files, one folder deep",
        ),
        "link out": (put_in_place(MANIFEST, Link("/etc/hostname")), "manifest/c.0: only regular files"),
        "linked folder": (put_in_place("keys", Link("../sound/keys")), "keys: only regular files"),
        "FIFO": (put_in_place("gap/c.1.0", Fifo()), "gap/c.1.0: only regular files"),
        "FIFO as manifest": (put_in_place(MANIFEST, Fifo()), "manifest/c.0: only regular files"),
        "socket": (put_in_place("zarr.json", Socket()), "zarr.json: only regular files"),
        "folder as chunk": (
            put_in_place("images/c.0.0.0", Folder()),
            "images/c.0.0.0: only regular files, one folder deep",
        ),
        "foreign file": (
            put_in_place("patches/c.3.0.0", b"x"),
            "patches/c.3.0.0 .* does not belong into a ticket file; remove it",
        ),
        "foreign array": (put_in_place("extra/zarr.json", b"{}"), "extra/zarr.json .* does not belong"),
        "Zarr v2": (
            put_in_place("patches/.zarray", b'{"zarr_format":2,"filters":[{"id":"pickle"}]}'),
            "patches/.zarray .* does not belong",
        ),
        "case twin": (
            lambda tree: tree | {"patches/C.0.0.0": tree[CHUNK]},
            "patches/[cC].0.0.0: another entry has the same name but for its case",
        ),
    }
}


@pytest.mark.parametrize(("change", "message", "error"), cases(TREE))
def test_trees(store_path: Path, change: Change, error: type[DlthError], message: str) -> None:
    """Links, devices, foreign and doubled names are refused before any of them is opened."""
    shutil.copytree(store_path, store_path.parent / "sound")  # what links lead to is as it should be
    attack(store_path, change)
    assert_refused(store_path, error, message)


# --- metadata, digested anew ---

GROUP, ATTRIBUTES = "zarr.json", ("attributes", "dlth_tickets")
PATCHES = "patches/zarr.json"
NOT_AS_ASKED = "patches/zarr.json: is not what the header and 3 shards ask for"
METADATA: Table = {
    SchemaError: {
        "other attribute": (edit(GROUP, "attributes", "more", value=1), "must be a Zarr v3 group whose one"),
        "consolidated": (edit(GROUP, "consolidated_metadata", value={}), "must be a Zarr v3 group"),
        "array as group": (edit(GROUP, "node_type", value="array"), "must be a Zarr v3 group"),
        "no attributes": (edit(GROUP, "attributes", value=[]), "must be a Zarr v3 group"),
        "list as group": (put_in_place(GROUP, b"[]"), "must be a Zarr v3 group"),
        "next major": (edit(GROUP, *ATTRIBUTES, "version", value="2.0"), "this dlth reads 1.x; update dlth"),
        "other minor": (edit(GROUP, *ATTRIBUTES, "version", value="1.9"), "header is version 1.9, the man"),
        "unknown form": (edit(GROUP, *ATTRIBUTES, "form", value="best"), "must be one of full, top, mask"),
        "larger grid": (edit(GROUP, *ATTRIBUTES, "grid", "rows", value=5), NOT_AS_ASKED),
        "top of full": (edit(GROUP, *ATTRIBUTES, "form", value="top"), NOT_AS_ASKED),
        "deep": (swap_text(GROUP, b'"extensions":{}', b'"extensions":' + b"[" * 60 + b"]" * 60), "nested more than"),
        "very deep": (swap_text(GROUP, b'"extensions":{}', b'"extensions":' + b"[" * 9999 + b"]" * 9999), "nested"),
        "twice": (swap_text(GROUP, b'"k":6', b'"k":6,"k":6'), "zarr.json: .* a key appears twice"),
        "NaN": (swap_text(GROUP, b"0.485", b"NaN"), "NaN is not a number"),
        "huge number": (swap_text(GROUP, b'"k":6', b'"k":' + b"6" * 5000), "a whole number is out of range"),
        "no UTF-8": (swap_text(GROUP, b"toy", b"\xff\xff\xff"), "zarr.json: not the JSON"),
        "shape": (edit(PATCHES, "shape", 1, value=10**15), NOT_AS_ASKED),
        "shape as text": (edit(PATCHES, "shape", 0, value="3"), NOT_AS_ASKED),
        "true for 1": (edit(PATCHES, "chunk_grid", "configuration", "chunk_shape", 0, value=True), NOT_AS_ASKED),
        "tiny chunks": (edit(PATCHES, "chunk_grid", "configuration", "chunk_shape", 1, value=1), NOT_AS_ASKED),
        "type": (edit(PATCHES, "data_type", value="object"), NOT_AS_ASKED),
        "valid fill": (edit(PATCHES, "fill_value", value=0), NOT_AS_ASKED),
        "codec": (edit(PATCHES, "codecs", 1, value={"name": "numcodecs.pickle"}), NOT_AS_ASKED),
        "no checksum": (edit(PATCHES, "codecs", 2, value=...), NOT_AS_ASKED),
        "transformer": (edit(PATCHES, "storage_transformers", value=[{"name": "x"}]), NOT_AS_ASKED),
        "extra field": (edit(PATCHES, "more", value={"must_understand": False}), NOT_AS_ASKED),
        "separator": (edit(PATCHES, "chunk_key_encoding", "configuration", "separator", value="/"), NOT_AS_ASKED),
        "key shape": (edit("keys/zarr.json", "shape", value=[3]), "shape of three whole numbers"),
    },
    LimitError: {
        "huge file": (swap_text(GROUP, b'"k":6', b" " * 70_000 + b'"k":6'), "listed with at most 65536 bytes"),
        "key width": (edit("keys/zarr.json", "shape", 2, value=2**40), "number of key bytes must be from 1"),
    },
}


@pytest.mark.parametrize(("change", "message", "error"), cases(METADATA))
def test_metadata(store_path: Path, change: Change, error: type[DlthError], message: str) -> None:
    """Metadata that the header and sizes do not ask for is refused, however well it is digested."""
    attack(store_path, change, signed)
    assert_refused(store_path, error, message)


# --- the manifest ---

SHARD = {"name": "x.tar", "rows": 1, "skipped": 0}
FIELDS: Table = {
    SchemaError: {
        "unknown field": ({"more": 1}, "must be an object with the fields"),
        "other version": ({"version": "9.0"}, "this dlth reads 1.x"),
        "version as number": ({"version": 1}, "must be an object with the fields"),
        "wrong total": ({"rows": 11}, "its totals are wrong or its text is not canonical"),
        "wrong skipped total": ({"skipped": 0}, "its totals are wrong"),
        "wrong format": ({"format": "else"}, "its totals are wrong"),
        "content no digest": ({"content": "x"}, "content must be a sha256"),
        "shard name twice": ({"shards": [SHARD, SHARD]}, "the name 'x.tar' appears twice"),
        "shard name no text": ({"shards": [SHARD | {"name": 1}]}, "a name must be text"),
        "shard name surrogate": ({"shards": [SHARD | {"name": "\ud800"}]}, "a name must be text"),
        "negative rows": ({"shards": [SHARD | {"rows": -1}]}, "must be a whole number, got -1"),
        "more skipped than rows": ({"shards": [SHARD | {"skipped": 2}]}, "x.tar has 2 skipped of 1 rows"),
        "skipped as text": ({"shards": [SHARD | {"skipped": "0"}]}, "exactly name, rows and skipped"),
        "files no object": ({"files": []}, "files must be an object"),
        "digest no digest": ({"files": {"zarr.json": [1, "x"]}}, "zarr.json must have a size and a sha256"),
    },
    LimitError: {
        "shards no list": ({"shards": {}}, "shards must be a list"),
        "no shard": ({"shards": []}, "0 shards with 0 rows"),
        "too many shards": ({"shards": [SHARD] * 100_001}, "at most 100000"),
        "absurd rows": ({"shards": [SHARD | {"rows": 10**15}]}, "1 shards with 1000000000000000 rows"),
        "large rows": ({"shards": [SHARD | {"rows": 10**8}], "rows": 10**8, "skipped": 0}, "from 1 to 67108864"),
        "no files": ({"files": {}}, "zarr.json: must be listed"),
    },
}


@pytest.mark.parametrize(("fields", "message", "error"), cases(FIELDS))
def test_manifest_fields(store_path: Path, fields: dict[str, Any], error: type[DlthError], message: str) -> None:
    """A manifest with another field, type, total or size is refused before any size of it is used."""
    attack(store_path, partial(signed, **fields))
    assert_refused(store_path, error, message)


@pytest.mark.parametrize("name", ["../outside", "/etc/hostname", "patches/c.7.0.0", "zarr.json/../../x"])
def test_the_manifest_decides_no_path(store_path: Path, name: str) -> None:
    """File names follow from the layout; a path in the manifest is compared with them and never opened."""
    manifest = json.loads((store_path / "manifest/c.0").read_bytes())
    manifest["files"][name] = [1, "0" * 64]
    attack(store_path, partial(with_manifest, text=canonical(manifest)))
    assert_refused(store_path, SchemaError, f"must list 17 files; missing or unknown: {name}")
    del manifest["files"][name], manifest["files"]["gap/c.1.0"]
    attack(store_path, partial(with_manifest, text=canonical(manifest)))
    assert_refused(store_path, SchemaError, "missing or unknown: gap/c.1.0")


def test_a_manifest_has_one_text(store_path: Path) -> None:
    """Spaces, another key order or another escape would be another identity of the same file: refused."""
    raw = (store_path / "manifest/c.0").read_bytes()
    for other in (raw.replace(b":", b": ", 1), raw + b"\n", raw.replace(b"toy", b"\\u0074oy", 1)):
        attack(store_path, partial(with_manifest, text=other))
        assert_refused(store_path, SchemaError, "its text is not canonical")
    (store_path / "manifest/c.0").write_bytes(raw)
    assert_refused(
        store_path, DamageError, "manifest/c.0 is damaged: manifest/zarr.json states another length or sha256"
    )


def test_a_bound_on_the_manifest(store_path: Path) -> None:
    """A manifest of 64 MiB and more is not read (the file is sparse and costs no disk)."""
    os.truncate(store_path / "manifest/c.0", 2**40)
    assert_refused(store_path, LimitError, r"manifest/c.0 has 1099511627776 bytes, the bound is 67108864")


def test_a_bound_on_chunks(store_path: Path) -> None:
    """A chunk that its manifest lists as larger than its content can be is not read."""
    manifest = json.loads((store_path / "manifest/c.0").read_bytes())
    manifest["files"]["keys/c.0.0.0"][0] = 2**40
    attack(store_path, partial(with_manifest, text=canonical(manifest)))
    os.truncate(store_path / "keys/c.0.0.0", 2**40)
    assert_refused(store_path, LimitError, r"keys/c.0.0.0 has 1099511627776 bytes, the bound is 1084")


# --- chunks, digested anew ---

IN_TWO = "the key 'n0000_0' stands in the shards toy-000000.tar and toy-000002.tar"
FIRST_ROWS = "the key 'n0000_0' stands in rows 0 and 1"
ODD_KEY = "a key is empty or has bytes after its end"


def stored(array: str, shard: int, change: Callable[[np.ndarray], object]) -> Change:
    """Other values in one chunk, encoded as zarr would."""
    return tampering.stored(f"{array}/c.{shard}.0" + ".0" * (array != "gap"), change)


def at(*place: int, value: Any) -> Callable[[np.ndarray], None]:
    return lambda chunk: chunk.__setitem__(place, value)


def framed(frame: Callable[[bytes], bytes]) -> Change:
    """Another zstd frame of a chunk of 80 bytes."""
    return reframed(CHUNK, frame)


CHUNKS: Table = {
    DamageError: {
        "index outside": (stored("patches", 0, at(2, 5, value=16)), "toy-000000.tar.* outside 0 … 15 .found 16"),
        "index outside, last row": (stored("patches", 1, at(3, 15, value=254)), "row 3 names a patch outside"),
        "one fill value": (stored("patches", 0, at(1, 0, value=255)), "row 1 names a patch outside 0 … 15"),
        "index twice": (
            stored("patches", 0, lambda chunk: at(0, 0, value=chunk[0, 1])(chunk)),
            "row 0 names a patch twice",
        ),
        "hidden skip": (stored("patches", 0, at(0, value=255)), "1 rows are skipped, the manifest says 0"),
        "padding": (stored("patches", 0, at(4, 3, value=0)), "padding after the last row is not the fill value"),
        "negative gap": (stored("gap", 0, at(0, value=-1.0)), "row 0 has the gap -1.0"),
        "NaN gap": (stored("gap", 2, at(1, value=np.nan)), "toy-000002.tar.*row 1 has the gap nan"),
        "gap of a skipped row": (stored("gap", 1, at(4, value=0.5)), "row 4 has the gap 0.5"),
        "gap padding": (stored("gap", 0, at(4, value=0.0)), "padding after the last row"),
        "empty key": (stored("keys", 0, at(1, value=0)), ODD_KEY),
        "key after its end": (stored("keys", 0, at(1, 11, value=65)), ODD_KEY),
        "key no UTF-8": (stored("keys", 0, at(1, 0, value=255)), "a key is not valid UTF-8"),
        "key twice": (stored("keys", 0, lambda chunk: at(1, value=chunk[0])(chunk)), FIRST_ROWS),
        "key padding": (stored("keys", 0, at(4, 0, value=65)), "padding after the last row"),
        "key in two shards": (stored("keys", 2, at(0, 4, value=ord("0"))), IN_TWO),
        "other content": (stored("images", 0, at(0, 0, value=0)), "the image hashes give the content"),
        "bomb": (
            framed(lambda _: bytes(Zstd(level=1).encode(bytes(2**22)))),
            "not one zstd frame of 80 bytes .its header says 4194304",
        ),
        "lying bomb": (framed(lambda _: lying_frame(bytes(2**22), 80)), "the zstd frame is broken"),
        "no size": (framed(sizeless_frame), "its header says None"),
        "two frames": (framed(lambda c: bytes(Zstd().encode(c)) * 2), "the zstd frame is broken|not one zstd frame"),
        "short content": (framed(lambda c: bytes(Zstd().encode(c[:-1]))), "its header says 79"),
        "no frame": (framed(lambda _: b""), "its header says None"),
        "gzip": (framed(lambda _: b"\x1f\x8b" + bytes(40)), "its header says None"),
    }
}


@pytest.mark.parametrize(("change", "message", "error"), cases(CHUNKS))
def test_chunks(store_path: Path, change: Change, error: type[DlthError], message: str) -> None:
    """Values that no writer could have written are refused at the first read, or in verify where they span shards."""
    attack(store_path, change, signed)
    assert_refused(store_path, error, message)


def test_a_changed_but_valid_file_has_another_identity(store_path: Path) -> None:
    """What an attacker may do is make another valid file: it opens, under an identity of its own."""
    before = TicketStore(store_path)
    ranking = before.patches(0)[0].copy()
    attack(store_path, stored("patches", 0, at(0, slice(None), value=ranking[::-1])), signed)
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


def test_errors_show_nothing_raw(store_path: Path) -> None:
    """Names from a file reach a terminal escaped and cut."""
    name = "\x1b[2J\n\u202e" + "x" * 500
    attack(store_path, edit(MANIFEST, "shards", 0, "name", value=name), signed)
    flip(store_path / CHUNK, -8)
    with pytest.raises(DamageError) as caught:
        TicketStore(store_path).read(0)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 600
