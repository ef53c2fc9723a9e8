"""Rankings looked at patch by patch: each patch's rank, the set of those kept, what two sets share.

A ranking lists patches, best first; what is compared, drawn or blended needs the patches in their own order instead.
"""

import numpy as np
from numpy.typing import NDArray


def rank_matrix(patches_NK: NDArray[np.integer], num_patches: int) -> NDArray[np.int64]:
    """Int64 [rows, num_patches]: each patch's rank, 0 the best; patches that are not stored have the rank K."""
    rows, stored = patches_NK.shape
    ranks = np.full((rows, num_patches), stored, dtype=np.int64)
    np.put_along_axis(ranks, patches_NK.astype(np.int64), np.arange(stored, dtype=np.int64)[None], axis=1)
    return ranks


def kept_sets(patches: NDArray[np.integer], num_patches: int) -> NDArray[np.bool_]:
    """Bool [..., num_patches]: whether each patch is one of `patches` [..., k]."""
    kept = np.zeros((*patches.shape[:-1], num_patches), dtype=bool)
    np.put_along_axis(kept, patches.astype(np.int64), True, axis=-1)
    return kept


def num_shared(one: NDArray[np.integer], other: NDArray[np.integer], num_patches: int) -> NDArray[np.int64]:
    """Int64 [...]: how many patches stand in both of `one` and `other` [..., k]."""
    shared: NDArray[np.int64] = (kept_sets(one, num_patches) & kept_sets(other, num_patches)).sum(axis=-1)
    return shared
