"""The one place that names every file of a ticket file and gives the exact text of its metadata.

Writer and reader both ask here, so that they cannot drift apart. The metadata text is our own canonical JSON rather
than zarr's: zarr's optional fields differ between its versions, and the same tickets must give the same bytes.
"""

import hashlib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dlth.tickets.errors import InputError, LimitError, shown
from dlth.tickets.format.fields import StoredHeader
from dlth.tickets.format.header import TicketHeader
from dlth.tickets.format.jsontext import Json, canonical

GROUP_FILE = "zarr.json"
MANIFEST_FILE = "manifest/c.0"
MANIFEST_META_FILE = "manifest/zarr.json"
HASH_BYTES = 16

MAX_META_BYTES = 65_536
MAX_MANIFEST_BYTES = 64 * 2**20
MAX_CHUNK_BYTES = 64 * 2**20
MAX_KEY_BYTES = 1_024
MAX_SHARDS = 100_000

Array = NDArray[np.generic]


@dataclass(frozen=True, slots=True)
class ArraySpec:
    """One array [shard, row, …] of the file; one chunk is all rows of one shard.

    `chunk` is a chunk's shape without the shard axis; `axes` names those axes; `fill` is the value of padding.
    """

    name: str
    dtype: str
    chunk: tuple[int, ...]
    axes: tuple[str, ...]
    fill: int | float

    @property
    def chunk_bytes(self) -> int:
        """Size of one decoded chunk."""
        size = np.dtype(self.dtype).itemsize
        for side in self.chunk:
            size *= side
        return size

    def chunk_file(self, shard_index: int) -> str:
        """The path of one shard's chunk within the file."""
        return f"{self.name}/c.{shard_index}{'.0' * len(self.chunk)}"

    def meta(self, num_shards: int) -> dict[str, Json]:
        """The content of the array's zarr.json."""
        return {
            "zarr_format": 3,
            "node_type": "array",
            "shape": [num_shards, *self.chunk],
            "data_type": self.dtype,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [1, *self.chunk]}},
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
            "fill_value": "NaN" if self.fill != self.fill else self.fill,
            "codecs": [
                {"name": "bytes", "configuration": {"endian": "little"}},
                {"name": "zstd", "configuration": {"level": 1, "checksum": False}},
                {"name": "crc32c"},
            ],
            "attributes": {},
            "dimension_names": ["shard", *self.axes],
        }


@dataclass(frozen=True, slots=True)
class StoredLayout(ABC):
    """The arrays of one file: `num_shards` chunks each of `max_rows` rows, keys of at most `key_width` bytes.

    Every kind of file has keys and image hashes, by which its rows find their images; what it knows of an image are
    arrays of its own. Raises LimitError when a size is above its bound, before anything is allocated.
    """

    num_shards: int
    max_rows: int
    key_width: int

    def __post_init__(self) -> None:
        for name, value, bound in (
            ("shards", self.num_shards, MAX_SHARDS),
            ("key bytes", self.key_width, MAX_KEY_BYTES),
            ("rows of the largest shard", self.max_rows, MAX_CHUNK_BYTES),
        ):
            if not 1 <= value <= bound:
                raise LimitError(f"the number of {name} must be from 1 to {bound}, got {value}")
        for spec in self.arrays:
            if spec.chunk_bytes > MAX_CHUNK_BYTES:
                raise LimitError(
                    f"one shard's '{spec.name}' would take {spec.chunk_bytes} bytes, the bound is {MAX_CHUNK_BYTES}: "
                    f"use shards with fewer than {self.max_rows} images"
                )

    @property
    def keys(self) -> ArraySpec:
        """Sample keys, UTF-8, padded with NUL."""
        return ArraySpec("keys", "uint8", (self.max_rows, self.key_width), ("row", "byte"), 0)

    @property
    def images(self) -> ArraySpec:
        """xxh3_128 of each image's encoded bytes."""
        return ArraySpec("images", "uint8", (self.max_rows, HASH_BYTES), ("row", "byte"), 0)

    @property
    @abstractmethod
    def arrays(self) -> tuple[ArraySpec, ...]:
        """All arrays, in the order in which a shard is written."""

    def meta_files(self, header: StoredHeader) -> dict[str, bytes]:
        """Path and text of every metadata file but the manifest's."""
        files = {f"{spec.name}/zarr.json": canonical(spec.meta(self.num_shards)) for spec in self.arrays}
        group = {"zarr_format": 3, "node_type": "group", "attributes": {header.attribute: header.to_json()}}
        return {GROUP_FILE: canonical(group), **files}

    def digested_files(self) -> list[str]:
        """Every file that the manifest lists."""
        meta = [GROUP_FILE, *(f"{spec.name}/zarr.json" for spec in self.arrays)]
        return [*meta, *(spec.chunk_file(shard) for shard in range(self.num_shards) for spec in self.arrays)]


@dataclass(frozen=True, slots=True)
class Layout(StoredLayout):
    """The arrays of one ticket file."""

    num_patches: int
    ranked: int
    masked: bool = False

    @classmethod
    def of(cls, header: TicketHeader, num_shards: int, max_rows: int, key_width: int) -> "Layout":
        """The layout that a header and the sizes of its shards ask for."""
        masked = header.form == "mask"
        return cls(num_shards, max_rows, key_width, header.grid.num_patches, header.ranked, masked)

    @property
    def patches(self) -> ArraySpec:
        """Patch indices as rows are read, best first (in form 'mask', whose `mask` is stored instead, ascending).

        255 would be a valid patch from 256 patches on, so those take two bytes.
        """
        dtype, fill = ("uint8", 255) if self.num_patches <= 255 else ("uint16", 65_535)
        return ArraySpec("patches", dtype, (self.max_rows, self.ranked), ("row", "rank"), fill)

    @property
    def mask(self) -> ArraySpec:
        """Kept sets, one bit a patch."""
        return ArraySpec("mask", "uint8", (self.max_rows, (self.num_patches + 7) // 8), ("row", "byte"), 0)

    @property
    def choice(self) -> ArraySpec:
        """The array that holds the choice of patches: `mask` in form 'mask', else `patches`."""
        return self.mask if self.masked else self.patches

    @property
    def gap(self) -> ArraySpec:
        """Score of the k-th patch minus that of the next."""
        return ArraySpec("gap", "float32", (self.max_rows,), ("row",), float("nan"))

    @property
    def arrays(self) -> tuple[ArraySpec, ...]:
        """All arrays, in the order in which a shard is written."""
        return self.choice, self.keys, self.images, self.gap


def manifest_meta_text(manifest: bytes) -> bytes:
    """The zarr.json of the array that holds the manifest's text; it repeats the identity: no flipped bit is unseen."""
    length = len(manifest)
    return canonical(
        {
            "zarr_format": 3,
            "node_type": "array",
            "shape": [length],
            "data_type": "uint8",
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [length]}},
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
            "fill_value": 0,
            "codecs": [{"name": "bytes"}],
            "attributes": {"identity": identity_of(manifest)},
        }
    )


def identity_of(manifest: bytes) -> str:
    """The identity of a ticket file: sha256 of its manifest's text."""
    return hashlib.sha256(manifest).hexdigest()


def partial_path(path: Path) -> Path:
    """The folder in which an unfinished file is built; raises InputError for a place that cannot have a neighbour."""
    if not path.name:
        raise InputError(f"{shown(path)} is no place for a ticket file: it is the root of everything")
    return path.with_name(path.name + ".partial")
