"""The index on disk: one safetensors file, which is arrays and text and nothing that could run.

It may lie in a folder that strangers filled, so it is read as such: safetensors checks that header, shapes and sizes
agree before anything is allocated; then names, sizes and stamps of all shards are compared with the shards as they are
now, shapes with the number of rows, and a digest over the arrays tells a flipped bit. A file that fails in any way
counts as absent: the index is derived data, and reading the tars again makes it. A whole one may still have been put
there by someone else: `index_trust.py` says how far it is believed.

Rejected: npz (numpy allocates what an array's header claims before reading it, and zip members may be bombs).
"""

import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from dlth.data.shards.scan import MAX_KEY_BYTES
from dlth.data.shards.shard_index import ShardIndex, ShardInfo
from dlth.data.shards.tar_header import BLOCK
from dlth.tickets.errors import DlthError
from dlth.tickets.format.jsontext import canonical, parse
from dlth.tickets.store.disk import published, unforeseen

FORMAT = "dlth-index 2"  # 2: of tars that every reader understands alike, with labels that are bounded
_SHA256 = re.compile(r"[0-9a-f]{64}")
_TYPES = {np.int64: "I64", np.uint8: "U8"}  # as safetensors calls them
_ARRAYS = {  # in the order that `ShardIndex` takes them
    "image_offset": np.int64,
    "image_size": np.int64,
    "label": np.int64,
    "key_bytes": np.uint8,
    "key_start": np.int64,
}
Arrays = dict[str, np.ndarray[Any, Any]]


def write_index(path: Path, index: ShardIndex) -> bool:
    """Put the index in place, whole or not at all; False where the folder cannot be written (read-only, full)."""
    arrays: Arrays = {name: np.ascontiguousarray(getattr(index, name)) for name in _ARRAYS}
    facts = {
        "shards": [[shard.name, shard.size, shard.stamp, shard.rows] for shard in index.shards],
        "fingerprint": index.fingerprint,
        "num_ignored": index.num_ignored,
    }
    text = canonical(facts).decode()
    metadata = {"format": FORMAT, "index": text, "digest": _digest(text, arrays)}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with published(path, path.with_name(unforeseen(path.name))) as file:
            save_file(arrays, file.name, metadata)
            os.chmod(file.name, 0o644)  # safetensors writes for its owner alone, shards are often shared
    except (OSError, SafetensorError):  # safetensors wraps the system's errors
        return False
    return True


def read_index(path: Path, name: str, shards: list[ShardInfo], cache_dir: Path) -> ShardIndex | None:
    """The index at `path` if it is whole and describes exactly these shards as they are now; their rows are filled in.

    `shards`: name, address, size and stamp of each as found now, in order; their `rows` are not looked at. What the
    index says of their rows is for `index_trust` to judge.
    """
    try:
        if not path.is_file():  # a FIFO would be waited for
            return None
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata()
            text = metadata["index"]
            if metadata["format"] != FORMAT:
                return None
            facts = parse(text.encode(), "index")
            filled = _filled(facts["shards"], shards)
            if filled is None or not _has_shapes(file, sum(shard.rows for shard in filled)):
                return None
            arrays: Arrays = {array: file.get_tensor(array) for array in _ARRAYS}
        fingerprint, ignored = facts["fingerprint"], facts["num_ignored"]
        if (
            metadata["digest"] != _digest(text, arrays)
            or not _SHA256.fullmatch(fingerprint)
            or type(ignored) is not int
        ):
            return None
        offset, size, label, key_bytes, key_start = (arrays[array] for array in _ARRAYS)
        return ShardIndex(name, filled, offset, size, label, key_bytes, key_start, fingerprint, ignored, cache_dir)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError, DlthError):
        return None


def _filled(entries: list[Any], shards: list[ShardInfo]) -> list[ShardInfo] | None:
    """The shards with their rows, if the entries (name, size, stamp, rows) are of these and can be so many rows."""
    if [[shard.name, shard.size, shard.stamp] for shard in shards] != [entry[:3] for entry in entries]:
        return None
    rows = [count for entry in entries for count in entry[3:]]
    if len(rows) != len(shards) or any(type(count) is not int for count in rows):
        return None
    possible = all(0 <= count <= shard.size // BLOCK for count, shard in zip(rows, shards, strict=True))
    return [replace(shard, rows=count) for shard, count in zip(shards, rows, strict=True)] if possible else None


def _has_shapes(file: Any, count: int) -> bool:
    """Whether the arrays have the types and shapes of so many rows; asked before any is loaded."""
    for array, kind in _ARRAYS.items():
        view = file.get_slice(array)
        shape, length = view.get_shape(), {"key_start": count + 1}.get(array, count)
        fits = shape[0] <= count * MAX_KEY_BYTES if array == "key_bytes" and len(shape) == 1 else shape == [length]
        if view.get_dtype() != _TYPES[kind] or not fits:
            return False
    return True


def _digest(text: str, arrays: Arrays) -> str:
    digest = xxhash.xxh3_128(text.encode())
    for name in _ARRAYS:
        digest.update(np.ascontiguousarray(arrays[name]).data)
    return digest.hexdigest()
