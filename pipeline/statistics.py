"""Is one arm better than another? Paired statistics on the same images.

Two runs are compared image by image, because most images are easy or hard for both: the spread of the difference is far
smaller than that of either accuracy. Written out here in numpy: two short formulas do not justify scipy at run time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from dlth.tickets.seeding import generator


@dataclass(frozen=True)
class PairedTest:
    """Difference of two arms in percentage points.

    difference: mean of (first - second), over images and seeds
    low, high: 95 % interval of a bootstrap over images
    p_value: exact McNemar test, two-sided, on pairs pooled over seeds
    only_first, only_second: pairs in which one arm alone was right
    """

    difference: float
    low: float
    high: float
    p_value: float
    only_first: int
    only_second: int


def paired_test(first_SN: np.ndarray, second_SN: np.ndarray, draws: int = 2000, seed: int = 0) -> PairedTest:
    """Compare two arms on the same images and seeds.

    Args:
        first_SN: bool [seeds, images], whether the first arm was right
        second_SN: bool [seeds, images], the same for the second arm, in the same order
        draws: bootstrap samples
        seed: seed of the bootstrap
    Returns:
        The difference with its interval and McNemar's exact p-value (McNemar 1947).
    Raises:
        ValueError: the two do not pair up.
    """
    if first_SN.shape != second_SN.shape:
        raise ValueError(f"arms must be paired: shapes {first_SN.shape} and {second_SN.shape} differ")
    per_image = (first_SN.astype(float) - second_SN.astype(float)).mean(axis=0)
    rng = generator("bootstrap", seed)
    picks = rng.integers(len(per_image), size=(draws, len(per_image)))
    low, high = np.quantile(per_image[picks].mean(axis=1), [0.025, 0.975])
    only_first = int((first_SN & ~second_SN).sum())
    only_second = int((second_SN & ~first_SN).sum())
    return PairedTest(
        difference=100 * float(per_image.mean()),
        low=100 * float(low),
        high=100 * float(high),
        p_value=_two_sided_sign_test(only_first, only_second),
        only_first=only_first,
        only_second=only_second,
    )


def _two_sided_sign_test(wins: int, losses: int) -> float:
    """Chance of a split at least this uneven when both sides are equally likely (exact binomial)."""
    total, fewer = wins + losses, min(wins, losses)
    tail = sum(math.comb(total, count) for count in range(fewer + 1))
    return min(1.0, 2 * tail / 2**total)
