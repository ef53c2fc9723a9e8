"""Kept sets as bits: patch p of a row is bit p % 8 (the lowest first) of byte p // 8; bits after the last patch are 0.

A row without any bit is fill: a ticket keeps at least one patch. A set has no order, so its patches are read by their
numbers. Rejected: run lengths and coded differences, which save less than zstd does on the bits.
"""

import numpy as np
from numpy.typing import NDArray

from dlth.tickets.format.rows import RuleError
from dlth.tickets.ranking.ranks import kept_sets


def ticket_sets(patches: NDArray[np.integer], skipped: NDArray[np.bool_], num_patches: int) -> NDArray[np.bool_]:
    """Bool [rows, num_patches]: the patches that each row [rows, k] names; none for skipped rows."""
    kept = np.zeros((len(patches), num_patches), dtype=bool)
    kept[~skipped] = kept_sets(patches[~skipped], num_patches)
    return kept


def to_bits(kept: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Uint8 [rows, ceil(num_patches / 8)] of kept sets bool [rows, num_patches]."""
    return np.packbits(kept, axis=1, bitorder="little")


def from_bits(bits: NDArray[np.uint8], num_patches: int, k: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """The kept patches int64 [rows, k], ascending (zeros where skipped), and bool [rows], skipped.

    Raises RuleError for a bit after the last patch and for a row that keeps neither k patches nor none.
    """
    flags = np.unpackbits(bits, axis=1, bitorder="little").view(bool)
    if flags[:, num_patches:].any():
        raise RuleError(f"row {int(np.argmax(flags[:, num_patches:].any(axis=1)))} has a bit after the last patch")
    counts = flags.sum(axis=1)
    skipped: NDArray[np.bool_] = counts == 0
    wrong = ~skipped & (counts != k)
    if wrong.any():
        row = int(np.argmax(wrong))
        raise RuleError(f"row {row} keeps {counts[row]} patches, every ticket of this file keeps {k}")
    patches = np.zeros((len(bits), k), dtype=np.int64)
    patches[~skipped] = np.nonzero(flags[~skipped])[1].reshape(-1, k)
    return patches, skipped
