"""The index of a data set's shards: where each image lies, its key and its label, flat in memory.

A tar can only be read front to back; a trainer needs exact lengths and any sample at any time. So the tars' headers are
walked once (`index.py`), and the result is a handful of arrays: a million samples are a million numbers and one buffer
of key bytes, not a million objects, so loader processes share them after a fork and a pickle is a copy of arrays. An
image is then one positional read. The 512 bytes before it are read with it and must be a sound tar header that agrees
on the size: an index that does not fit the shard is an error that names the place, never another image's bytes.
"""

import functools
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dlth.data.remote.cache import cache_root, open_shard
from dlth.data.remote.storage import Facts
from dlth.data.shards.identity import DataIdentity, data_identity
from dlth.data.shards.tar import check_header, pread
from dlth.data.shards.tar_header import BLOCK
from dlth.tickets.errors import DamageError, shown

Int64s = NDArray[np.int64]
_OPEN_SHARDS = 16


@dataclass(frozen=True)
class ShardInfo:
    """One shard: its name (unique in the data set), its address, its bytes, the stamp of its content, its samples."""

    name: str
    url: str
    size: int
    stamp: str
    rows: int
    sha256: str = ""


class _Descriptor:
    """An open file that closes when the last user lets go of it: the table of open shards may drop it meanwhile."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __del__(self) -> None:
        os.close(self.number)


def _table_of_open_shards(shards: Sequence[ShardInfo], cache_dir: Path) -> Callable[[int], _Descriptor]:
    """A function from a shard's number to its open file, which keeps the most recently used ones open."""

    @functools.lru_cache(_OPEN_SHARDS)  # not around a method: a cycle would keep files open until the next collection
    def open_one(shard: int) -> _Descriptor:
        info = shards[shard]
        return _Descriptor(open_shard(info.url, Facts(info.size, info.stamp), cache_dir, info.sha256))

    return open_one


class ShardIndex:
    """Samples 0 … num_samples-1 of a data set, shard after shard, row after row.

    Attributes: name; shards; row_start int64 [shards + 1] (first sample of each shard); image_offset, image_size int64
    [samples] (bytes in the shard); label int64 [samples], -1 where there is none; fingerprint (sha256 over the sorted
    keys, each followed by NUL); key_width (bytes of the longest key); num_ignored (members that are neither image nor
    label). `dlth.data.shards.index.open_index` makes one.
    """

    def __init__(
        self,
        name: str,
        shards: Sequence[ShardInfo],
        image_offset: Int64s,
        image_size: Int64s,
        label: Int64s,
        key_bytes: NDArray[np.uint8],
        key_start: Int64s,
        fingerprint: str,
        num_ignored: int = 0,
        cache_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        self.name, self.shards = name, tuple(shards)
        self.row_start: Int64s = np.concatenate([[0], np.cumsum([shard.rows for shard in shards])]).astype(np.int64)
        self.image_offset, self.image_size, self.label = image_offset, image_size, label
        self.key_bytes, self.key_start = key_bytes, key_start
        self.fingerprint, self.num_ignored = fingerprint, num_ignored
        self.cache_dir: Path = cache_root(cache_dir)
        self._open = _table_of_open_shards(self.shards, self.cache_dir)

    @property
    def num_samples(self) -> int:
        """Images in all shards."""
        return len(self.image_offset)

    @property
    def num_classes(self) -> int:
        """Largest label + 1; 0 without labels."""
        return int(self.label.max(initial=-1)) + 1

    @property
    def key_width(self) -> int:
        """Bytes of the longest key in UTF-8."""
        return int(np.diff(self.key_start).max(initial=0))

    @functools.cached_property
    def identity(self) -> DataIdentity:
        """Digests of keys, order, labels and content; worked out once, which reads a sample of the images."""
        return data_identity(self)

    def __len__(self) -> int:
        return self.num_samples

    def __repr__(self) -> str:
        return f"ShardIndex({self.name!r}, {len(self.shards)} shards, {self.num_samples} samples)"

    def key(self, sample: int) -> str:
        """The key of one sample. Raises IndexError outside the data set."""
        if not 0 <= sample < self.num_samples:
            raise IndexError(f"sample {sample} of {self.num_samples}")
        return bytes(self.key_bytes[self.key_start[sample] : self.key_start[sample + 1]]).decode()

    def keys(self, shard: int) -> list[str]:
        """The keys of one shard's samples in row order."""
        ends = self.key_start[self.row_start[shard] : self.row_start[shard + 1] + 1]
        text = bytes(self.key_bytes[ends[0] : ends[-1]])
        ends = ends - ends[0]
        return [text[a:b].decode() for a, b in zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True)]

    def shard_of(self, sample: int) -> int:
        """The shard's number that holds a sample."""
        return int(np.searchsorted(self.row_start, sample, side="right")) - 1

    def where(self, sample: int) -> str:
        """Shard and key of a sample, as messages name them."""
        return f"shard {shown(self.shards[self.shard_of(sample)].name)}, key {shown(self.key(sample))}"

    def read(self, sample: int) -> bytes:
        """The encoded image of one sample, exactly as stored."""
        return self.read_many([sample])[0]

    def read_many(self, samples: Sequence[int] | Int64s) -> list[bytes]:
        """The encoded images of `samples`, in their order; read by shard and position.

        Raises DamageError, naming shard, key and byte, where a shard has changed, is cut short, or has no image of that
        size there; MissingFileError where a shard is gone; IndexError for a sample outside the data set.
        """
        wanted = np.asarray(samples, dtype=np.int64)
        if wanted.size and not (wanted.min() >= 0 and wanted.max() < self.num_samples):
            raise IndexError(f"samples {wanted.min()} to {wanted.max()} of {self.num_samples}")
        images: list[bytes] = [b""] * len(wanted)
        in_shard = np.searchsorted(self.row_start, wanted, side="right") - 1
        for place in np.lexsort((self.image_offset[wanted], in_shard)).tolist():
            images[place] = self._read(int(in_shard[place]), int(wanted[place]))
        return images

    def _read(self, shard: int, sample: int) -> bytes:
        offset, size = int(self.image_offset[sample]), int(self.image_size[sample])
        descriptor = self._open(shard)
        raw = pread(descriptor.number, offset - BLOCK, BLOCK + size)
        if len(raw) == BLOCK + size and check_header(raw[:BLOCK], size):
            return raw[BLOCK:]
        if len(raw) < BLOCK + size:
            found = f"only {max(0, len(raw) - BLOCK)} are there"
        else:
            found = "the header before them is damaged or another member's"
        name = self.shards[shard].name
        raise DamageError(
            f"shard {shown(name)}, key {shown(self.key(sample))}: byte {offset}: an image of {size} bytes is expected, "
            f"{found}. Fetch the shard again; if it was changed on purpose, run dlth index --rebuild.",
            shard=name,
        )

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in self.__dict__.items() if name != "_open"}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._open = _table_of_open_shards(self.shards, self.cache_dir)
