"""When a row of a ticket file belongs to an image, or to a row of another file: the one rule of trust.

A lettered key is believed as it is. A running number (`000123`) names an image only within its own packing, so a pair
with such a key counts only when the content hashes agree. It is judged key by key: lettered keys beside the numbers
change nothing for them. Unknown hashes (zeros) agree with nothing. Believing look-alike numbers would give every image
another's ticket, and raise no error ever. Who cannot read all images at once (`dlth.data.joining.join`) asks the same
of a sample of each shard, and of every image when it is loaded.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dlth.tickets.store.keyindex import KeyIndex
from dlth.tickets.store.stored_file import StoredFile

NO_TICKET = -1

Flags = NDArray[np.bool_]
Rows = NDArray[np.int64]
"""Int64 [images]: the number of each one's row in the ticket file, or NO_TICKET."""
Hashes = NDArray[np.uint8]
"""Uint8 [images, 16]: content hashes, zeros where unknown."""


def base_name(key: str) -> str:
    """A key without folders and extension."""
    return key.rpartition("/")[2].partition(".")[0]


def running_numbers(keys: Sequence[str]) -> Flags:
    """Bool [keys]: whose base name has no letter (`000123`, `07-000123`): elsewhere it may name another image."""
    return np.fromiter((not any(map(str.isalpha, base_name(key))) for key in keys), dtype=bool, count=len(keys))


def same_bytes(hashes: Hashes, others: Hashes) -> Flags:
    """Bool [n]: where two content hashes are known and agree."""
    same: Flags = (hashes == others).all(axis=1) & hashes.any(axis=1)
    return same


def believed(numbered: Flags, hashes: Hashes, others: Hashes) -> Flags:
    """Bool [n]: which pairs of one key count, by the rule above; `numbered` bool [n] from `running_numbers`."""
    return ~numbered | same_bytes(hashes, others)


def stored_hashes(store: StoredFile, rows: Rows) -> Hashes:
    """The content hashes of `rows`, zeros for NO_TICKET; each shard's chunk of the file is read once."""
    hashes = np.zeros((len(rows), 16), dtype=np.uint8)
    for shard_index, at, shard_rows in store.by_shard(rows):
        hashes[at] = store.image_hashes(shard_index)[shard_rows]
    return hashes


def rows_by_content(store: StoredFile, hashes: Hashes) -> Rows:
    """The row that each of `hashes` has, NO_TICKET where there is none. Memory: 16 bytes a row of the file."""
    heads = [_heads(store.image_hashes(shard_index)) for shard_index in range(len(store.shards))]
    rows = KeyIndex(heads, store.max_rows).first_rows(_heads(hashes))
    return np.where(same_bytes(hashes, stored_hashes(store, rows)), rows, NO_TICKET)


def _heads(hashes: Hashes) -> NDArray[np.uint64]:
    """Uint64 [n]: the first eight bytes of each hash."""
    return np.ascontiguousarray(hashes[:, :8]).view("<u8").ravel()
