"""Exploits in ticket files."""

import gzip
import json
import pickle
import struct
from pathlib import Path

import numpy as np
from hostile.exploit_tools import Action, Exploit, Payload, tar, ticket, use_shards, use_tickets, use_zarr
from makers.pictures import make_image, make_picture
from makers.tampering import (
    Change,
    Fifo,
    Folder,
    Link,
    Socket,
    Tree,
    attack,
    edit,
    lying_frame,
    put_in_place,
    signed_anew,
    stored,
)
from makers.tickets import make_store
from numcodecs import Pickle, Zlib
from numcodecs.zstd import Zstd

from dlth.tickets import TicketStore


def t01(canary: Path, secret: Path) -> list[Exploit]:
    """Code by the pickle codec of Zarr v2, and by codec names."""

    def v2(filters: list[str], compressor: str | None, whole: bool) -> Change:
        bomb = bytes(Pickle().encode(np.array([Payload(canary)], dtype=object)))
        content = Zlib().encode(bomb) if compressor == "zlib" else bomb
        meta = {
            "zarr_format": 2,
            "shape": [1],
            "chunks": [1],
            "dtype": "|O",
            "fill_value": None,
            "order": "C",
            "filters": [{"id": name} for name in filters] or None,
            "compressor": {"id": compressor} if compressor else None,
        }
        files: Tree = {"patches/.zarray": json.dumps(meta).encode(), "patches/0": bytes(content)}
        group: Tree = {".zgroup": b'{"zarr_format":2}', **files}
        return lambda tree: (
            group if whole else {name: item for name, item in tree.items() if "patches" not in name} | files
        )

    def codec(name: str) -> Change:
        def change(tree: Tree) -> Tree:
            meta = json.loads(tree["patches/zarr.json"])
            meta["codecs"] = [{"name": name, "configuration": {}}]
            bomb = pickle.dumps(Payload(canary))
            return tree | {"patches/zarr.json": json.dumps(meta).encode(), "patches/c.0.0.0": bomb}

        return change

    def exploit(name: str, change: Change, naive: bool = True) -> Exploit:
        return Exploit(f"T01 {name}", ticket(change), use_tickets, use_zarr if naive else None)

    zmetadata = json.dumps({"zarr_consolidated_format": 1, "metadata": {".zgroup": {"zarr_format": 2}}}).encode()
    return [
        exploit("vlen-utf8 and pickle", v2(["vlen-utf8", "pickle"], None, True)),
        exploit("vlen-bytes and pickle", v2(["vlen-bytes", "pickle"], None, True)),
        exploit("pickle as compressor", v2(["vlen-utf8"], "pickle", True)),
        exploit("pickle in one array", v2(["vlen-utf8", "pickle"], None, False), naive=False),
        exploit("pickle alone", v2(["pickle"], "zlib", True), naive=False),
        exploit("codec pickle", codec("numcodecs.pickle"), naive=False),
        exploit("codec by import", codec("os.system"), naive=False),
        exploit("consolidated", lambda tree: tree | {".zmetadata": zmetadata}, naive=False),
    ]


def t06(canary: Path, secret: Path) -> list[Exploit]:
    """Chunks that unpack to a gigabyte."""
    bomb = bytes(Zstd(level=1).encode(bytes(2**30)))
    claims = b"\x28\xb5\x2f\xfd\xe0" + struct.pack("<Q", 2**40) + b"\x01\0\0"
    lying = lying_frame(bytes(2**22), 80)
    frames = {
        "zstd bomb": bomb,
        "claims a terabyte": claims,
        "lying frame": lying,
        "gzip": gzip.compress(bytes(2**24)),
        "many frames": bytes(Zstd().encode(bytes(80))) * 5,
    }

    def naive(folder: Path) -> str:
        Zstd().decode((folder / "t.zarr/patches/c.0.0.0").read_bytes()[:-4])
        return "wrong: decoded to any size"

    return [
        Exploit(
            f"T06 {name}",
            ticket(lambda tree, f=content: tree | {"patches/c.0.0.0": f + b"\0\0\0\0"}),
            use_tickets,
            naive if name == "zstd bomb" else None,
        )
        for name, content in frames.items()
    ]


def t07(canary: Path, secret: Path) -> list[Exploit]:
    """Metadata with absurd values."""
    meta, shape = "patches/zarr.json", "shape"
    deep = b'{"a":' + b"[" * 20_000 + b"]" * 20_000 + b"}"
    changes: dict[str, Change] = {
        "shape 1e15": edit(meta, shape, 0, value=10**15),
        "shape 2**70": edit(meta, shape, 0, value=2**70),
        "thousand axes": edit(meta, shape, value=[1] * 1_000),
        "chunk 0": edit(meta, "chunk_grid", "configuration", "chunk_shape", 1, value=0),
        "chunk 1": edit(meta, "chunk_grid", "configuration", "chunk_shape", 1, value=1),
        "deep": lambda tree: tree | {meta: deep},
        "huge attributes": edit(meta, "attributes", value={"x": "y" * 10**7}),
        "twice": lambda tree: tree | {meta: tree[meta].replace(b"{", b'{"shape":[1],', 1)},
        "grid of 2**62": edit("zarr.json", "attributes", "dlth_tickets", "grid", value={"rows": 2**31, "cols": 2**31}),
    }
    return [
        Exploit(f"T07 {name}", ticket(change), use_tickets, use_zarr if name == "shape 1e15" else None)
        for name, change in changes.items()
    ]


