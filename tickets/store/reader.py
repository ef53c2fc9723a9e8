"""Reading the shards of a file of any kind: everything is checked before it is believed, and nothing outside the file
is ever opened.

Order of trust: the tree (regular files only, known names) → the manifest (canonical text; its sha256 is the identity)
→ the digests → header and array metadata → sizes → decoded values. Chunk files are named by the layout, never by the
file's own text. Opening reads the metadata and looks at every file's size; each read checks the digest of the chunks
it takes and every value in them, so a fill value is never handed out as a ticket. Rejected: reading through zarr, to
which a deleted chunk is fill values, a link is a file, and a FIFO is forever.
"""

import os
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from dlth.tickets.arguments import whole_number
from dlth.tickets.errors import (
    DamageError,
    IncompleteError,
    InputError,
    LimitError,
    MissingFileError,
    SchemaError,
    UnsafeError,
    shown,
)
from dlth.tickets.format.chunks import decode
from dlth.tickets.format.fields import StoredHeader
from dlth.tickets.format.jsontext import Json, parse, same
from dlth.tickets.format.layout import (
    GROUP_FILE,
    MANIFEST_FILE,
    MANIFEST_META_FILE,
    MAX_MANIFEST_BYTES,
    MAX_META_BYTES,
    MAX_SHARDS,
    Array,
    ArraySpec,
    StoredLayout,
    identity_of,
    manifest_meta_text,
)
from dlth.tickets.format.manifest import Manifest, ShardEntry, check_digest
from dlth.tickets.format.rows import RuleError, decoded_keys
from dlth.tickets.store.disk import read_file, reading, scan_sizes, user_path
from dlth.tickets.store.partial import Partial

_MAX_ENTRIES = 4 * MAX_SHARDS + 16

T = TypeVar("T")
Rows = TypeVar("Rows", int, NDArray[np.int64])
"""One row or several."""


