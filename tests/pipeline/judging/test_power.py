"""Seeds needed, against the noncentral t and drawn intervals; verdicts over several keeps of simulated studies."""

import runpy

import numpy as np
import pytest
from makers import TESTS
from scipy import stats

from dlth.pipeline.judging.arm_comparison import Comparison, Noise
from dlth.pipeline.judging.power import MOST_SEEDS, POWER, MoreSeeds, chance_to_decide, more_seeds

STUDIES = runpy.run_path(str(TESTS / "pipeline/judging/verdict_studies.py"))
Study, rates, planned = STUDIES["Study"], STUDIES["rates"], STUDIES["planned"]


def came(difference: float, runs: float, images: float, margin: float | None = None, seeds: int = 3) -> Comparison:
    """A comparison of `seeds` seeds: difference, spread between runs and noise of 2,000 images, all in points."""
    noise = Noise((((runs / 100) ** 2 / seeds, seeds - 1), ((images / 100) ** 2, 2_001)))
    return Comparison(difference, -100, 100, 1, "arms", seeds, 2_000, noise, margin, None if margin is None else 1)


@pytest.mark.parametrize(("difference", "spread", "seeds"), [(2, 1, 4), (-1, 1, 10), (6, 2, 3), (0.1, 1, 5)])
def test_without_noise_of_images_the_chance_is_the_t_tests(difference: float, spread: float, seeds: int) -> None:
    """The power of a paired t-test of so many seeds by the noncentral t, for one keep and for one of four."""
    centre = abs(difference) / spread * np.sqrt(seeds)
    for level in (0.05, 0.05 / 4):
        exact = stats.nct.sf(stats.t.isf(level / 2, seeds - 1), seeds - 1, centre)
        assert chance_to_decide(came(difference, spread, 1e-6), seeds, level) == pytest.approx(exact, abs=2e-3)


@pytest.mark.parametrize(("difference", "seeds"), [(0.0, 3), (0.2, 5), (-0.5, 10), (1.8, 5), (-3.0, 3)])
def test_the_chance_to_show_an_equivalence_is_that_of_drawn_intervals(difference: float, seeds: int) -> None:
    """Margin 1, runs spread by half a point, images by 0.2: as in 20,000 drawn studies; beyond it, that it is so."""
    rng = np.random.default_rng(0)
    drawn = difference + 0.5 * rng.standard_normal((20_000, seeds)) + 0.2 * rng.standard_normal((20_000, 1))
    runs, mean = drawn.var(axis=1, ddof=1) / seeds, drawn.mean(axis=1)
    tail = 0.05 if abs(difference) < 1 else 0.025
    half = np.sqrt(stats.t.isf(tail, seeds - 1) ** 2 * runs + stats.t.isf(tail, 2_001) ** 2 * 0.2**2)
    shown = half < 1 - abs(mean) if abs(difference) < 1 else np.sign(difference) * mean - half > 1
    assert chance_to_decide(came(difference, 0.5, 0.2, margin=1), seeds) == pytest.approx(shown.mean(), abs=0.015)


def test_as_many_seeds_are_asked_for_as_decide() -> None:
    """The number is the first with a chance of 80 %, for better and for as good, at every level; less noise, fewer."""
    for margin in (None, 1.0):
        asked = []
        for spread in (1.0, 0.5, 0.3):
            for level in (0.05, 0.01):
                seen = came(0.4, spread, 0.05, margin)
                more = more_seeds(seen, level)
                assert more.bound == "about"
                assert chance_to_decide(seen, 3 + more.number, level) >= POWER
                assert more.number == 1 or chance_to_decide(seen, 2 + more.number, level) < POWER
                asked.append(more.number)
        assert asked[0] > asked[2] > asked[4] >= 1
        assert all(strict > loose for loose, strict in zip(asked[::2], asked[1::2], strict=True))


def test_what_seeds_cannot_decide_is_said() -> None:
    """Images too few, a difference at the margin itself, and one that a hundred seeds would not decide."""
    assert more_seeds(came(0.4, 0.5, 0.3)) == MoreSeeds("never", 0)
    assert more_seeds(came(1.0, 0.5, 0.01, margin=1)) == MoreSeeds("never", 0)
    assert more_seeds(came(0.2, 1.0, 0.01)) == MoreSeeds("more than", MOST_SEEDS - 3)
    assert more_seeds(came(0.2, 1.0, 0.01, seeds=120)) == MoreSeeds("more than", 0)
    assert more_seeds(came(0.2, 1.0, 0.01, seeds=1)) == MoreSeeds("at least", 2)


@pytest.mark.parametrize(
    ("other", "gap", "spread", "outcome"),
    [("random", 2.0, 0.5, "holds"), ("ticket", 0.0, 0.2, "holds"), ("ticket", 3.0, 0.5, "fails")],
    ids=["dense better", "as good", "not as good"],
)
def test_a_difference_of_known_size_is_decided_as_often_as_planned(
    other: str, gap: float, spread: float, outcome: str
) -> None:
    """Seeds as asked for where the truth is known, beside two keeps that show nothing: about as often as promised."""
    study, chance = planned(Study(other, (gap, *[0.0 if other == "random" else 1.0] * 2), 3, spread))
    found = rates(study, [(outcome,)], 150)[0].first_keep
    assert 80 <= chance < 95
    assert abs(found - chance) < 10


@pytest.mark.parametrize("seeds", [3, 5])
def test_four_equal_keeps_are_found_different_no_more_often_than_one(seeds: int) -> None:
    """A study finds a difference where none is in at most 7 %; where each keep is judged alone, in more than 10 %."""
    came = rates(Study("random", (0.0,) * 4, seeds, 1.0, images=1_500), [("holds", "fails")], 300)[0]
    assert came.any_keep <= 7
    assert came.uncorrected > 10


def test_four_keeps_a_margin_apart_are_neither_as_good_nor_worse_more_often_than_one() -> None:
    """The truth is on the border: "as good" is said at any keep in at most 7 % of studies, "not as good" in 4.5 %."""
    study = Study("ticket", (1.0,) * 4, 5, 0.2, images=6_000)
    as_good, not_as_good = rates(study, [("holds",), ("fails",)], 300)
    assert as_good.any_keep <= 7 < as_good.uncorrected
    assert not_as_good.any_keep <= 4.5 < not_as_good.uncorrected
