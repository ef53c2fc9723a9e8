"""Accuracy over what was spent, against values worked out by hand, and the front of arms that no other beats."""

from typing import Any

import pytest

from dlth.pipeline.evidence.arm_key import ArmKey
from dlth.pipeline.judging.curves import AXES, Curve, mean_curve, run_curve, total_spent
from dlth.pipeline.judging.pareto import CostPoint, cost_points, pareto_front


def epoch(number: int, top1: float | None, **changes: Any) -> dict[str, Any]:
    """An epoch's row of the log, which cost 100 tokens, 7 FLOPs and half an hour."""
    costs = {"tokens": 100, "flops": 7, "data_seconds": 600.0, "compute_seconds": 1200.0}
    return {"epoch": number, "eval_ticket_top1": top1, "eval_dense_top1": 1.0} | costs | changes


def test_a_curve_is_drawn_over_what_was_spent_until_each_evaluation() -> None:
    """Epochs without an evaluation cost, too, and what was spent before training moves the whole curve."""
    rows = [epoch(0, None), epoch(1, 40.0), epoch(2, None, tokens=50), epoch(3, 60.0, tokens=50)]
    spent = {"epochs": (2, 4), "tokens": (200, 300), "flops": (14, 28), "hours": (1.0, 2.0)}
    for axis in AXES:
        assert run_curve(rows, axis, "ticket") == Curve(spent[axis], (40.0, 60.0))
        assert total_spent(rows, axis) == spent[axis][-1]
    assert run_curve(rows, "flops", "ticket", before=1000) == Curve((1014, 1028), (40.0, 60.0))


@pytest.mark.parametrize("lost", [{"flops": None}, {"flops": -1}], ids=["not logged", "negative"])
def test_a_log_that_does_not_say_what_an_epoch_cost_has_no_curve(lost: dict[str, Any]) -> None:
    """One such epoch is enough, over that axis alone; so is a run that was never evaluated on these tokens."""
    rows = [epoch(0, 40.0), epoch(1, 50.0, **lost)]
    assert run_curve(rows, "flops", "ticket") is None
    assert total_spent(rows, "flops") is None
    assert run_curve(rows, "tokens", "ticket") == Curve((100, 200), (40.0, 50.0))
    assert run_curve(rows, "tokens", "random") is None
    assert run_curve([], "tokens", "ticket") is total_spent([], "tokens") is None


def test_the_mean_over_seeds_is_taken_at_the_same_cost() -> None:
    """A fast and a slow run: between evaluations runs are straight lines, beyond its last one none has a value."""
    fast, slow = Curve((1.0, 3.0), (10.0, 30.0)), Curve((2.0, 4.0), (40.0, 60.0))
    mean = mean_curve([fast, slow])
    assert mean is not None
    assert mean.spent == (2.0, 3.0)
    assert (mean.mean, mean.low, mean.high) == ((30.0, 40.0), (20.0, 30.0), (40.0, 50.0))
    assert mean.num_runs == 2
    assert mean_curve([fast, Curve((5.0,), (1.0,))]) is None
    assert mean_curve([]) is None
    alone = mean_curve([slow])
    assert alone is not None
    assert (alone.spent, alone.mean, alone.low, alone.high) == ((2.0, 4.0), *[(40.0, 60.0)] * 3)


def test_an_arms_point_is_the_mean_of_its_runs() -> None:
    """Cost and accuracy are means, the range is that of the runs; an arm without runs has no point."""
    dense, ticket = ArmKey("dense"), ArmKey("ticket", "0.7", "projected")
    points = cost_points({dense: [(9.0, 80.0), (11.0, 70.0)], ticket: [(5.0, 60.0)], ArmKey("random", "0.7"): []})
    assert points == (CostPoint(ticket, 5.0, 60.0, 60.0, 60.0), CostPoint(dense, 10.0, 75.0, 70.0, 80.0))


def test_the_front_holds_exactly_the_arms_that_no_other_beats() -> None:
    """Held against the definition, pair by pair, for 300 points of which many are alike in cost or accuracy."""
    points = [
        CostPoint(ArmKey(str(number)), (number * 7) % 13, (number * number) % 7 + (number * 7) % 13 // 4, 0.0, 0.0)
        for number in range(300)
    ]

    def beats(one: CostPoint, other: CostPoint) -> bool:
        better = one.cost < other.cost or one.top1 > other.top1
        return one.cost <= other.cost and one.top1 >= other.top1 and better

    unbeaten = {point for point in points if not any(beats(other, point) for other in points)}
    front = pareto_front(points)
    assert set(front) == unbeaten
    assert [point.cost for point in front] == sorted(point.cost for point in front)
    assert 1 < len({point.cost for point in front}) < len(front) < 300
    assert pareto_front([]) == ()
