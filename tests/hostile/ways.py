"""The random ways to change a ticket file: each takes a tree, changes it, and knows nothing of the checks."""

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from makers.tampering import Fifo, Folder, Link, Socket, Tree, decoded, flipped, lying_frame, sizeless_frame
from numcodecs.zstd import Zstd

from dlth.tickets.format.chunks import encode


@dataclass(frozen=True)
class Material:
    """What the attacker has besides: other sound files, and the path of a file outside that must not be read."""

    others: list[Tree]
    secret: Path


Way = Callable[[Tree, random.Random, Material], Tree]


def _files(tree: Tree, part: str = "") -> list[str]:
    return sorted(name for name, item in tree.items() if isinstance(item, bytes) and part in name)


def _chunks(tree: Tree) -> list[str]:
    return [name for name in _files(tree, "/c.") if not name.startswith("manifest")]


def flip(tree: Tree, rng: random.Random, material: Material) -> Tree:
    """One bit of one file."""
    return _flipped(tree, rng, 1)


def flips(tree: Tree, rng: random.Random, material: Material) -> Tree:
    """2 to 64 bits of one file."""
    return _flipped(tree, rng, rng.randint(2, 64))


def _flipped(tree: Tree, rng: random.Random, count: int) -> Tree:
    name = rng.choice(_files(tree))
    raw = tree[name]
    for _ in range(count):
        raw = flipped(raw, 8 * rng.randrange(len(raw)) + rng.randrange(8))
    return tree | {name: raw}


def cut(tree: Tree, rng: random.Random, material: Material) -> Tree:
    """A file ends early; at 0 often."""
    name = rng.choice(_files(tree))
    return tree | {name: tree[name][: rng.choice((0, 1, -1, rng.randrange(len(tree[name]))))]}


def grow(tree: Tree, rng: random.Random, material: Material) -> Tree:
    """Bytes after the end: zeros, noise, or the file again."""
    name = rng.choice(_files(tree))
    return tree | {name: tree[name] + rng.choice((bytes(rng.randint(1, 40)), rng.randbytes(9), tree[name], b"\n"))}


def blank(tree: Tree, rng: random.Random, material: Material) -> Tree:
    """A stretch of a file becomes zeros, ones or noise, as a lost disk block does."""
    name = rng.choice(_files(tree))
    raw = bytearray(tree[name])
    start = rng.randrange(len(raw))
    size = rng.randint(1, len(raw) - start)
    raw[start : start + size] = rng.choice((bytes(size), b"\xff" * size, rng.randbytes(size)))
    return tree | {name: bytes(raw)}


def delete(tree: Tree, rng: random.Random, material: Material) -> Tree:
    """One file, or one folder, is gone."""
    gone = rng.choice([*_files(tree), *sorted({name.split("/")[0] for name in tree if "/" in name})])
    return {name: item for name, item in tree.items() if name != gone and not name.startswith(f"{gone}/")}


def _pair(tree: Tree, rng: random.Random) -> list[str]:
    """Two chunks, of the same array more often than not."""
    array = rng.choice(_chunks(tree)).split("/")[0]
    return rng.sample(_files(tree, f"{array}/c.") if rng.random() < 0.7 else _chunks(tree), 2)


def swap(tree: Tree, rng: random.Random, material: Material) -> Tree:
    """Two files change places."""
    first, second = _pair(tree, rng) if rng.random() < 0.9 else rng.sample(_files(tree), 2)
    return tree | {first: tree[second], second: tree[first]}


def duplicate(tree: Tree, rng: random.Random, material: Material) -> Tree:
    """One shard's chunk stands in another's place too."""
    first, second = _pair(tree, rng)
    return tree | {first: tree[second]}


def mix(tree: Tree, rng: random.Random, material: Material) -> Tree:
    """Files of another sound ticket file under the same names: a few, a shard's, an array's, all but the manifest's."""
    other = rng.choice(material.others)
    shared = sorted(tree.keys() & other.keys())
    name = rng.choice(_chunks(tree))
    choices = (
        rng.sample(shared, min(len(shared), rng.choice((1, 2, 5)))),
        [path for path in shared if f"c.{name.split('.')[1]}." in path and not path.startswith("manifest")],
        [path for path in shared if path.startswith(name.split("/")[0])],
        [path for path in shared if not path.startswith("manifest")],
    )
    return tree | {path: other[path] for path in rng.choice(choices)}


