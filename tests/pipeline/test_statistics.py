"""Paired statistics against values worked out by hand."""

from __future__ import annotations

from math import comb

import numpy as np
import pytest

from dlth.pipeline.statistics import paired_test


def test_the_difference_counts_images_and_the_test_counts_disagreements() -> None:
    """8 images: both right on 3, first alone on 4, second alone on 1: +37.5 points, McNemar's exact p by hand."""
    first = np.array([[1, 1, 1, 1, 1, 1, 1, 0]], dtype=bool)
    second = np.array([[1, 1, 1, 0, 0, 0, 0, 1]], dtype=bool)
    result = paired_test(first, second)
    assert result.difference == pytest.approx(37.5)
    assert (result.only_first, result.only_second) == (4, 1)
    assert result.p_value == pytest.approx(2 * (comb(5, 0) + comb(5, 1)) / 2**5)
    assert result.low < 37.5 < result.high


def test_equal_arms_differ_by_nothing() -> None:
    """No disagreement: difference 0, an interval of width 0, p = 1."""
    hits = np.random.default_rng(0).random((2, 50)) < 0.7
    result = paired_test(hits, hits)
    assert (result.difference, result.low, result.high, result.p_value) == (0, 0, 0, 1)


def test_swapping_the_arms_turns_the_sign() -> None:
    """Comparing b with a is comparing a with b, mirrored."""
    rng = np.random.default_rng(1)
    first, second = rng.random((3, 200)) < 0.8, rng.random((3, 200)) < 0.6
    one, two = paired_test(first, second), paired_test(second, first)
    assert one.difference == -two.difference
    assert one.p_value == two.p_value
    assert (one.low, one.high) == pytest.approx((-two.high, -two.low), abs=1.5)
    assert one.low > 0


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    """Of 200 experiments with a true difference of 10 points, 95 % intervals hold it in 90 to 99 %."""
    rng = np.random.default_rng(2)
    held = 0
    for _ in range(200):
        first, second = rng.random((1, 400)) < 0.7, rng.random((1, 400)) < 0.6
        result = paired_test(first, second, draws=400)
        held += result.low <= 10 <= result.high
    assert 180 <= held <= 198


def test_arms_that_do_not_pair_up_are_refused() -> None:
    """Different images or seeds cannot be compared pair by pair."""
    with pytest.raises(ValueError, match=r"\(1, 3\) and \(1, 4\) differ"):
        paired_test(np.zeros((1, 3), dtype=bool), np.zeros((1, 4), dtype=bool))
