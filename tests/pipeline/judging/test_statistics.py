"""Statements about arms and models, against values worked out by hand, other formulas, and studies of known truth."""

import runpy
import tracemalloc

import numpy as np
import pytest
from makers import TESTS
from scipy import stats

from dlth.pipeline import compare_arms
from dlth.tickets.errors import InputError, MismatchError

STUDIES = runpy.run_path(str(TESTS / "pipeline/judging/null_studies.py"))
Study, tally = STUDIES["Study"], STUDIES["tally"]


def split(only_first: int, only_second: int, images: int) -> tuple[np.ndarray, np.ndarray]:
    """One seed in which so many images were right in one arm alone; on the others both were right."""
    first, second = np.ones((2, 1, images), dtype=bool)
    second[0, :only_first] = False
    first[0, only_first : only_first + only_second] = False
    return first, second


@pytest.mark.parametrize("interaction", [False, True])
@pytest.mark.parametrize("spread", [0.0, 0.2, 1.0, 2.0])
@pytest.mark.parametrize("seeds", [2, 3, 5, 10])
def test_two_equal_arms_are_told_apart_no_more_often_than_is_said(seeds: int, spread: float, interaction: bool) -> None:
    """1,500 images, no true difference of the arms: the 95 % interval misses its truth in at most 7 % of studies.

    The truth of two seeds is the difference of these models; from three on no difference is found between arms.
    """
    came = tally(Study(seeds, 1_500, spread, interaction), 300)
    assert came.missed <= 7
    if seeds >= 3 or not spread:
        assert came.found <= 7


@pytest.mark.parametrize(("seeds", "spread", "count"), [(2, 2.0, 300), (3, 0.2, 200), (3, 2.0, 300), (10, 0.2, 150)])
def test_50_000_images_do_not_hide_that_runs_differ(seeds: int, spread: float, count: int) -> None:
    """The same with a validation set of ImageNet's size, where the images' own noise is next to nothing."""
    came = tally(Study(seeds, 50_000, spread, interaction=True), count)
    assert came.missed <= 7
    if seeds >= 3:
        assert came.found <= 7


@pytest.mark.parametrize(("seeds", "gap"), [(3, 6.0), (5, 3.0), (10, 2.0)])
def test_a_true_difference_is_found_as_often_as_planned(seeds: int, gap: float) -> None:
    """Runs spread by one point: found about as often as the t-test of so many pairs promises, neither more nor less."""
    came = tally(Study(seeds, 1_500, 1.0, interaction=False, gap=gap, accuracy=0.7), 300)
    chance = 100**2 * 0.22 / 1_500  # variance of one run's difference that luck with 1,500 images brings, in points²
    freedom = seeds - 1
    centre, needed = gap / np.sqrt((2 * 1.0**2 + chance) / seeds), stats.t.isf(0.025, freedom)
    planned = 100 * stats.nct.sf(needed, freedom, centre)
    assert 50 < planned < 98
    assert abs(came.found - planned) < 8


def test_as_good_is_shown_where_it_is_so_and_not_where_the_margin_is_the_truth() -> None:
    """Ten seeds, margin 1 point: equal arms are mostly shown equal, arms one point apart in at most 7 %."""
    equal = tally(Study(10, 1_500, 0.2, interaction=False), 200)
    apart = tally(Study(10, 1_500, 0.2, interaction=False, gap=1.0, accuracy=0.8), 300)
    assert equal.equivalent > 80
    assert apart.equivalent <= 7


def test_with_fewer_than_three_seeds_nothing_is_said_of_arms() -> None:
    """One and two seeds speak of these models, three of arms; a spread between runs widens only the last."""
    rng = np.random.default_rng(0)
    first, second, _ = Study(3, 1_500, 3.0, interaction=False).draw(rng)
    widths = {}
    for seeds in (1, 2, 3):
        came = compare_arms(first[:seeds], second[:seeds])
        assert came.about == ("arms" if seeds == 3 else "models")
        assert came.num_seeds, came.num_images == (seeds, 1_500)
        widths[seeds] = came.high - came.low
    assert widths[3] > 2 * widths[1] > 2 * widths[2]


def test_two_seeds_are_the_paired_t_test_over_images() -> None:
    """Per-image differences averaged over the seeds: the interval is scipy's, of these and two images that disagree."""
    rng = np.random.default_rng(3)
    first, second = rng.random((2, 400)) < 0.8, rng.random((2, 400)) < 0.7
    came = compare_arms(first, second)
    per_image = 100 * (first.mean(axis=0) - second.mean(axis=0))
    counted = stats.ttest_1samp([*per_image, 100, -100], 0).confidence_interval()
    assert came.difference == pytest.approx(per_image.mean())
    assert came.high - came.low == pytest.approx(counted.high - counted.low)
    assert came.low == pytest.approx(stats.ttest_1samp(per_image, 0).confidence_interval().low, abs=0.1)