def link(tree: Tree, rng: random.Random, material: Material) -> Tree:
    """A link in place of a file: within, outside, to a device, to itself, to nothing, to a folder."""
    name = rng.choice([*_files(tree), "patches", "keys", "extra", "patches/extra"])
    targets = (
        "zarr.json",
        "../patches/c.0.0.0",
        str(material.secret),
        "/dev/zero",
        "/dev/random",
        ".",
        "/",
        "/nowhere",
    )
    return {path: item for path, item in tree.items() if not path.startswith(f"{name}/")} | {
        name: Link(rng.choice((*targets, Path(name).name, "/proc/self/mem")))
    }


def special(tree: Tree, rng: random.Random, material: Material) -> Tree:
    """A FIFO, a socket or a folder in place of a file or beside."""
    name = rng.choice([*_files(tree), "patches/c.9.0.0", "extra"])
    return tree | {name: rng.choice((Fifo(), Socket(), Folder()))}


FOREIGN = (
           "patches/.zarray", ".zgroup", ".zattrs", ".zmetadata", "patches/.zattrs", "patches/c.9.0.0",
           "patches/C.0.0.0",
           "Zarr.json", "ZARR.JSON", "patches/c.0.0.0.tmp", "patches/c/0/0/0", "extra/zarr.json", "a" * 255,
           "patches/c.0.0.0 ", "patches/c.0.0.0\u200b", "\u202egnp.exe", "\x1b[2J", "\n", "k\u0435ys/zarr.json",
           "__init__.py", "sitecustomize.py", "zarr.py", "numpy.py", ".partial", "manifest/c.1", "manifest/c.0.0",
           "keys/deep/er/file", "-rf", "con", "x\\..\\y")  # fmt: skip


def foreign(tree: Tree, rng: random.Random, material: Material) -> Tree:
    """A file that does not belong: Zarr v2 metadata, twins, code, odd names."""
    content = (b"", b"{}", b'{"zarr_format":2,"filters":[{"id":"pickle"}]}', b"import os; os.abort()")
    return tree | {rng.choice(FOREIGN): rng.choice(content)}


def foreign_folder(tree: Tree, rng: random.Random, material: Material) -> Tree:
    """An empty folder that does not belong."""
    return tree | {rng.choice(("extra", "c", "Patches", "patches/c", "\x1b", "store")): Folder()}


def rename(tree: Tree, rng: random.Random, material: Material) -> Tree:
    """A file under a name that is almost its own."""
    name = rng.choice(_files(tree))
    new = rng.choice((name.upper(), name + "0", name.replace("c.", "c/", 1), name.replace("/", "//", 1), f"x/{name}"))
    return {path: item for path, item in tree.items() if path != name} | {str(Path(new)): tree[name]}


VALUES: tuple[Any, ...] = (
                           None, True, False, 0, 1, -1, 2**31, 2**63, 2**70, 10**18, 1e308, 0.5, "",
           "x", "\x1b[2J\u202e",
                           "../../etc/passwd", [], [1] * 1000, {})  # fmt: skip


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, item in items for place in _places(item, (*path, key)))]


def _edited(raw: bytes, rng: random.Random) -> bytes:
    root = {"": json.loads(raw)}
    place = ("", *rng.choice(_places(root[""])))
    parent: Any = root
    for key in place[:-1]:
        parent = parent[key]
    action = rng.random()
    if action < 0.1 and len(place) > 1:
        del parent[place[-1]]
    elif action < 0.2 and isinstance(parent[place[-1]], dict):
        parent[place[-1]][rng.choice(("more", "", "__class__", "storage_transformers", "consolidated_metadata"))] = 1
    elif action < 0.3 and type(parent[place[-1]]) is int:
        parent[place[-1]] += rng.choice((-1, 1))
    else:
        parent[place[-1]] = rng.choice(VALUES)
    return json.dumps(root[""], sort_keys=True, separators=(",", ":")).encode()


def field(tree: Tree, rng: random.Random, material: Material) -> Tree:
    """One place of one metadata file: another value, one more field, one less."""
    name = rng.choice(_files(tree, "zarr.json"))
    return tree | {name: _edited(tree[name], rng)}


