"""Encoding and decoding one shard's chunk.

Encoding is zarr's own, into memory, so a chunk is exactly what zarr would have written. Decoding takes the two steps
itself (zstd by numcodecs, as zarr does): a zarr read costs 0.75 ms and an event loop that threads and forks must
mind, this costs 0.05 ms; and the size a frame claims must be checked before anything is allocated, which zarr does
not do. The caller has compared the chunk's sha256, so its crc32c (there for plain zarr readers) is not computed
again.
"""

import numpy as np
import zarr
from numcodecs.zstd import Zstd
from zarr.abc.buffer import Buffer
from zarr.buffer import default_buffer_prototype
from zarr.storage import MemoryStore

from dlth.tickets.errors import DamageError
from dlth.tickets.format.jsontext import canonical
from dlth.tickets.format.layout import Array, ArraySpec

_CRC32C_BYTES = 4
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"


def padded(spec: ArraySpec, rows: Array) -> Array:
    """`rows` [n, …] as a whole chunk [max_rows, …] in the stored type, the rest filled."""
    chunk = np.full(spec.chunk, spec.fill, dtype=np.dtype(spec.dtype).newbyteorder("<"))
    chunk[: len(rows)] = rows
    return chunk


def encode(spec: ArraySpec, chunk: Array) -> bytes:
    """The stored bytes of a chunk [max_rows, …]."""
    new = default_buffer_prototype().buffer.from_bytes
    files: dict[str, Buffer] = {"zarr.json": new(canonical(spec.meta(1)))}
    array = zarr.open_array(store=MemoryStore(files), mode="r+", zarr_format=3)
    # without this an all-fill chunk (every image of a shard was bad) would not be written
    array.with_config({"write_empty_chunks": True})[...] = chunk[None]
    return files[spec.chunk_file(0).removeprefix(f"{spec.name}/")].to_bytes()


def decode(spec: ArraySpec, raw: bytes, where: str) -> Array:
    """The chunk [max_rows, …] of stored bytes; raises DamageError naming `where` unless the sizes are exactly right."""
    frame = memoryview(raw)[:-_CRC32C_BYTES]
    claimed = frame_size(bytes(frame[:18]))
    if claimed != spec.chunk_bytes:
        raise DamageError(
            f"{where}: not one zstd frame of {spec.chunk_bytes} bytes (its header says {claimed})", file=where
        )
    chunk = np.empty(spec.chunk, dtype=np.dtype(spec.dtype).newbyteorder("<"))
    try:
        Zstd().decode(frame, out=chunk)
    except (RuntimeError, ValueError) as error:
        raise DamageError(f"{where}: the zstd frame is broken ({error})", file=where) from error
    return chunk


def frame_size(head: bytes) -> int | None:
    """The content size that a zstd frame's header states; None when it states none or is no plain frame (RFC 8878)."""
    if len(head) < 6 or head[:4] != _ZSTD_MAGIC:
        return None
    descriptor = head[4]
    single_segment, dictionary, reserved = descriptor & 0x20, descriptor & 0x03, descriptor & 0x08
    if dictionary or reserved:
        return None
    width = (1 if single_segment else 0, 2, 4, 8)[descriptor >> 6]
    start = 5 if single_segment else 6
    field = head[start : start + width]
    if width == 0 or len(field) != width:
        return None
    return int.from_bytes(field, "little") + (256 if width == 2 else 0)