def test_ten_seeds_without_noise_of_images_are_the_paired_t_test_over_runs() -> None:
    """50,000 images and runs 3 points apart: p is that of a t-test of the ten differences."""
    first, second, _ = Study(10, 50_000, 3.0, interaction=False, gap=2.0, accuracy=0.7).draw(np.random.default_rng(1))
    came = compare_arms(first, second)
    assert came.p_value == pytest.approx(stats.ttest_rel(first.mean(axis=1), second.mean(axis=1)).pvalue, rel=0.05)


@pytest.mark.parametrize(("seeds", "draws"), [(2, 5), (3, 2), (3, 5), (5, 2)])
def test_draws_of_a_seed_find_no_difference_that_is_not_there(seeds: int, draws: int) -> None:
    """One run of a seed against several draws of it that have much in common: 95 % intervals miss in at most 7 %."""
    for spread in (0.0, 1.0):
        came = tally(Study(seeds, 1_500, spread, interaction=True, draws=draws), 200)
        assert came.missed <= 7
        assert seeds < 3 or came.found <= 7


def test_draws_are_no_more_seeds_but_their_mean() -> None:
    """A run that is given three times says what it says once; draws that differ say what their mean does, each arm with
    as many as it has.
    """
    rng = np.random.default_rng(4)
    for seeds in (2, 4):
        first, second = rng.random((seeds, 300)) < 0.8, rng.random((seeds, 2, 300)) < 0.7
        once = compare_arms(first, second[:, 0], margin=1)
        thrice = compare_arms(np.stack([first] * 3, axis=1), second[:, :1], margin=1)
        assert (thrice.num_seeds, thrice.num_draws, once.num_draws) == (seeds, (3, 1), (1, 1))
        for name in ("difference", "low", "high", "p_value", "equivalence_p_value"):
            assert getattr(thrice, name) == pytest.approx(getattr(once, name), rel=1e-9)
        came = compare_arms(first, second)
        assert came.difference == pytest.approx(100 * (first.mean() - second.mean()))
        per_image = 100 * (first.mean(axis=0) - second.mean(axis=(0, 1)))
        if seeds == 2:  # about models: scipy's paired t-test over images and two that disagree
            counted = stats.ttest_1samp([*per_image, 100, -100], 0).confidence_interval()
            assert came.high - came.low == pytest.approx(counted.high - counted.low)
        else:
            per_seed = first.mean(axis=1) - second.mean(axis=(1, 2))
            assert came.run_spread == pytest.approx(100 * per_seed.std(ddof=1))
    one = compare_arms(first[:1], second[:1])
    assert (one.p_value < 0.05) == (not one.low <= 0 <= one.high)


def test_one_seed_is_mcnemars_exact_test() -> None:
    """Every split of up to 20 disagreements: p is the exact binomial one, and the interval agrees with it."""
    for images in (20, 21, 500):
        for only_first in range(21):
            for only_second in range(21 - only_first):
                came = compare_arms(*split(only_first, only_second, images))
                disagreed = only_first + only_second
                exact = stats.binomtest(only_first, disagreed).pvalue if disagreed else 1.0
                assert came.p_value == pytest.approx(exact, rel=1e-9)
                assert (came.p_value < 0.05) == (not came.low <= 0 <= came.high)
                assert came.difference == pytest.approx(100 * (only_first - only_second) / images)


def test_the_p_value_is_where_the_interval_touches() -> None:
    """For arms and for models p < 0.05 exactly where the interval leaves 0 out, and comparing backwards mirrors all."""
    rng = np.random.default_rng(5)
    for seeds in (2, 3, 6):
        for _ in range(100):
            first, second, _ = Study(seeds, 300, 1.0, interaction=True, gap=4.0, accuracy=0.8).draw(rng)
            came, back = compare_arms(first, second), compare_arms(second, first)
            assert (came.p_value < 0.05) == (not came.low <= 0 <= came.high)
            assert (back.difference, back.low, back.high) == (-came.difference, -came.high, -came.low)
            assert back.p_value == came.p_value


def test_no_disagreement_is_not_taken_for_certainty() -> None:
    """Arms that agree on 40 images: no difference, but an interval that has a width, and no proof of equality."""
    hits = np.random.default_rng(0).random((3, 40)) < 0.7
    for seeds in (1, 2, 3):
        came = compare_arms(hits[:seeds], hits[:seeds], margin=1)
        assert (came.difference, came.p_value) == (0, 1)
        assert came.low < -1 < 1 < came.high
        assert came.equivalent is False


