"""Tampering with ticket files: a folder as a value, changes of it, and the attacker who digests everything anew.

A tree is what stands in the folder: path -> bytes of a regular file, or one of the few other things a folder can hold.
Trees are values, so a change is a function of a tree that knows nothing of the checks, and it is put in place and taken
back by their difference.
"""

import contextlib
import hashlib
import json
import os
import shutil
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numcodecs.zstd import Zstd

from dlth.tickets.format.chunks import encode
from dlth.tickets.format.header import TicketHeader
from dlth.tickets.format.layout import ArraySpec, Layout
from makers.tickets import tree_bytes


@dataclass(frozen=True)
class Link:
    """A symbolic link."""

    target: str


@dataclass(frozen=True)
class Fifo:
    """A named pipe that nobody writes to."""


@dataclass(frozen=True)
class Socket:
    """A socket that nobody listens at."""


@dataclass(frozen=True)
class Folder:
    """An empty folder."""


Tree = dict[str, "bytes | Link | Fifo | Socket | Folder"]
Change = Callable[[Tree], Tree]
MANIFEST = "manifest/c.0"


def put(path: Path, now: Tree, wanted: Tree) -> None:
    """Make the folder, which holds `now`, hold `wanted`."""
    for name in sorted((name for name in now if now[name] != wanted.get(name)), reverse=True):
        target = path / name
        if target.is_dir() and not target.is_symlink():
            shutil.rmtree(target)
        else:
            target.unlink(missing_ok=True)
    kept = {str(parent) for name in wanted for parent in Path(name).parents}
    for name in now:
        for folder in map(str, Path(name).parents):
            if folder not in kept and (path / folder).is_dir():
                shutil.rmtree(path / folder)
    for name in sorted(name for name in wanted if now.get(name) != wanted[name] or not os.path.lexists(path / name)):
        item, target = wanted[name], path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(item, bytes):
            target.write_bytes(item)
        elif isinstance(item, Link):
            target.symlink_to(item.target)
        elif isinstance(item, Fifo):
            os.mkfifo(target)
        elif isinstance(item, Folder):
            target.mkdir()
        else:
            with socket.socket(socket.AF_UNIX) as server, contextlib.chdir(target.parent):  # a socket's name is short
                server.bind(target.name)


def flipped(raw: bytes, bit: int) -> bytes:
    """One bit of a file's bytes is another; below 0 it is counted from the end."""
    place = bit // 8 % len(raw)
    return raw[:place] + bytes([raw[place] ^ 1 << bit % 8]) + raw[place + 1 :]


def flip(path: Path, bit: int) -> None:
    """The same in a file."""
    path.write_bytes(flipped(path.read_bytes(), bit))


def attack(path: Path, *changes: Change) -> None:
    """Change a sound ticket file; the last change may be `signed`."""
    sound: Tree = dict(tree_bytes(path))
    changed = sound
    for change in changes:
        changed = change(changed)
    put(path, sound, changed)


def canonical(manifest: dict[str, Any]) -> bytes:
    """The one text of a manifest."""
    return json.dumps(manifest, sort_keys=True, separators=(",", ":")).encode()


def signed(tree: Tree, **fields: Any) -> Tree:
    """List and digest everything anew that the manifest lists; `fields` replace those of the manifest."""
    manifest = json.loads(tree[MANIFEST])
    for name in manifest["files"]:
        item = tree.get(name)
        if isinstance(item, bytes):
            manifest["files"][name] = [len(item), hashlib.sha256(item).hexdigest()]
    return with_manifest(tree, canonical(manifest | fields))


def signed_anew(tree: Tree) -> Tree:
    """What an attacker does who can do all that a writer can: the manifest's totals are right, too."""
    try:
        shards = json.loads(tree[MANIFEST])["shards"]
        return signed(tree, **{name: sum(shard[name] for shard in shards) for name in ("rows", "skipped")})
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
        return tree  # he broke the manifest itself beyond repair


def with_manifest(tree: Tree, text: bytes) -> Tree:
    """Another text of the manifest, with the zarr.json that belongs to it."""
    meta = json.loads(tree["manifest/zarr.json"])
    meta["shape"] = meta["chunk_grid"]["configuration"]["chunk_shape"] = [len(text)]
    meta["attributes"] = {"identity": hashlib.sha256(text).hexdigest()}
    return tree | {MANIFEST: text, "manifest/zarr.json": canonical(meta)}


def put_in_place(name: str, item: Any) -> Change:
    """Something else stands in the place of a file or of a folder with all that is in it."""
    return lambda tree: {path: old for path, old in tree.items() if not path.startswith(f"{name}/")} | {name: item}


def edit(name: str, *place: str | int, value: Any) -> Change:
    """Set one place of one JSON file; `...` deletes it."""

    def change(tree: Tree) -> Tree:
        content = json.loads(tree[name])
        parent = content
        for key in place[:-1]:
            parent = parent[key]
        if value is ...:
            del parent[place[-1]]
        else:
            parent[place[-1]] = value
        return tree | {name: json.dumps(content).encode()}

    return change


def swap_text(name: str, old: bytes, new: bytes) -> Change:
    """Replace the first `old` of a file."""

    def change(tree: Tree) -> Tree:
        assert old in tree[name]
        return tree | {name: tree[name].replace(old, new, 1)}

    return change


def decoded(tree: Tree, name: str) -> tuple[ArraySpec, np.ndarray]:
    """The array that a chunk belongs to, and the chunk's values."""
    header = TicketHeader.from_json(json.loads(tree["zarr.json"])["attributes"]["dlth_tickets"])
    layout = Layout.of(header, *json.loads(tree["keys/zarr.json"])["shape"])
    spec = next(spec for spec in layout.arrays if name.startswith(f"{spec.name}/"))
    flat = np.frombuffer(Zstd().decode(tree[name][:-4]), np.dtype(spec.dtype).newbyteorder("<"))
    return spec, flat.reshape(spec.chunk).copy()


def stored(name: str, change: Callable[[np.ndarray], object]) -> Change:
    """Change the values of one chunk [rows, …], and encode it as zarr would."""

    def changed(tree: Tree) -> Tree:
        spec, chunk = decoded(tree, name)
        change(chunk)
        return tree | {name: encode(spec, chunk)}

    return changed


def reframed(name: str, frame: Callable[[bytes], bytes]) -> Change:
    """Replace a chunk's zstd frame by what `frame` makes of its content; the checksum stays."""
    return lambda tree: tree | {name: frame(bytes(Zstd().decode(tree[name][:-4]))) + tree[name][-4:]}


def lying_frame(content: bytes, claimed: int) -> bytes:
    """A frame of `content` whose header states another size."""
    frame = bytes(Zstd(level=1).encode(content))
    return b"\x28\xb5\x2f\xfd\xa0" + struct.pack("<I", claimed) + frame[5 + (1, 2, 4, 8)[frame[4] >> 6] :]


def sizeless_frame(content: bytes) -> bytes:
    """A valid frame of one raw block that states no size."""
    return b"\x28\xb5\x2f\xfd\0\x58" + ((len(content) << 3) | 1).to_bytes(3, "little") + content