class StoredShards(ABC):
    """The shards of a finished file, open for reading; a kind of file adds what it knows of its images.

    Raises MissingFileError, IncompleteError, UnsafeError (links, foreign files), DamageError, SchemaError or
    LimitError. Safe to pickle and to fork into workers (no thread, no open file); one object is not for several
    threads at once.

    `header`; `shards`, one ShardEntry(name, rows, skipped) each; `num_rows`, `num_skipped`; `max_rows` of the largest
    shard; `identity`, sha256 of the manifest; `content`, sha256 over the sorted image hashes; `path`; `files`, size and
    sha256 by path; `chunk_reads`, chunks read from disk so far. `cache_shards` decoded shards are kept.
    """

    HEADER: ClassVar[type[StoredHeader]]
    NOUN: ClassVar[str]
    """What a row holds, in words for messages: `ticket`, `token label`."""
    COMMAND: ClassVar[str]
    """What makes such a file."""
    header: StoredHeader
    layout: StoredLayout
    _cache: OrderedDict[tuple[str, int], Any]

    def __init__(self, path: str | os.PathLike[str], cache_shards: int = 32) -> None:
        self.cache_shards = whole_number(cache_shards, "cache_shards", 1)
        self.chunk_reads = 0
        self.path = Path(os.path.realpath(user_path(path)))
        with reading(path):
            sizes = self._scan()
        text = self._read_manifest()
        manifest = Manifest.from_text(text)
        self._check_kind(manifest.format)
        self.identity = identity_of(text)
        self.content = manifest.content
        self.shards: tuple[ShardEntry, ...] = manifest.shards
        self.num_rows = sum(shard.rows for shard in self.shards)
        self.num_skipped = sum(shard.skipped for shard in self.shards)
        self.max_rows = manifest.max_rows
        self.files = manifest.files
        self.header = self._read_header(manifest.version)
        self.layout = self._layout(self._read_key_width())
        manifest.check_files(self.layout)
        self._check_tree(sizes, text)
        self._check_metadata()
        self._cache = OrderedDict()

    @abstractmethod
    def _layout(self, key_width: int) -> StoredLayout:
        """The arrays that header and sizes ask for."""

    @abstractmethod
    def skipped(self, shard_index: int) -> NDArray[np.bool_]:
        """Bool [rows]: images that could not be read when the file was made."""

    @property
    @abstractmethod
    def content_reads(self) -> tuple[Callable[[int], object], ...]:
        """What reads, and so checks, what one shard knows of its images: each by the shard's index."""

    def keys(self, shard_index: int) -> tuple[str, ...]:
        """The keys of one shard's rows. Reads one chunk."""

        def load() -> tuple[str, ...]:
            return decoded_keys(self._rows(self.layout.keys, shard_index))

        return self._cached("keys", shard_index, load)

    def image_hashes(self, shard_index: int) -> NDArray[np.uint8]:
        """Uint8 [rows, 16]: xxh3_128 of each image's encoded bytes. Reads one chunk."""
        return self._cached("images", shard_index, lambda: self._rows(self.layout.images, shard_index))

    def row_number(self, shard_index: int, row: Rows) -> Rows:
        """The number that a row of a shard has in the whole file."""
        return shard_index * self.max_rows + row

    def shard_and_row(self, number: Rows) -> tuple[Rows, Rows]:
        """The inverse of `row_number`."""
        return divmod(number, self.max_rows)

    def by_shard(self, numbers: NDArray[np.int64]) -> Iterator[tuple[int, NDArray[np.int64], NDArray[np.int64]]]:
        """Each shard that row numbers [n] of at least 0 lie in, ascending: its index, where in `numbers` its rows
        stand, and which rows of the shard they are.
        """
        order = np.argsort(numbers, kind="stable")
        order = order[np.searchsorted(numbers[order], 0) :]
        shard_indices, starts = np.unique(self.shard_and_row(numbers[order])[0], return_index=True)
        for shard_index, at in zip(shard_indices.tolist(), np.split(order, starts)[1:], strict=True):
            yield shard_index, at, self.shard_and_row(numbers[at])[1]

    def reopened(self) -> Self:
        """The same file with a cache of its own, of one shard: reading through it leaves this object as it is."""
        other = object.__new__(type(self))
        other.__setstate__(self.__getstate__() | {"cache_shards": 1})
        return other

    def __getstate__(self) -> dict[str, Any]:
        """What names with _ hold belongs to one process, and is read again by another."""
        return {name: value for name, value in self.__dict__.items() if not name.startswith("_")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._cache = OrderedDict()

    def _rows(self, spec: ArraySpec, shard_index: int) -> Any:
        """One shard's rows of one array, from disk: digest, sizes and padding checked."""
        shard = self.shards[shard_index]
        name = spec.chunk_file(shard_index)
        chunk: Array = decode(spec, self._bytes(name, shard.name), name)
        self.chunk_reads += 1
        padding = chunk[shard.rows :]
        if not (np.isnan(padding).all() if spec.dtype.startswith("float") else (padding == spec.fill).all()):
            raise RuleError("the padding after the last row is not the fill value")
        chunk.flags.writeable = False
        return chunk[: shard.rows]

    def _bytes(self, name: str, shard: str = "") -> bytes:
        """A listed file, its digest checked; raises DamageError when it is gone or changed."""
        size = self.files[name][0] if name in self.files else MAX_META_BYTES
        try:
            raw = read_file(self.path / name, size, name)
        except (MissingFileError, LimitError) as error:
            raise DamageError(
                f"{name} (shard {shown(shard)}) changed since the file was opened: {error}", shard, name
            ) from error
        check_digest(raw, self.files[name], name, shard)
        return raw

    def _cached(self, name: str, shard_index: int, load: Callable[[], T]) -> T:
        """`load()`, kept; a broken rule becomes DamageError naming shard and file."""
        if not (isinstance(shard_index, int | np.integer) and 0 <= shard_index < len(self.shards)):
            raise InputError(
                f"{shown(self.path.name)} has shards 0 … {len(self.shards) - 1}, asked for {shown(shard_index)}"
            )
        place = (name, shard_index)
        if place not in self._cache:
            try:
                self._cache[place] = load()
            except RuleError as error:
                shard, file = self.shards[shard_index].name, f"{name}/c.{shard_index}"
                raise DamageError(f"{file} (shard {shown(shard)}): {error}", shard, file) from error
            while len(self._cache) > 4 * self.cache_shards:
                self._cache.popitem(last=False)
        self._cache.move_to_end(place)
        kept: T = self._cache[place]
        return kept

    def _scan(self) -> dict[str, int]:
        """Sizes of all files; raises when the folder is missing, unfinished or holds more than files."""
        name = shown(self.path.name)
        partial = Partial(self.path)
        if not os.path.lexists(self.path):
            if partial.root.exists():
                raise IncompleteError(
                    f"{name} is not finished ({partial.progress()}); run the same {self.COMMAND} again"
                )
            raise MissingFileError(f"there is no {self.NOUN} file {shown(self.path)}")
        if not self.path.is_dir():
            raise InputError(f"{name} is a single file; a {self.NOUN} file is a folder (unpack it first)")
        sizes = scan_sizes(self.path, _MAX_ENTRIES)
        if not {MANIFEST_FILE, MANIFEST_META_FILE} <= sizes.keys():
            raise IncompleteError(f"{name} has no manifest: it is unfinished, partly copied, or no {self.NOUN} file")
        return sizes

    def _check_kind(self, found: str) -> None:
        if found != self.HEADER.kind:
            raise InputError(
                f"{shown(self.path.name)} is a file of the format {found}, and no {self.NOUN} file ({self.HEADER.kind})"
            )

    def _read_manifest(self) -> bytes:
        """The manifest's text; its zarr.json repeats its length and digest."""
        text = read_file(self.path / MANIFEST_FILE, MAX_MANIFEST_BYTES, MANIFEST_FILE)
        if read_file(self.path / MANIFEST_META_FILE, MAX_META_BYTES, MANIFEST_META_FILE) != manifest_meta_text(text):
            raise DamageError(
                f"{MANIFEST_FILE} is damaged: {MANIFEST_META_FILE} states another length or sha256; fetch both again",
                file=MANIFEST_FILE,
            )
        return text

    def _read_header(self, version: str) -> StoredHeader:
        attribute = self.HEADER.attribute
        group = self._json(GROUP_FILE)
        attributes = group.get("attributes") if isinstance(group, dict) else None
        outer = {"zarr_format": 3, "node_type": "group", "attributes": attributes}
        if not isinstance(attributes, dict) or set(attributes) != {attribute} or not same(group, outer):
            raise SchemaError(f"{GROUP_FILE}: must be a Zarr v3 group whose one attribute is '{attribute}'")
        header = self.HEADER.from_json(attributes[attribute])
        if header.version != version:
            raise SchemaError(f"the header is version {header.version}, the manifest {version}")
        return header

    def _read_key_width(self) -> int:
        meta = self._json("keys/zarr.json")
        shape = meta.get("shape") if isinstance(meta, dict) else None
        if not isinstance(shape, list) or len(shape) != 3 or type(shape[2]) is not int:
            raise SchemaError("keys/zarr.json: must have a shape of three whole numbers")
        return int(shape[2])

    def _json(self, name: str) -> Json:
        if self.files.get(name, (0,))[0] > MAX_META_BYTES or name not in self.files:
            raise LimitError(f"{name}: must be listed with at most {MAX_META_BYTES} bytes")
        return parse(self._bytes(name), name)

    def _check_tree(self, sizes: dict[str, int], manifest: bytes) -> None:
        """The folder holds exactly the listed files with the listed sizes."""
        expected = {name: size for name, (size, _) in self.files.items()}
        expected[MANIFEST_FILE] = len(manifest)
        expected[MANIFEST_META_FILE] = len(manifest_meta_text(manifest))
        foreign = sorted(sizes.keys() - expected.keys())
        if foreign:
            raise UnsafeError(
                f"{shown(foreign[0])} ({len(foreign)} in all) does not belong into a {self.NOUN} file; remove it"
            )
        wrong = [name for name, size in expected.items() if sizes.get(name) != size]
        if wrong:
            name = wrong[0]
            damage = f"has {sizes[name]} bytes instead of {expected[name]}" if name in sizes else "is missing"
            shard = self._shard_of(name)
            place = f"{name} (shard {shown(shard)})" if shard else name
            raise DamageError(f"{place} {damage}; {len(wrong)} files in all are damaged: fetch them again", shard, name)

    def _shard_of(self, name: str) -> str:
        parts = name.partition("/c.")[2].split(".")
        return self.shards[int(parts[0])].name if parts[0] and not name.startswith("manifest") else ""

    def _check_metadata(self) -> None:
        """Each array's zarr.json says what header and sizes ask for, nothing else."""
        for spec in self.layout.arrays:
            name = f"{spec.name}/zarr.json"
            if not same(self._json(name), spec.meta(len(self.shards))):
                raise SchemaError(f"{name}: is not what the header and {len(self.shards)} shards ask for")
