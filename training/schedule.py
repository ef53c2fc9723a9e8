"""How many patches are kept at which epoch: the paper's adjusted schedule.

k changes from epoch to epoch and not, as the authors' does, from step to step: each k is compiled once, and every batch
of an epoch costs the same. Over 100 epochs the two differ by less than one patch in a hundred.
"""

from __future__ import annotations

import math


def tokens_at(epoch: int, k: int, num_patches: int, start: int, epochs: int) -> int:
    """Patches kept in `epoch` (from 0): all before `start`, then down a half cosine over `epochs`, then `k`."""
    share = min(max((epoch - start) / epochs, 0.0), 1.0)
    return k + math.ceil(round((num_patches - k) * (1 + math.cos(math.pi * share)) / 2, 9))
