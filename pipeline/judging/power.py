"""How many seeds would decide what these did not, if the truth is what they saw: difference and spread alike.

With S seeds the mean difference varies by the runs' variance over S, and by the images' part, which no seed averages
away. The half-width of the interval varies, too, as it is estimated from the S runs; both are followed (for runs alone
this is the noncentral t, as in Cohen's tables). That the truth is what was seen is an assumption, and a weak one after
three seeds: the spread may be half of it or six times as much. `docs/statistics.md` has what that does to the promise.
"""

import math
from bisect import bisect_left
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.special import gammaincinv, ndtr, stdtrit

from dlth.pipeline.judging.arm_comparison import LEVEL, SEEDS_FOR_ARMS, Comparison

POWER = 0.8
"""Seeds are enough where they decide in this share of studies."""
MOST_SEEDS = 100
"""Beyond, the number is not worked out."""
_ENDLESS = 10**6
"""So many seeds leave no noise but that of images."""
_QUANTILES = (np.arange(200) + 0.5) / 200
"""Of the spread that S runs will show; the mean over these is off by less than 0.001."""


@dataclass(frozen=True)
class MoreSeeds:
    """What it would take to decide.

    bound: "about" so many seeds more; "at least" where too few are there to tell; "more than" where a hundred in all do
        not decide; "never" where the noise of the images alone hides the difference, and only more images would help
    number: of seeds more; 0 for "never"
    """

    bound: Literal["about", "at least", "more than", "never"]
    number: int


def chance_to_decide(came: Comparison, num_seeds: int, level: float = LEVEL) -> float:
    """Chance that a study of `num_seeds` seeds decides at `level`, if this one's difference and spread are the truth.

    What it would decide is what the difference says: without a margin which arm is better, with one that they are as
    good where the difference is within it, and that they are not where it is beyond.
    """
    (runs, _), (images, freedom) = came.noise.parts
    runs *= came.num_seeds / num_seeds
    spread = math.sqrt(runs + images)
    difference, margin = abs(came.difference) / 100, (came.margin or 0.0) / 100
    within = difference < margin
    tail = level if within else level / 2  # two one-sided tests, or one two-sided
    seen_Q = 2 * gammaincinv((num_seeds - 1) / 2, _QUANTILES) / (num_seeds - 1)  # of the true variance, a chi-squared
    t_runs, t_images = stdtrit(num_seeds - 1, tail), stdtrit(freedom, tail)
    half_Q = np.sqrt(t_runs**2 * runs * seen_Q + t_images**2 * images)
    below_Q = ndtr((margin - difference - half_Q) / spread)
    if within:
        return float(np.maximum(0, below_Q - ndtr((half_Q - margin - difference) / spread)).mean())
    return float(ndtr((difference - margin - half_Q) / spread).mean())


def more_seeds(came: Comparison, level: float = LEVEL) -> MoreSeeds:
    """Seeds to add to those of `came`, for a chance of 80 % to decide at `level`."""
    if came.num_seeds < SEEDS_FOR_ARMS:
        return MoreSeeds("at least", SEEDS_FOR_ARMS - came.num_seeds)
    if chance_to_decide(came, _ENDLESS, level) < POWER:
        return MoreSeeds("never", 0)
    number = bisect_left(
        range(MOST_SEEDS + 1), POWER, came.num_seeds + 1, key=lambda n: chance_to_decide(came, n, level)
    )
    if number > MOST_SEEDS:
        return MoreSeeds("more than", max(0, MOST_SEEDS - came.num_seeds))
    return MoreSeeds("about", number - came.num_seeds)