def manifest_field(tree: Tree, rng: random.Random, material: Material) -> Tree:
    """One place of the manifest."""
    return tree | {"manifest/c.0": _edited(tree["manifest/c.0"], rng)}


def text(tree: Tree, rng: random.Random, material: Material) -> Tree:
    """JSON that parsers disagree on: a key twice, NaN, depth, spaces, byte order marks, encodings, long numbers."""
    name = rng.choice([*_files(tree, "zarr.json"), "manifest/c.0"])
    raw = tree[name]
    forms: tuple[Callable[[], bytes], ...] = (
        lambda: raw.replace(b"{", b'{"zarr_format":2,', 1),
        lambda: raw.replace(b"{", b'{"shape":[1],', 1),
        lambda: raw.replace(b":3", b":NaN", 1),
        lambda: raw.replace(b":", b":" + b"[" * rng.choice((20, 5_000)), 1),
        lambda: raw.replace(b":3", b":" + b"3" * rng.choice((20, 5_000)), 1),
        lambda: b"\xef\xbb\xbf" + raw,
        lambda: raw.decode().encode("utf-16"),
        lambda: raw + rng.choice((b" ", b"\n", b"{}", b"\0")),
        lambda: raw.replace(b",", b", ", 1),
        lambda: raw.replace(b'"zarr', b'"\\u007aarr', 1),
        lambda: raw.replace(b"{", b"{" + b" " * 70_000, 1),
        lambda: b"",
        lambda: rng.choice((b"null", b"[]", b"{}", b'"x"', b"1", b"- &a [*a]")),
    )
    return tree | {name: rng.choice(forms)()}


def value(tree: Tree, rng: random.Random, material: Material) -> Tree:
    """Well-encoded chunks with other values: one cell, one row, rows exchanged, everything."""
    name = rng.choice(_chunks(tree))
    spec, chunk = decoded(tree, name)
    row = rng.randrange(len(chunk))
    floats = spec.dtype == "float32"
    new = (
        rng.choice((np.nan, np.inf, -np.inf, -1.0, 0.0, 1e30)) if floats else rng.choice((0, 1, 15, 16, 128, 254, 255))
    )
    kind = rng.randrange(5)
    if kind == 0:
        chunk.reshape(-1)[rng.randrange(chunk.size)] = new
    elif kind == 1:
        chunk[row] = new
    elif kind == 2:
        chunk[[0, row]] = chunk[[row, 0]]
    elif kind == 3:
        chunk[row] = chunk[0]
    else:
        chunk[...] = new
    return tree | {name: encode(spec, chunk)}


def frame(tree: Tree, rng: random.Random, material: Material) -> Tree:
    """zstd frames that lie: bombs, other sizes, several frames, no size, dictionaries, other formats."""
    name = rng.choice(_chunks(tree))
    content = bytes(Zstd().decode(tree[name][:-4]))
    whole = bytes(Zstd(level=1).encode(content))
    forms: tuple[Callable[[], bytes], ...] = (
        lambda: bytes(Zstd(level=1).encode(bytes(2**22))),
        lambda: lying_frame(bytes(2**22), len(content)),
        lambda: lying_frame(content, 2**32 - 1),
        lambda: whole + whole,
        lambda: b"\x50\x2a\x4d\x18\x04\0\0\0abcd" + whole,
        lambda: whole[:4] + bytes([whole[4] | rng.choice((1, 2, 3, 8, 16))]) + whole[5:],
        lambda: sizeless_frame(content),
        lambda: bytes(Zstd().encode(content[:-1])),
        lambda: bytes(Zstd().encode(content + b"\0")),
        lambda: bytes(Zstd(level=rng.randint(2, 19)).encode(content)),
        lambda: rng.choice((b"\x1f\x8b", b"\x02\x01\x13\x01", b"BZh9", b"\xfd7zXZ\0", b"")) + content,
        lambda: content,
    )
    return tree | {name: rng.choice(forms)() + tree[name][-4:]}


def untouched(tree: Tree, rng: random.Random, material: Material) -> Tree:
    """Nothing is changed; must open."""
    return tree


WAYS: dict[str, Way] = {way.__name__: way for way in (
    flip, flips, cut, grow, blank, delete, swap, duplicate, mix, link, special, foreign, foreign_folder, rename, field,
    manifest_field, text, value, frame, untouched)}  # fmt: skip
