"""Ticket files as Parquet, which data frames and query engines read, and Parquet files of other labs as tickets.

    key      string                        image    fixed_size_binary(16)    gap      float
    patches  fixed_size_list<uint>         skipped  bool                     shard    dictionary<string>

One row group a shard; the header and the shards stand in the schema's metadata. Only `key` and `patches` (or `mask`, a
list of booleans) must be there on import. pyarrow is the extra `parquet`; it stands here and not in `tickets`, which
needs numpy and zarr alone. A stranger's file is read by a process of its own, whose memory is bounded
(`parquet_rows.py`).
"""

import os
from functools import partial
from pathlib import Path

import numpy as np

from dlth.data.confined import Confined
from dlth.data.sharing.parquet_rows import HEADER_KEY, SHARDS_KEY, ParquetRows, arrow
from dlth.tickets.callbacks import Progress
from dlth.tickets.derive.draft import specs
from dlth.tickets.errors import shown
from dlth.tickets.exchange.imports import ForeignRows
from dlth.tickets.exchange.npz import file_digest
from dlth.tickets.format.jsontext import canonical
from dlth.tickets.format.layout import HASH_BYTES
from dlth.tickets.store.disk import new_file
from dlth.tickets.store.ticket_store import TicketStore

MAX_MEMORY = 2 * 2**30
"""Bytes that reading may take: the widest thousand rows take half a gigabyte, a ticket file's largest shard as much."""


def export_parquet(store: TicketStore, path: str | os.PathLike[str], progress: Progress | None = None) -> None:
    """Write a ticket file as Parquet. Raises InputError when `path` exists or pyarrow is not installed."""
    pa, pq = arrow()
    unsigned = pa.from_numpy_dtype(np.dtype(store.layout.patches.dtype))
    shards = specs(store)
    layout = canonical([[shard.name, shard.rows] for shard in shards])
    schema = pa.schema(
        [
            ("key", pa.string()),
            ("image", pa.binary(HASH_BYTES)),
            ("patches", pa.list_(unsigned, store.num_patches_stored)),
            ("gap", pa.float32()),
            ("skipped", pa.bool_()),
            ("shard", pa.dictionary(pa.int32(), pa.string())),
        ],
        metadata={HEADER_KEY: canonical(store.header.to_json()), SHARDS_KEY: layout},
    )
    with new_file(path) as file, pq.ParquetWriter(file, schema, compression="zstd") as writer:
        for index, shard in enumerate(shards):
            tickets = store.read(index)
            columns = [
                pa.array(tickets.keys, pa.string()),
                pa.FixedSizeBinaryArray.from_buffers(
                    pa.binary(HASH_BYTES), shard.rows, [None, pa.py_buffer(tickets.images.tobytes())]
                ),
                pa.FixedSizeListArray.from_arrays(
                    pa.array(np.ascontiguousarray(tickets.patches).ravel(), unsigned), store.num_patches_stored
                ),
                pa.array(tickets.gap, pa.float32()),
                pa.array(tickets.skipped, pa.bool_()),
                pa.DictionaryArray.from_arrays(np.zeros(shard.rows, np.int32), pa.array([shard.name])),
            ]
            if shard.rows:
                writer.write_table(pa.Table.from_arrays(columns, schema=schema), row_group_size=shard.rows)
            if progress is not None:
                progress(index + 1, len(shards))


class ParquetTable:
    """The rows of a Parquet file of keys and patches or masks, for `import_draft`.

    Raises InputError, SchemaError, LimitError or DamageError, naming the column.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.name = shown(self.path.name)
        self.digest = file_digest(self.path)
        self._rows = Confined(partial(ParquetRows, self.path), MAX_MEMORY, self.name)
        self.kind, self.num_rows, self.width, self.header, self.shards = self._rows.call("facts")

    def read(self, start: int, stop: int) -> ForeignRows:
        """Rows [start, stop); quick when rows are asked for in order."""
        rows: ForeignRows = self._rows.call("read", start, stop)
        return rows

    def keys(self, start: int, stop: int) -> tuple[str, ...]:
        """The keys of rows [start, stop)."""
        keys: tuple[str, ...] = self._rows.call("keys", start, stop)
        return keys
