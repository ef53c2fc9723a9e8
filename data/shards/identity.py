"""What says that images, and sets of images, are the same, whatever they are called and wherever they lie.

One image is its encoded bytes: a 128-bit hash, which is the same in every packing. A data set is four digests, because
"the same data" has four meanings, and whoever finds a difference must be able to name it: which keys, in which order
and shards (an epoch's batches follow from it), with which labels, and with which bytes. Labels and sizes are taken key
by key, so that a repacked copy differs in its order alone.

Reading all bytes of ImageNet would take as long as an epoch. So `content` covers the size of every image, which
encoding an image again changes almost surely, and the hashes of a fixed sample: all images of a small set, else some
of a few shards, as each may have to be fetched. An image outside the sample that was replaced by another of exactly its
size is not seen here; with tickets the loader sees it (`reader.py`).
Above SAMPLE images the sample follows the packing.
"""

import hashlib
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from dlth.tickets.callbacks import Progress

if TYPE_CHECKING:
    from dlth.data.shards.shard_index import ShardIndex

SAMPLE = 1_000
"""Images whose bytes are read for a data set's identity, at most."""
SAMPLE_SHARDS = 4
"""Shards that a sample is taken from where not every image is read."""
_READ_AT_ONCE = 256  # before any is let go

Ids = NDArray[np.int64]


@dataclass(frozen=True)
class DataIdentity:
    """A data set as four sha256 digests.

    keys: the sorted keys, as a ticket file's header has it; order: keys in order and rows of each shard;
    labels: the label of each key; content: the size of each key's image, and the bytes of a sample
    """

    keys: str
    order: str
    labels: str
    content: str

    def named(self, name: str) -> dict[str, str]:
        """The digests under `name` (the keys'), `name_order`, `name_labels`, `name_content`."""
        return {
            name: self.keys,
            f"{name}_order": self.order,
            f"{name}_labels": self.labels,
            f"{name}_content": self.content,
        }


def content_hash(encoded: bytes) -> bytes:
    """The 16 bytes (xxh3, 128 bits) that identify these encoded image bytes in every packing of the data set."""
    return xxhash.xxh3_128_digest(encoded)


def content_hashes(index: "ShardIndex", ids: Ids, progress: Progress | None = None) -> NDArray[np.uint8]:
    """Uint8 [ids, 16]: the content hash of each image; reads them all, and calls `progress(done, total)` meanwhile."""
    hashes = np.empty((len(ids), 16), dtype=np.uint8)
    for start in range(0, len(ids), _READ_AT_ONCE):
        part = slice(start, min(start + _READ_AT_ONCE, len(ids)))
        raw = b"".join(map(content_hash, index.read_many(ids[part])))
        hashes[part] = np.frombuffer(raw, dtype=np.uint8).reshape(-1, 16)
        if progress is not None:
            progress(part.stop, len(ids))
    return hashes


def data_identity(index: "ShardIndex") -> DataIdentity:
    """The identity of the data set that `index` lists; reads the sample's images, and raises what reading raises."""
    hashes = _key_hashes(_keys(index))
    by_key = np.argsort(hashes, kind="stable")  # an order that every packing of these keys has
    keyed = hashes[by_key]
    ids = np.arange(index.num_samples, dtype=np.int64)
    sample = ids if len(ids) <= SAMPLE else spread_over_shards(index, ids, SAMPLE // SAMPLE_SHARDS)
    return DataIdentity(
        keys=index.fingerprint,
        order=_sha256(index.row_start, index.key_start, index.key_bytes),
        labels=labels_digest(_keys(index), index.label),
        content=_sha256(keyed, index.image_size[by_key], np.unique(content_hashes(index, sample), axis=0)),
    )


def spread_over_shards(index: "ShardIndex", ids: Ids, per_shard: int) -> Ids:
    """At most `per_shard` of `ids` (ascending) from each of SAMPLE_SHARDS shards, evenly spaced in both."""
    parts = by_shard(index, ids)
    chosen = [spread(parts[shard], per_shard) for shard in spread(np.array(list(parts)), SAMPLE_SHARDS).tolist()]
    return np.concatenate(chosen) if chosen else ids


def by_shard(index: "ShardIndex", ids: Ids) -> dict[int, Ids]:
    """`ids` (ascending) by the number of their shard."""
    parts = np.split(ids, np.searchsorted(ids, index.row_start[1:-1]))
    return {shard: part for shard, part in enumerate(parts) if len(part)}


def spread(values: Ids, count: int) -> Ids:
    """At most `count` of the values, evenly spaced."""
    return values[np.unique(np.linspace(0, len(values) - 1, count).astype(np.int64))] if len(values) else values


def keys_digest(keys: Iterable[bytes]) -> str:
    """The digest `keys` of a data set: of its keys, in any order."""
    return hashlib.sha256(b"".join(key + b"\0" for key in sorted(keys))).hexdigest()


def labels_digest(keys: Iterable[bytes], labels: NDArray[np.int64]) -> str:
    """The digest `labels` of a data set: of the label of each key, in any order of both."""
    hashes = _key_hashes(keys)
    by_key = np.argsort(hashes, kind="stable")
    return _sha256(hashes[by_key], labels[by_key])


def _keys(index: "ShardIndex") -> Iterator[bytes]:
    text, ends = index.key_bytes.tobytes(), index.key_start.tolist()
    return (text[start:end] for start, end in itertools.pairwise(ends))


def _key_hashes(keys: Iterable[bytes]) -> NDArray[np.uint64]:
    """Uint64 [keys]: the xxh3 of each key, the same on every machine."""
    return np.fromiter(map(xxhash.xxh3_64_intdigest, keys), dtype=np.uint64)


def _sha256(*arrays: NDArray[Any]) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        little = array.astype(array.dtype.newbyteorder("<"), copy=False)
        digest.update(f"{array.shape}".encode())
        digest.update(np.ascontiguousarray(little).data)
    return digest.hexdigest()
