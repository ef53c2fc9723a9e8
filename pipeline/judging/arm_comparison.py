"""Is one arm better than another, or as good? Statements from the per-image results of several seeds.

There are two kinds of statement, and each says which it is. About *these models*: the runs are taken as they came, the
images are a sample, and another test set is what could turn the result. About *these arms*: the runs are a sample too,
and so could another seed. Two runs of one procedure differ by a point or two on their own account, which no number of
images averages away; pairs of images pooled over seeds take that for a difference of arms. Below three seeds the
spread between runs is not known well enough, and nothing is said of arms.

Both kinds share one rule. The variance of the mean difference is a sum of parts, each estimated with its own degrees of
freedom; the half-width of the interval is sqrt(sum of t² · variance), with the t of each part. This covers the truth at
least as often as it says, however the variance is divided among the parts (Banerjee, Sankhya 22, 1960): the chance that
a squared normal stays below u is concave in u, so it is at least the same mean of the chances of plain t intervals.
Satterthwaite's single degrees of freedom give no such promise: with three seeds they are guessed from two numbers. The
p-value is the level at which the interval just touches, so the two always agree.

A seed may have several draws of what chance decides (fresh weights under one mask). Draws of a seed share what the seed
decides, so they are no further seeds: each image counts with its mean over them. Nothing above asks that a seed's
result of an image be 0 or 1, nor that draws be independent: the means of different seeds are, and the parts are
variances of such means. Sums are of whole numbers all the same, with the draws' common multiple as unit.
"""

import math
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq
from scipy.special import bdtr, stdtrit

from dlth.pipeline.evidence.arm_key import MOST_DRAWS
from dlth.tickets.errors import InputError, MismatchError, shown

LEVEL = 0.05
"""Intervals leave out this share; tests reject at it."""
SEEDS_FOR_ARMS = 3
"""Fewer seeds say nothing of arms."""
SMALLEST = 1e-200
"""Smallest p-value told; scipy's t quantile fails beyond."""

About = Literal["arms", "models"]
Outcome = Literal["holds", "fails", "not decided"]
Wholes = NDArray[np.signedinteger[Any]]
"""Int [seeds, images]: differences times a unit that makes them whole."""


@dataclass(frozen=True)
class Comparison:
    """How two arms, or the models at hand, differ in accuracy; `compare_arms` makes it.

    difference: mean of first - second over seeds and images, in percentage points
    low, high: 95 % interval of the difference, in points
    p_value: two-sided, of no difference; below 0.05 exactly where the interval leaves 0 out
    about: "arms" (another seed and other images could have come) or "models" (other images alone)
    num_seeds, num_images: what was compared
    noise: parts of the variance of the difference as a share (not in points); about arms, those of runs and of images
    margin: points within which two accuracies count as equal; None where none was given
    equivalence_p_value: of a true difference of the margin or more, by two one-sided tests; None without a margin
    num_draws: how many draws of a seed each arm's mean is of
    """

    difference: float
    low: float
    high: float
    p_value: float
    about: About
    num_seeds: int
    num_images: int
    noise: "Noise"
    margin: float | None = None
    equivalence_p_value: float | None = None
    num_draws: tuple[int, int] = (1, 1)

    @property
    def equivalent(self) -> bool | None:
        """Whether the difference is shown to lie within the margin (at 5 %); None without a margin."""
        return None if self.equivalence_p_value is None else self.equivalence_p_value < LEVEL

    @property
    def better(self) -> Outcome:
        """First is better than second: holds or fails where the interval leaves 0 out."""
        return "holds" if self.low > 0 else "fails" if self.high < 0 else "not decided"

    @property
    def as_good(self) -> Outcome:
        """First is as good as second: holds if equivalent, fails where the interval lies beyond the margin."""
        if self.margin is None:
            raise ValueError("'as good as' needs a margin: compare_arms(first, second, margin=…)")
        if self.equivalent:
            return "holds"
        return "fails" if self.low > self.margin or self.high < -self.margin else "not decided"

    @property
    def beyond_p_value(self) -> float | None:
        """Of a true difference within the margin, below 0.05 where 'as good as' fails; None without a margin."""
        if self.margin is None:
            return None
        return min(1.0, 2 * self.noise.tail((abs(self.difference) - self.margin) / 100))

    @property
    def run_spread(self) -> float | None:
        """Standard deviation of one seed's difference, in points; None below three seeds."""
        return 100 * math.sqrt(self.noise.parts[0][0] * self.num_seeds) if self.about == "arms" else None


