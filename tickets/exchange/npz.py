"""Ticket files as .npz, which every Python with numpy reads, and .npz files of other labs as tickets.

    patches    unsigned [rows, ranked]   best first
    keys       bytes [rows]              UTF-8
    images     uint8 [rows, 16]          xxh3_128 of the encoded image; zeros: unknown
    gap        float32 [rows]            score of the k-th patch minus that of the next
    skipped    bool [rows]               images without a ticket
    shards, shard_rows                   names (UTF-8 bytes) and numbers of rows, in order
    header     uint8 [bytes]             the header as JSON: json.loads(npz["header"].tobytes())

Only `keys` and `patches` (or `masks`, bool [rows, patches] or [rows, grid rows, grid columns]) must be there on import.
Both ways go through the zip member by member and a shard at a time; `np.savez` and `np.load` hold whole arrays. What is
read is checked first: no object arrays (pickles), every size as the zip and the array's header say, and bounded.
"""

import hashlib
import math
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from dlth.tickets.callbacks import Progress
from dlth.tickets.derive.draft import specs
from dlth.tickets.errors import (
    InputError,
    LimitError,
    MissingFileError,
    SchemaError,
    UnsafeError,
    shown,
)
from dlth.tickets.exchange.imports import ForeignRows, decode_keys
from dlth.tickets.exchange.npz_column import Column, check_directory, guarded
from dlth.tickets.format.header import TicketHeader
from dlth.tickets.format.jsontext import canonical, parse
from dlth.tickets.format.layout import MAX_META_BYTES, MAX_SHARDS
from dlth.tickets.format.manifest import ShardSpec
from dlth.tickets.store.disk import new_file, open_regular, reading, user_path
from dlth.tickets.store.ticket_store import TicketStore, open_store

_EPOCH = (1980, 1, 1, 0, 0, 0)


