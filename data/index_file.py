"""The index on disk: one safetensors file, which is arrays and text and nothing that could run.

It may lie in a folder that strangers filled, so it is read as such: safetensors checks that header, shapes and sizes
agree before anything is allocated; then names, sizes and stamps of all shards are compared with the shards as they are
now, every array is checked against the shards' bytes, and a digest over the arrays tells a flipped bit. A file that
fails in any way counts as absent: the index is derived data, and reading the tars again makes it. (Whoever can write
there could still forge a consistent one with wrong keys and labels, as they could forge the shards.)

Rejected: npz (numpy allocates what an array's header claims before reading it, and zip members may be bombs).
"""

import os
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from dlth.data.shard_index import ShardIndex, ShardInfo
from dlth.data.tar_header import BLOCK
from dlth.tickets.errors import DlthError
from dlth.tickets.files import sync_folder
from dlth.tickets.jsontext import canonical, parse

FORMAT = "dlth-index 1"
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
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(arrays, temporary, metadata)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # safetensors writes for its owner alone, shards are often shared
        os.replace(temporary, path)
        sync_folder(path.parent)
    except (OSError, SafetensorError):  # safetensors wraps the system's errors
        with suppress(OSError):
            temporary.unlink()
        return False
    return True


def read_index(path: Path, name: str, shards: list[ShardInfo], cache_dir: Path) -> ShardIndex | None:
    """The index at `path` if it is sound and describes exactly these shards as they are now; their rows are filled in.

    `shards`: name, address, size and stamp of each as found now, in order; their `rows` are not looked at.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata()
            text = metadata["index"]
            if metadata["format"] != FORMAT:
                return None
            arrays: Arrays = {array: file.get_tensor(array) for array in _ARRAYS}
        facts = parse(text.encode(), "index")
        if metadata["digest"] != _digest(text, arrays):
            return None
        described = [(found.name, found.size, found.stamp) for found in shards]
        if described != [tuple(entry[:3]) for entry in facts["shards"]]:
            return None
        filled = [replace(found, rows=entry[3]) for found, entry in zip(shards, facts["shards"], strict=True)]
        fingerprint, ignored = str(facts["fingerprint"]), int(facts["num_ignored"])
        offset, size, label, key_bytes, key_start = (arrays[array] for array in _ARRAYS)
        index = ShardIndex(name, filled, offset, size, label, key_bytes, key_start, fingerprint, ignored, cache_dir)
        return _checked(index)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError, DlthError):
        return None


def _checked(index: ShardIndex) -> ShardIndex | None:
    """The index if its arrays agree with each other and lie within the shards."""
    count = int(index.row_start[-1])
    shapes = {"key_start": (count + 1,), "key_bytes": (len(index.key_bytes),)}
    for array, kind in _ARRAYS.items():
        value = getattr(index, array)
        if value.dtype != kind or value.shape != shapes.get(array, (count,)):
            return None
    ends = index.image_offset + index.image_size
    limits = np.repeat([shard.size for shard in index.shards], np.diff(index.row_start))
    sound = (
        (index.image_offset >= BLOCK).all()
        and (index.image_size >= 0).all()
        and (index.image_size <= limits).all()
        and (ends <= limits).all()
        and (index.label >= -1).all()
        and (np.diff(index.key_start) > 0).all()
        and index.key_start[0] == 0
        and index.key_start[-1] == len(index.key_bytes)
    )
    return index if sound else None


def _digest(text: str, arrays: Arrays) -> str:
    digest = xxhash.xxh3_128(text.encode())
    for name in _ARRAYS:
        digest.update(np.ascontiguousarray(arrays[name]).data)
    return digest.hexdigest()