def compare_arms(first: ArrayLike, second: ArrayLike, margin: float | None = None) -> Comparison:
    """Compare two arms on the same images and seeds.

    From three seeds on, the parts of the variance are the runs' (of the S per-seed differences, over S, with S - 1
    degrees of freedom; it holds the share of what is left to chance per run and image) and the images' own (of the N
    per-image differences, over N, less that share, which would else count twice). Below, they are the images' alone.

    Runs of one seed are taken as a pair. Where they share nothing but the number, that costs degrees of freedom (S - 1
    of 2 S - 2) and the interval still holds; where they share initial weights or order, for better or worse, the
    interval of independent runs would not.

    The images' variance counts two more images, one that the first arm alone got right and one that the second did
    (Bonett and Price, J. Educ. Behav. Stat. 37, 2012), so that no disagreement seen is not taken for none possible.

    Args:
        first: bool [seeds, images] or [seeds, draws, images], whether the first arm was right
        second: the same for the second arm: same seeds, same images, same order; any number of draws
        margin: points within which the two count as equally good; adds the equivalence test
    Returns:
        The difference, its 95 % interval and p-value. For one seed of one draw the p-value is McNemar's exact one
        (Psychometrika 12, 1947), and the interval holds 0 wherever that test does.
    Raises:
        InputError: not two or three axes, over 100 draws, not bool, empty, masked values, or a margin that is not above
            0 and up to 100.
        MismatchError: the two do not pair up.
    """
    first_SDN, second_SDN = _checked(first, "first"), _checked(second, "second")
    if (len(first_SDN), first_SDN.shape[2]) != (len(second_SDN), second_SDN.shape[2]):
        raise MismatchError(
            f"arms must be paired: first has {_size(first_SDN)}, second {_size(second_SDN)}."
            " Give the same images and seeds."
        )
    if margin is not None and not (isinstance(margin, Real) and margin is not True and 0 < margin <= 100):
        raise InputError(f"margin {shown(margin)}: a number of points above 0 is needed, at most 100")
    num_draws = first_SDN.shape[1], second_SDN.shape[1]
    unit = math.lcm(*num_draws)
    difference_SN = _summed(first_SDN, unit) - _summed(second_SDN, unit)
    num_seeds, num_images = difference_SN.shape
    difference = int(difference_SN.sum(dtype=np.int64)) / (difference_SN.size * unit)
    noise = (Noise.of_arms if num_seeds >= SEEDS_FOR_ARMS else Noise.of_models)(difference_SN, unit)
    half = noise.half_width(LEVEL)
    low, high, p_value = difference - half, difference + half, noise.p_value(difference)
    if num_seeds == unit == 1:
        p_value = _mcnemar(int((difference_SN > 0).sum()), int((difference_SN < 0).sum()))
        if p_value >= LEVEL:
            low, high = min(low, 0.0), max(high, 0.0)
    return Comparison(
        difference=100 * difference,
        low=100 * max(-1.0, low),
        high=100 * min(1.0, high),
        p_value=p_value,
        about="arms" if num_seeds >= SEEDS_FOR_ARMS else "models",
        num_seeds=num_seeds,
        num_images=num_images,
        noise=noise,
        margin=margin,
        equivalence_p_value=None if margin is None else noise.tail(margin / 100 - abs(difference)),
        num_draws=num_draws,
    )