def export_npz(store: TicketStore, path: str | os.PathLike[str], progress: Progress | None = None) -> None:
    """Write a ticket file as .npz: the same bytes for the same file. Raises InputError when `path` exists."""
    num_rows, width = open_store(store).num_rows, store.layout.key_width
    shards = specs(store)
    names = [shard.name.encode() for shard in shards]
    columns: list[tuple[str, Any, tuple[int, ...], Callable[[int], Any]]] = [
        ("patches", store.layout.patches.dtype, (num_rows, store.num_patches_stored), store.patches),
        ("keys", f"S{width}", (num_rows,), lambda index: [key.encode() for key in store.keys(index)]),
        ("images", np.uint8, (num_rows, 16), store.image_hashes),
        ("gap", np.float32, (num_rows,), store.gap),
        ("skipped", np.bool_, (num_rows,), store.skipped),
    ]
    whole = {
        "shards": np.array(names, dtype=f"S{max(map(len, names))}"),
        "shard_rows": np.array([shard.rows for shard in shards], dtype=np.int64),
        "header": np.frombuffer(canonical(store.header.to_json()), dtype=np.uint8),
    }
    with new_file(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for done, (name, dtype, shape, part) in enumerate(columns):
            with _member(archive, name, np.dtype(dtype), shape) as member:
                for index in range(len(shards)):
                    member.write(np.ascontiguousarray(part(index), dtype=dtype).tobytes())
                    if progress is not None:
                        progress(done * len(shards) + index + 1, len(columns) * len(shards))
        for name, array in whole.items():
            with _member(archive, name, array.dtype, array.shape) as member:
                member.write(array.tobytes())


def _member(archive: zipfile.ZipFile, name: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> IO[bytes]:
    """A member of the archive, its array header written."""
    member = archive.open(zipfile.ZipInfo(f"{name}.npy", _EPOCH), "w", force_zip64=True)
    described = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(member, described)
    return member


class NpzTable:
    """The rows of an .npz file of keys and patches or masks, for `import_draft`.

    Raises InputError, SchemaError, LimitError, UnsafeError (object arrays) or DamageError, naming the array.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = user_path(path)
        self.name = shown(self.path.name)
        self.digest = file_digest(self.path)
        with guarded(self.name):
            with open(self.path, "rb") as file:
                check_directory(file, self.name)
            self._archive = zipfile.ZipFile(self.path)
        self._arrays = {info.filename: info for info in self._archive.infolist()}
        rankings = [name for name in ("patches", "masks") if f"{name}.npy" in self._arrays]
        if "keys.npy" not in self._arrays or len(rankings) != 1:
            held = ", ".join(shown(name, 40) for name in list(self._arrays)[:10])
            raise InputError(f"{self.name} must hold 'keys' and either 'patches' or 'masks'; it holds {held}")
        self.kind = rankings[0]
        kinds = {
            "keys": ("SU", (1,)),
            "patches": ("iu", (2,)),
            "masks": ("b", (2, 3)),  # [rows, patches] or [rows, grid rows, grid columns]
            "images": ("u", (2,)),
            "gap": ("f", (1,)),
            "skipped": ("b", (1,)),
        }
        self._columns = {
            name: self._column(name, *kind) for name, kind in kinds.items() if f"{name}.npy" in self._arrays
        }
        self.num_rows = self._columns["keys"].shape[0]
        for column in self._columns.values():
            if column.shape[0] != self.num_rows:
                raise InputError(f"{self.name}: '{column.name}' has {column.shape[0]} rows, 'keys' has {self.num_rows}")
        self.width = math.prod(self._columns[self.kind].shape[1:])
        self.header = self._read_header()
        self.shards = self._read_shards()

    def read(self, start: int, stop: int) -> ForeignRows:
        """Rows [start, stop)."""
        parts = {name: column.read(start, stop) for name, column in self._columns.items()}
        return ForeignRows(
            keys=decode_keys(parts["keys"].tolist(), start, self.name),
            ranking=parts[self.kind].reshape(stop - start, self.width),
            images=parts.get("images"),
            gap=parts.get("gap"),
            skipped=parts.get("skipped"),
        )

    def keys(self, start: int, stop: int) -> tuple[str, ...]:
        """The keys of rows [start, stop)."""
        return decode_keys(self._columns["keys"].read(start, stop).tolist(), start, self.name)

    def _column(self, name: str, kinds: str, axes: tuple[int, ...]) -> Column:
        with guarded(self.name):
            return Column(self._archive, self._arrays[f"{name}.npy"], self.name, kinds, axes)

    def _whole(self, name: str, kinds: str, limit: int) -> NDArray[Any] | None:
        """A small array [items], or None where the file has none."""
        if f"{name}.npy" not in self._arrays:
            return None
        column = self._column(name, kinds, (1,))
        if column.shape[0] > limit:
            raise LimitError(f"{self.name}: '{name}' has {column.shape[0]} entries, the bound is {limit}")
        return column.read(0, column.shape[0])

    def _read_header(self) -> TicketHeader | None:
        text = self._whole("header", "u", MAX_META_BYTES)
        return None if text is None else TicketHeader.from_json(parse(text.astype(np.uint8).tobytes(), "header"))

    def _read_shards(self) -> tuple[ShardSpec, ...] | None:
        names, rows = self._whole("shards", "SU", MAX_SHARDS), self._whole("shard_rows", "iu", MAX_SHARDS)
        if names is None or rows is None:
            return None
        if len(names) != len(rows) or sum(rows.tolist()) != self.num_rows or (rows < 0).any():
            raise SchemaError(f"{self.name}: 'shards' and 'shard_rows' do not add up to {self.num_rows} rows")
        decoded = decode_keys(names.tolist(), 0, self.name)
        return tuple(ShardSpec(name, int(count)) for name, count in zip(decoded, rows, strict=True))


def file_digest(path: Path) -> str:
    """sha256 of a regular file; raises InputError for anything else."""
    try:
        with os.fdopen(open_regular(path), "rb") as file, reading(path):
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (MissingFileError, UnsafeError) as error:
        raise InputError(str(error)) from error