def t08(canary: Path, secret: Path) -> list[Exploit]:
    """Patch numbers outside the grid, or twice."""

    def cell(*place: int, value: int) -> Change:
        return stored("patches/c.1.0.0", lambda chunk: chunk.__setitem__(place, value))

    places = {"first row": cell(0, 0, value=16), "last row": cell(4, 15, value=254), "one fill": cell(2, 3, value=255)}
    return [Exploit(f"T08 {name}", ticket(change), use_tickets, use_zarr) for name, change in places.items()]


def t09(canary: Path, secret: Path) -> list[Exploit]:
    """Links, devices, odd names."""
    chunk = "patches/c.0.0.0"
    items: dict[str, Tree] = {
        "link to a secret": {chunk: Link(str(secret))},
        "link upwards": {chunk: Link("../../../secret.txt")},
        "link to a device": {chunk: Link("/dev/zero")},
        "manifest is a link": {"manifest/c.0": Link(str(secret))},
        "header is a FIFO": {"zarr.json": Fifo()},
        "chunk is a FIFO": {chunk: Fifo()},
        "socket": {chunk: Socket()},
        "folder": {chunk: Folder()},
        "long name": {"n" * 255: b""},
        "twin": {"patches/C.0.0.0": b""},
        "code beside": {"zarr.py": b"import os; os.abort()", "sitecustomize.py": b"import os; os.abort()"},
    }
    return [
        Exploit(
            f"T09 {name}",
            ticket(lambda tree, new=new: tree | new),
            use_tickets,
            use_zarr if name in ("link to a secret", "chunk is a FIFO") else None,
        )
        for name, new in items.items()
    ]


def t14(canary: Path, secret: Path) -> list[Exploit]:
    """Right format, wrong data."""

    def swapped(tree: Tree) -> Tree:
        return tree | {"images/c.0.0.0": tree["images/c.1.0.0"], "images/c.1.0.0": tree["images/c.0.0.0"]}

    def twice(tree: Tree) -> Tree:
        return tree | {"keys/c.2.0.0": tree["keys/c.0.0.0"], "images/c.2.0.0": tree["images/c.0.0.0"]}

    def gone(tree: Tree) -> Tree:
        return {name: item for name, item in tree.items() if name != "patches/c.2.0.0"}

    return [
        Exploit(f"T14 {change.__name__}", ticket(change, sign=False), use_tickets, use_zarr)
        for change in (swapped, twice, gone)
    ]


def t15(canary: Path, secret: Path) -> list[Exploit]:
    """Files of two sound ticket files in one, and an older file in the place of a newer one."""

    def mixed(signed: bool) -> Action:
        def make(folder: Path) -> None:
            path = make_store(folder / "t.zarr")
            other = make_store(folder / "u.zarr", creator="old", keep="0.3", k=5)
            (folder / "pin").write_text(TicketStore(path).identity)
            mix = put_in_place("zarr.json", (other / "zarr.json").read_bytes())
            attack(path, mix, *([signed_anew] if signed else []))

        return make

    def pinned(folder: Path) -> None:
        """What a resumed run does: compare the identity that it began with."""
        from dlth.tickets.errors import MismatchError

        begun_with = (folder / "pin").read_text()
        use_tickets(folder)
        if TicketStore(folder / "t.zarr").identity != begun_with:
            raise MismatchError("another ticket file than the run began with")

    return [
        Exploit("T15 mix", mixed(False), use_tickets, use_zarr),
        Exploit("T15 signed mix is another identity", mixed(True), pinned, use_zarr),
    ]


def t16(canary: Path, secret: Path) -> list[Exploit]:
    """Text from a file on a terminal."""
    odd = "\x1b]0;owned\x07\x1b[2J\u202e\r\n" + "x" * 5_000
    picture = make_image(make_picture(1))

    def shard_name(tree: Tree) -> Tree:
        manifest = json.loads(tree["manifest/c.0"])
        manifest["shards"][0]["name"] = odd[:900]
        changed = tree | {"manifest/c.0": json.dumps(manifest).encode()}
        return stored("patches/c.0.0.0", lambda chunk: chunk.__setitem__(0, 99))(changed)

    def naive(folder: Path) -> str:
        name = json.loads((folder / "t.zarr/manifest/c.0").read_bytes())["shards"][0]["name"]
        return "" if f"cannot read shard {name}".isprintable() else "wrong: the terminal obeys the file"

    twice = [(f"{odd[:20]}.jpg", picture), (f"{odd[:20]}.png", picture)]
    return [
        Exploit("T16 shard name", ticket(shard_name), use_tickets, naive),
        Exploit("T16 header field", ticket(edit("zarr.json", "attributes", "dlth_tickets", odd, value=1)), use_tickets),
        Exploit("T16 form", ticket(edit("zarr.json", "attributes", "dlth_tickets", "form", value=odd)), use_tickets),
        Exploit("T16 file name", ticket(lambda tree: tree | {"\x1b[2J\n": b""}), use_tickets),
        Exploit("T16 key", tar("a.tar", twice), use_shards("a.tar")),
        Exploit("T16 shard address", lambda folder: None, use_shards(odd)),
    ]


def exploits(canary: Path, secret: Path) -> list[Exploit]:
    """All of this file; commands leave `canary`, and `secret` must not be read."""
    return [exploit for make in (t01, t06, t07, t08, t09, t14, t15, t16) for exploit in make(canary, secret)]
