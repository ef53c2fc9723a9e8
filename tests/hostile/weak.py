"""Builds of dlth with one defence switched off, to show that the tests would notice: each must lead to findings."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from dlth.tickets.format import fields, header, manifest, rows
from dlth.tickets.format.layout import MANIFEST_FILE
from dlth.tickets.store import reader, ticket_store, verify


def no_digests() -> None:
    """Sizes and digests are not compared, and a missing chunk is fill: what plain zarr does."""

    def read_manifest(self: reader.StoredShards) -> bytes:
        return (self.path / MANIFEST_FILE).read_bytes()

    def shard_rows(self: reader.StoredShards, spec: Any, shard_index: int) -> Any:
        path = self.path / spec.chunk_file(shard_index)
        if not path.exists():
            return np.full(spec.chunk, spec.fill, spec.dtype)[: self.shards[shard_index].rows]
        return sound_rows(self, spec, shard_index)

    def read_bytes(self: reader.StoredShards, name: str, shard: str = "") -> bytes:
        return (self.path / name).read_bytes()

    sound_rows = reader.StoredShards._rows
    reader.StoredShards._read_manifest = read_manifest
    reader.StoredShards._bytes = read_bytes
    reader.StoredShards._check_tree = lambda self, sizes, text: None
    reader.StoredShards._rows = shard_rows


def follow_links() -> None:
    """The tree is not looked at and files are opened as anybody would."""

    def sizes(root: Path, max_entries: int) -> dict[str, int]:
        found = {str(path.relative_to(root)): 0 for path in root.rglob("*")}
        return found | {MANIFEST_FILE: 0, "manifest/zarr.json": 0}

    reader.scan_sizes = sizes
    reader.read_file = lambda path, limit, where: Path(path).read_bytes()
    reader.StoredShards._check_tree = lambda self, sizes, text: None


def any_tree() -> None:
    """Entries that do not belong are passed over."""
    reader.StoredShards._check_tree = lambda self, sizes, text: None
    sound = reader.scan_sizes

    def sizes(root: Path, max_entries: int) -> dict[str, int]:
        try:
            return sound(root, max_entries)
        except reader.UnsafeError:
            return dict.fromkeys((MANIFEST_FILE, "manifest/zarr.json"), 0)

    reader.scan_sizes = sizes


def any_metadata() -> None:
    """An array's zarr.json may say what it likes; whole numbers may be of any length, JSON of any depth."""
    reader.StoredShards._check_metadata = lambda self: None
    reader.same = lambda left, right: True
    fields.require = header.require = lambda ok, name, message: None
    manifest.check_shard_specs = lambda shards: None


def any_text() -> None:
    """JSON as Python reads it: a key twice, NaN, and another text for the same manifest."""
    import json

    reader.parse = manifest.parse = lambda raw, where: json.loads(raw)
    reader.StoredShards._read_manifest = lambda self: (self.path / MANIFEST_FILE).read_bytes()
    reader.StoredShards._check_tree = lambda self, sizes, text: None
    reader.check_digest = lambda raw, expected, name, shard="": None


def any_manifest() -> None:
    """The manifest's fields are taken as they come."""
    import json

    def from_text(raw: bytes) -> manifest.Manifest:
        value = json.loads(raw)
        shards = tuple(manifest.ShardEntry(**shard) for shard in value["shards"])
        files = {name: tuple(digest) for name, digest in value["files"].items()}
        return manifest.Manifest(value["version"], shards, value["content"], files, value["format"])

    manifest.Manifest.from_text = staticmethod(from_text)
    reader.StoredShards._read_manifest = lambda self: (self.path / MANIFEST_FILE).read_bytes()


def any_value() -> None:
    """Patches out of range or twice, keys twice, odd gaps: whatever decodes is used."""
    ticket_store.check_patches = lambda patches, num_patches: None
    ticket_store.check_gap = lambda gap, skipped: None
    rows._check_unique = lambda keys: None
    verify._repeated_keys = lambda *arguments: iter(())
    verify._content = lambda *arguments: iter(())
    ticket_store.TicketStore._ranked = _unchecked


def _unchecked(self: ticket_store.TicketStore, shard_index: int) -> Any:
    spec, layout = self.layout.choice, self.layout
    patches = self._rows(spec, shard_index)
    skipped = (patches == spec.fill).all(axis=1)
    return (np.zeros((len(patches), layout.ranked), spec.dtype) if layout.masked else patches), skipped


def any_frame() -> None:
    """A chunk is decoded to whatever size its frame unpacks to."""
    from numcodecs.zstd import Zstd

    def decode(spec: Any, raw: bytes, where: str) -> Any:
        content = Zstd().decode(raw[:-4])
        return np.frombuffer(content, spec.dtype)[: int(np.prod(spec.chunk))].reshape(spec.chunk).copy()

    reader.decode = decode


BUILDS: dict[str, Callable[[], None]] = {
    build.__name__: build
    for build in (no_digests, follow_links, any_tree, any_metadata, any_text, any_manifest, any_value, any_frame)
}

CLASS_FAILS_IN = {
    "flip": "no_digests", "flips": "no_digests", "cut": "no_digests", "grow": "no_digests", "blank": "no_digests",
    "delete": "no_digests", "swap": "no_digests", "duplicate": "no_digests", "mix": "no_digests",
    "link": "follow_links", "special": "follow_links", "foreign": "any_tree", "foreign_folder": "any_tree",
    "rename": "no_digests", "field": "any_metadata", "manifest_field": "any_manifest", "text": "any_text",
    "value": "any_value", "frame": "any_frame",
}  # fmt: skip
"""Each class of mutants, and the build in which it must lead to findings."""