def test_differences_that_cancel_by_seed_and_by_image_are_no_difference() -> None:
    """Neither runs nor images then show any variance: an interval of no width around 0 had p = 1e-200."""
    cancelling_SN = np.tile([[1, -1, 0], [-1, 0, 1], [0, 1, -1]], (1, 20))
    came = compare_arms(cancelling_SN > 0, cancelling_SN < 0)
    assert came.low < came.difference == 0 < came.high
    assert came.p_value == 1


def test_verdicts_say_holds_fails_or_not_decided() -> None:
    """Better needs an interval without 0, as good needs the margin; what neither shows is not decided."""
    rng = np.random.default_rng(0)
    base = rng.random((5, 3_000)) < 0.8
    worse, alike = base & (rng.random(base.shape) < 0.9), base ^ (rng.random(base.shape) < 0.02)
    assert compare_arms(base, worse).better == "holds"
    assert compare_arms(worse, base).better == "fails"
    near = compare_arms(base, alike, margin=3)
    assert (near.as_good, near.equivalent) == ("holds", True)
    far = compare_arms(worse, base, margin=1)
    assert (far.as_good, far.equivalent) == ("fails", False)
    small = compare_arms(base[:3, :60], alike[:3, :60], margin=0.5)
    assert (small.better, small.as_good) == ("not decided", "not decided")
    without = compare_arms(base, alike)
    assert (without.margin, without.equivalent, without.equivalence_p_value) == (None, None, None)
    with pytest.raises(InputError, match="a number of points above 0 is needed"):
        compare_arms(base, alike, margin="1")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="needs a margin"):
        _ = without.as_good


def test_ten_seeds_of_50_000_images_take_little_memory() -> None:
    """Nothing grows with more than the results themselves: far below 300 MB."""
    rng = np.random.default_rng(0)
    first, second = rng.random((10, 50_000)) < 0.8, rng.random((10, 50_000)) < 0.79
    tracemalloc.start()
    came = compare_arms(first, second, margin=2)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10e6
    assert came.num_images == 50_000


@pytest.mark.parametrize(
    ("first", "second", "margin", "error", "told"),
    [
        (np.ones((2, 3), bool), np.ones((2, 4), bool), None, MismatchError, "2 seeds of 3 images, second 2 seeds of 4"),
        (np.ones(3, bool), np.ones(3, bool), None, InputError, r"first: found bool of shape \(3,\)"),
        (np.ones((2, 3), bool), np.ones((2, 3)), None, InputError, "second: found float64"),
        (np.ones((2, 0), bool), np.ones((2, 0), bool), None, InputError, "at least one of each"),
        (np.ones((2, 3), bool), np.ones((2, 3), bool), 0, InputError, "margin 0: a number of points above 0"),
        (np.ones((2, 3), bool), np.ones((2, 3), bool), float("nan"), InputError, "margin nan"),
        (np.ones((2, 3), bool), np.ones((2, 3), bool), 10**400, InputError, "at most 100"),
        (np.ones((2, 3), bool), np.ones((2, 3), bool), True, InputError, "margin True"),
        ([[True], [True, False]], np.ones((2, 2), bool), None, InputError, "first: no table of bool"),
        (np.ones((2, 3), bool), np.ma.array(np.ones((2, 3), bool), mask=True), None, InputError, "second: .* masked"),
        ([np.ma.array([True, True], mask=[0, 1])] * 2, np.ones((2, 2), bool), None, InputError, "first: .* masked"),
        (np.ones((2, 3), object), np.ones((2, 3), bool), None, InputError, "first: found object"),
        ([["a"]], [["a"]], None, InputError, "first: found <U1"),
        (np.full((2, 3), np.nan), np.ones((2, 3), bool), None, InputError, "first: found float64"),
        ([], [], None, InputError, r"first: found float64 of shape \(0,\)"),
        (np.ones((2, 4, 3), bool), np.ones((3, 3), bool), None, MismatchError, "first has 2 seeds of 3 images"),
        (np.ones((2, 101, 3), bool), np.ones((2, 3), bool), None, InputError, "at most 100 draws"),
    ],
    ids=[
        *("other images", "one axis", "not bool", "empty"),
        *("no margin", "margin nan", "margin beyond all", "margin bool"),
        *("ragged", "masked", "masked rows", "objects", "text", "nan", "no seeds", "draws", "too many draws"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    first: np.ndarray, second: np.ndarray, margin: float | None, error: type[Exception], told: str
) -> None:
    """Arms that do not pair up, results that are not right or wrong, and margins that mean nothing."""
    with pytest.raises(error, match=told):
        compare_arms(first, second, margin)