@dataclass(frozen=True)
class Noise:
    """Parts of the variance of a mean difference: each a variance, and the degrees of freedom it was estimated with.

    It is estimated from whole numbers, differences times `unit`.
    """

    parts: tuple[tuple[float, int], ...]

    @classmethod
    def of_models(cls, difference_SN: Wholes, unit: int = 1) -> Self:
        """What other images would have changed, the runs staying as they are."""
        return cls((_image_part(difference_SN, unit),))

    @classmethod
    def of_arms(cls, difference_SN: Wholes, unit: int = 1) -> Self:
        """What other seeds and other images would have changed, from three seeds on."""
        num_seeds, num_images = difference_SN.shape
        sum_S, sum_N = difference_SN.sum(axis=1, dtype=np.int64), difference_SN.sum(axis=0, dtype=np.int64)
        runs = float(sum_S.var(ddof=1)) / (unit * num_images) ** 2
        squares = int(np.square(difference_SN, dtype=np.int64).sum())
        about_images = (squares - int((sum_N**2).sum()) / num_seeds) / unit**2  # sum of squares
        left = max(0.0, about_images - (num_seeds - 1) * runs * num_images)  # less what the runs explain
        chance = left / ((num_seeds - 1) * max(1, num_images - 1))
        images, freedom = _image_part(difference_SN, unit)
        least = 2 / (num_images + 1) / (num_images + 2)  # what the two images that disagree add alone: never 0
        return cls(((runs / num_seeds, num_seeds - 1), (max(least, images - chance / difference_SN.size), freedom)))

    def half_width(self, level: float) -> float:
        """Half of the interval that leaves out a share `level`."""
        return math.sqrt(sum(variance * float(stdtrit(freedom, level / 2)) ** 2 for variance, freedom in self.parts))

    def p_value(self, difference: float) -> float:
        """Level at which the interval around `difference` touches 0; 1e-200 for what is smaller still."""
        if self.half_width(SMALLEST) < abs(difference):
            return SMALLEST
        log_level = brentq(lambda log: self.half_width(math.exp(log)) - abs(difference), math.log(SMALLEST), 0.0)
        return math.exp(log_level)

    def tail(self, distance: float) -> float:
        """One-sided: chance of a mean at least `distance` above its truth; more than a half for a negative distance."""
        beyond = self.p_value(distance) / 2
        return beyond if distance >= 0 else 1 - beyond


def _summed(hits_SDN: NDArray[np.bool_], unit: int) -> Wholes:
    """The mean over draws times `unit`, a multiple of their number: int [seeds, images]."""
    kind = np.min_scalar_type(-unit)  # of what a difference may be, too: int8 without draws
    summed: Wholes = hits_SDN.sum(axis=1, dtype=kind) * kind.type(unit // hits_SDN.shape[1])
    return summed


def _image_part(difference_SN: Wholes, unit: int) -> tuple[float, int]:
    """Variance of the mean over images of the per-image differences, and its degrees of freedom."""
    num_seeds, num_images = difference_SN.shape
    sum_N = difference_SN.sum(axis=0, dtype=np.int64)
    count = num_images + 2  # with the two images that disagree, one each way
    runs = num_seeds * unit
    squares = int((sum_N**2).sum()) / runs**2 + 2 - (int(sum_N.sum()) / runs) ** 2 / count
    return squares / (count - 1) / count, count - 1


def _mcnemar(only_first: int, only_second: int) -> float:
    """Chance of a split of the disagreements at least this uneven, if either side is as likely (exact binomial)."""
    return min(1.0, 2 * float(bdtr(min(only_first, only_second), only_first + only_second, 0.5)))


def _checked(hits: ArrayLike, name: str) -> NDArray[np.bool_]:
    try:
        masked: Any = np.ma.array(hits, copy=False)  # of rows, too: their masks are lost on an ordinary array's way
    except (TypeError, ValueError, RuntimeError) as error:  # ragged; a tensor that is sparse, or elsewhere
        raise InputError(f"{name}: no table of bool [seeds, images] ({shown(error)})") from error
    if np.ma.is_masked(masked):
        raise InputError(f"{name}: some values are masked; leave out the images that one of the runs lacks, in both")
    found = np.asarray(masked.data)
    hits = found[:, np.newaxis] if found.ndim == 2 else found
    if hits.dtype != np.bool_ or hits.ndim != 3 or not hits.size or hits.shape[1] > MOST_DRAWS:
        raise InputError(
            f"{name}: found {found.dtype} of shape {found.shape}; bool [seeds, images] is needed, or [seeds, draws,"
            f" images], at least one of each, and at most {MOST_DRAWS} draws"
        )
    return hits


def _size(hits_SDN: NDArray[np.bool_]) -> str:
    return f"{hits_SDN.shape[0]:,} seeds of {hits_SDN.shape[2]:,} images"
