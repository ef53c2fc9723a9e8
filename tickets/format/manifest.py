"""The manifest: what a finished file holds, with the digest of every other file in it.

Its text is canonical, so its sha256 is the identity of the whole: any changed byte is either refused or another
identity. It is written last; without it nothing is a ticket file. The names of files never come from it: they follow
from the header and the number of shards, and the manifest must list exactly those.
"""

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from dlth.tickets.errors import DamageError, LimitError, SchemaError, shown
from dlth.tickets.format.fields import MAX_TEXT, check_version
from dlth.tickets.format.header import FORMAT
from dlth.tickets.format.jsontext import Json, canonical, parse
from dlth.tickets.format.label_header import LabelHeader
from dlth.tickets.format.layout import HASH_BYTES, MAX_SHARDS, Array, StoredLayout

FileDigest = tuple[int, str]
"""Size in bytes and sha256 in hexadecimal."""

_SHA256 = re.compile(r"[0-9a-f]{64}")
_FIELDS = {"format", "version", "shards", "rows", "skipped", "content", "files"}
MAX_ROWS = 10**9
KINDS = (FORMAT, LabelHeader.kind)
"""What may stand as `format`: tickets, or token labels."""


@dataclass(frozen=True, slots=True)
class ShardSpec:
    """One shard as planned: its name and how many samples it holds."""

    name: str
    rows: int


@dataclass(frozen=True, slots=True)
class ShardEntry:
    """One shard as stored: its name, its rows, and how many of those are skipped (bad) images."""

    name: str
    rows: int
    skipped: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """The parsed manifest; `content` is sha256 over the sorted image hashes, `files` maps path to size and sha256.

    `format` is that of the header: what kind of file this is.
    """

    version: str
    shards: tuple[ShardEntry, ...]
    content: str
    files: dict[str, FileDigest]
    format: str = FORMAT

    @property
    def max_rows(self) -> int:
        """Rows of the largest shard."""
        return max(shard.rows for shard in self.shards)

    def text(self) -> bytes:
        """The canonical text; its sha256 is the identity."""
        return canonical(
            {
                "format": self.format,
                "version": self.version,
                "shards": [{"name": item.name, "rows": item.rows, "skipped": item.skipped} for item in self.shards],
                "rows": sum(shard.rows for shard in self.shards),
                "skipped": sum(shard.skipped for shard in self.shards),
                "content": self.content,
                "files": {name: list(digest) for name, digest in self.files.items()},
            }
        )

    @classmethod
    def from_text(cls, raw: bytes) -> "Manifest":
        """Strictly the inverse of `text`; raises SchemaError or LimitError."""
        value = parse(raw, "manifest")
        if not isinstance(value, dict) or set(value) != _FIELDS or not isinstance(value["version"], str):
            raise SchemaError(f"manifest: must be an object with the fields {', '.join(sorted(_FIELDS))}")
        check_version(value["version"])
        if not isinstance(value["content"], str) or not _SHA256.fullmatch(value["content"]):
            raise SchemaError("manifest: content must be a sha256")
        shards, files = _shards(value["shards"]), _files(value["files"])
        kind = next((kind for kind in KINDS if kind == value["format"]), FORMAT)
        result = cls(value["version"], shards, value["content"], files, kind)
        if result.text() != raw:
            raise SchemaError("manifest: its totals are wrong or its text is not canonical")
        return result

    def check_files(self, layout: StoredLayout) -> None:
        """The manifest lists exactly the files of the layout, no chunk larger than its content could make it."""
        expected = layout.digested_files()
        odd = sorted(self.files.keys() ^ set(expected))
        if odd:
            raise SchemaError(f"manifest: must list {len(expected)} files; missing or unknown: {shown(odd[0])}")
        for spec in layout.arrays:
            bound = spec.chunk_bytes + spec.chunk_bytes // 128 + 1_024
            for shard_index in range(layout.num_shards):
                name = spec.chunk_file(shard_index)
                if self.files[name][0] > bound:
                    raise LimitError(f"manifest: {name} has {self.files[name][0]} bytes, the bound is {bound}")


