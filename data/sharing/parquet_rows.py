"""Rows of a Parquet file, as `parquet.py` has them read in a process of its own.

A Parquet file of a thousand bytes may say that one row has billions of entries, in ways (run lengths, dictionaries,
nested levels) that only the library that decodes them knows. So nothing here is bound by sizes that the file states
about itself alone: `confined.py` bounds the memory of the process. Files are read a thousand rows at a time, the named
columns alone, and none of Arrow's extension types is revived (one of them used to be a pickle).
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlth.tickets.errors import DamageError, DlthError, InputError, LimitError, SchemaError, shown
from dlth.tickets.exchange.imports import ForeignRows, decode_keys
from dlth.tickets.format.header import TicketHeader
from dlth.tickets.format.jsontext import parse
from dlth.tickets.format.layout import HASH_BYTES, MAX_META_BYTES
from dlth.tickets.format.manifest import MAX_ROWS, ShardSpec

HEADER_KEY, SHARDS_KEY = b"dlth_tickets", b"dlth_shards"
MAX_FOOTER_BYTES = 64 * 2**20
_BATCH = 1_000
_MAX_WIDTH = 65_535


class ParquetRows:
    """The rows of a Parquet file of keys and patches or masks; see `ParquetTable`."""

    def __init__(self, path: Path) -> None:
        pa, pq = arrow()
        pa.set_memory_pool(pa.system_memory_pool())  # Arrow's own takes a gigabyte of addresses at once
        self.name = shown(path.name)
        errors = (pa.ArrowException, OSError, ValueError)
        try:
            limits = {"thrift_string_size_limit": MAX_FOOTER_BYTES, "thrift_container_size_limit": 1_000_000}
            file = pq.ParquetFile(path, memory_map=False, pre_buffer=False, buffer_size=2**20, **limits)
            schema = file.schema_arrow
        except MemoryError:
            raise
        except errors as error:
            raise DamageError(f"{self.name} cannot be read as Parquet: {shown(error)}", file=self.name) from error
        self.num_rows = int(file.metadata.num_rows)
        if not 0 <= self.num_rows <= MAX_ROWS:
            raise LimitError(f"{self.name} says it has {self.num_rows} rows, the bound is {MAX_ROWS}")
        names = schema.names
        rankings = [name for name in ("patches", "mask") if name in names]
        if "key" not in names or len(rankings) != 1 or len(set(names)) != len(names):
            raise InputError(
                f"{self.name} must have the columns 'key' and either 'patches' or 'mask', each once; it has "
                + ", ".join(shown(name, 40) for name in names[:10])
            )
        self.ranking = rankings[0]
        self.kind = "patches" if self.ranking == "patches" else "masks"
        columns = ["key", self.ranking, *(name for name in ("image", "gap", "skipped") if name in names)]
        for name in columns:
            self._check_type(pa, name, schema.field(name).type)
        metadata = schema.metadata or {}
        self.header = self._read_header(metadata.get(HEADER_KEY))
        self.shards = self._read_shards(metadata.get(SHARDS_KEY))
        self._rows, self._keys = (_Rows(file, part, errors, self.name) for part in (columns, ["key"]))
        self.width = self.read(0, 1).ranking.shape[1] if self.num_rows else 0

    def facts(self) -> tuple[str, int, int, TicketHeader | None, tuple[ShardSpec, ...] | None]:
        """What a `Table` says of itself: kind, rows, width, header, shards."""
        return self.kind, self.num_rows, self.width, self.header, self.shards

    def read(self, start: int, stop: int) -> ForeignRows:
        """Rows [start, stop); quick when rows are asked for in order."""
        if start == stop:
            return ForeignRows((), np.zeros((0, self.width), np.int64), None, None, None)
        columns = self._rows.columns(start, stop)
        flat = {
            name: np.concatenate([chunk.to_numpy(zero_copy_only=False) for chunk in columns[name]])
            for name in columns.keys() & {"gap", "skipped"}
        }
        return ForeignRows(
            keys=self._decoded(columns["key"], start),
            ranking=self._lists(columns[self.ranking], start),
            images=self._hashes(columns["image"]) if "image" in columns else None,
            gap=flat.get("gap"),
            skipped=flat.get("skipped"),
        )

    def keys(self, start: int, stop: int) -> tuple[str, ...]:
        """The keys of rows [start, stop)."""
        return self._decoded(self._keys.columns(start, stop)["key"], start)

    def _check_type(self, pa: Any, name: str, kind: Any) -> None:
        lists = pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind) or pa.types.is_large_list(kind)
        fine = {
            "key": pa.types.is_string(kind) or pa.types.is_large_string(kind),
            "patches": lists and pa.types.is_integer(kind.value_type),
            "mask": lists and pa.types.is_boolean(kind.value_type),
            "image": pa.types.is_binary(kind) or pa.types.is_fixed_size_binary(kind),
            "gap": pa.types.is_floating(kind),
            "skipped": pa.types.is_boolean(kind),
        }[name]
        if not fine:
            raise InputError(f"{self.name}: the column '{name}' has the wrong type {shown(kind, 60)}")

    def _lists(self, chunks: Sequence[Any], start: int) -> NDArray[Any]:
        """The column's lists as a matrix; all must be as long as the file's first."""
        width = getattr(self, "width", len(chunks[0][0]))
        parts = []
        for chunk in chunks:
            lengths = np.asarray(chunk.value_lengths())
            wrong = np.flatnonzero(lengths != width)
            if len(wrong):
                problem = f"row {start + int(wrong[0])} has {int(lengths[wrong[0]])} entries, the first row {width}"
                raise InputError(f"{self.name}: '{self.ranking}': {problem}")
            values = chunk.flatten()
            if values.null_count:
                raise InputError(f"{self.name}: '{self.ranking}' has missing entries")
            parts.append(values.to_numpy(zero_copy_only=False).reshape(len(chunk), width))
            start += len(chunk)
        if not 1 <= width <= _MAX_WIDTH:
            raise LimitError(f"{self.name}: '{self.ranking}' has rows of {width} entries, from 1 to {_MAX_WIDTH} fit")
        return np.concatenate(parts)

    def _decoded(self, chunks: Sequence[Any], start: int) -> tuple[str, ...]:
        """Keys of text columns, which Arrow does not check to be UTF-8."""
        return decode_keys([raw for chunk in chunks for raw in chunk.cast("binary").to_pylist()], start, self.name)

    def _hashes(self, chunks: Sequence[Any]) -> NDArray[np.uint8]:
        raws = [raw for chunk in chunks for raw in chunk.to_pylist()]
        if any(len(raw) != HASH_BYTES for raw in raws):
            raise InputError(f"{self.name}: an entry of 'image' is not {HASH_BYTES} bytes long")
        return np.frombuffer(b"".join(raws), dtype=np.uint8).reshape(-1, HASH_BYTES)

    def _read_header(self, raw: bytes | None) -> TicketHeader | None:
        if raw is not None and len(raw) > MAX_META_BYTES:
            raise LimitError(f"{self.name}: the header has {len(raw)} bytes, the bound is {MAX_META_BYTES}")
        return None if raw is None else TicketHeader.from_json(parse(raw, "header"))

    def _read_shards(self, raw: bytes | None) -> tuple[ShardSpec, ...] | None:
        if raw is None:
            return None
        try:
            shards = tuple(ShardSpec(str(name), int(rows)) for name, rows in parse(raw, "shards"))
        except (TypeError, ValueError) as error:
            if isinstance(error, DlthError):
                raise
            raise SchemaError(f"{self.name}: the shards are not names with numbers of rows") from error
        if sum(shard.rows for shard in shards) != self.num_rows or any(shard.rows < 0 for shard in shards):
            raise SchemaError(f"{self.name}: the shards do not add up to {self.num_rows} rows")
        return shards


class _Rows:
    """Ranges of rows of some columns, quick when they are asked for in order; `errors` are pyarrow's."""

    def __init__(self, file: Any, names: list[str], errors: tuple[type[Exception], ...], where: str) -> None:
        self._file, self._names, self._errors, self._where = file, names, errors, where
        self._restart()

    def columns(self, start: int, stop: int) -> dict[str, list[Any]]:
        """Chunks by column that together are rows [start, stop), nothing missing in them."""
        parts = list(self._between(start, stop))
        columns = {name: [part.column(name) for part in parts] for name in self._names}
        for name, chunks in columns.items():
            if any(chunk.null_count for chunk in chunks):
                raise InputError(f"{self._where}: '{name}' has missing values in rows {start} to {stop - 1}")
        return columns

    def _restart(self) -> None:
        self._batches = self._file.iter_batches(batch_size=_BATCH, columns=self._names, use_threads=False)
        self._batch: Any = None
        self._start = self._stop = 0

    def _between(self, start: int, stop: int) -> Iterator[Any]:
        if start < self._start:
            self._restart()
        while start < stop:
            if start < self._stop:
                until = min(stop, self._stop)
                yield self._batch.slice(start - self._start, until - start)
                start = until
                continue
            try:
                self._batch = next(self._batches, None)
            except MemoryError:  # Arrow's is both, and it is not damage
                raise
            except self._errors as error:
                raise DamageError(f"{self._where}: rows from {start} on: {shown(error)}", file=self._where) from error
            if self._batch is None:
                raise DamageError(f"{self._where} has fewer rows than it says", file=self._where)
            self._start, self._stop = self._stop, self._stop + self._batch.num_rows


def arrow() -> tuple[Any, Any]:
    """pyarrow and its Parquet part; raises InputError where it is not installed."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise InputError("Parquet needs pyarrow, which is not installed: pip install 'dlth[parquet]'") from error
    return pa, pq