def digest_of(raw: bytes) -> FileDigest:
    """Size and sha256 of bytes."""
    return len(raw), hashlib.sha256(raw).hexdigest()


def content_id(images: Iterable[Array]) -> str:
    """sha256 over the sorted image hashes, from arrays uint8 [rows, 16]: the same for every packing of the images."""
    stacked = np.concatenate([np.asarray(rows, dtype=np.uint8).reshape(-1, HASH_BYTES) for rows in images])
    stacked.view(f"S{HASH_BYTES}").ravel().sort()  # in place: a million hashes are 16 MB
    return hashlib.sha256(stacked.data).hexdigest()


def check_digest(raw: bytes, expected: FileDigest, name: str, shard: str = "") -> None:
    """Raises DamageError naming file and shard unless the bytes have the expected size and sha256."""
    found = digest_of(raw)
    if found != expected:
        place = f"{name} (shard {shown(shard)})" if shard else name
        what = "size" if found[0] != expected[0] else "sha256"
        sides = (found[0], expected[0]) if what == "size" else (found[1], expected[1])
        raise DamageError(
            f"{place} is damaged: its {what} is {sides[0]}, the manifest says {sides[1]}; fetch the file again",
            shard=shard,
            file=name,
        )


def check_shard_specs(shards: Iterable[tuple[str, int]]) -> None:
    """Names are short, unique text; rows bounded, at least one in all. Raises SchemaError or LimitError."""
    names: set[str] = set()
    total = 0
    for name, rows in shards:
        if (
            type(name) is not str
            or not 1 <= len(name) <= MAX_TEXT
            or any("\ud800" <= char <= "\udfff" for char in name)
        ):
            raise SchemaError(f"shards: a name must be text of 1 to {MAX_TEXT} characters, got '{shown(name)}'")
        if name in names:
            raise SchemaError(f"shards: the name '{shown(name)}' appears twice")
        if type(rows) is not int or rows < 0:
            raise SchemaError(f"shards: the rows of '{shown(name)}' must be a whole number, got {shown(rows)}")
        names.add(name)
        total += rows
    if not 1 <= total <= MAX_ROWS or len(names) > MAX_SHARDS:
        raise LimitError(f"{len(names)} shards with {total} rows: the bounds are {MAX_SHARDS} and 1 to {MAX_ROWS}")


def _shards(value: Json) -> tuple[ShardEntry, ...]:
    if not isinstance(value, list) or len(value) > MAX_SHARDS:
        raise LimitError(f"manifest: shards must be a list of at most {MAX_SHARDS}")
    for item in value:
        if not isinstance(item, dict) or set(item) != {"name", "rows", "skipped"} or type(item["skipped"]) is not int:
            raise SchemaError("manifest: a shard must have exactly name, rows and skipped")
    check_shard_specs((item["name"], item["rows"]) for item in value)
    entries = tuple(ShardEntry(**item) for item in value)
    for entry in entries:
        if not 0 <= entry.skipped <= entry.rows:
            raise SchemaError(f"manifest: {shown(entry.name)} has {entry.skipped} skipped of {entry.rows} rows")
    return entries


def _files(value: Json) -> dict[str, FileDigest]:
    if not isinstance(value, dict):
        raise SchemaError("manifest: files must be an object")
    files: dict[str, FileDigest] = {}
    for name, item in value.items():
        fine = isinstance(item, list) and len(item) == 2 and type(item[0]) is int and isinstance(item[1], str)
        if not fine or item[0] < 0 or not _SHA256.fullmatch(item[1]):
            raise SchemaError(f"manifest: {shown(name)} must have a size and a sha256")
        files[name] = (item[0], item[1])
    return files
