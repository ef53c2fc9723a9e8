"""Which arms are worth their computation: accuracy against training FLOPs, and the front that no other arm beats."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from dlth.pipeline.evidence.arm_key import ArmKey


@dataclass(frozen=True)
class CostPoint:
    """An arm as it stands in the picture.

    cost: mean over its runs of what training cost; top1, low, high: mean, least and most accuracy, in percent
    """

    arm: ArmKey
    cost: float
    top1: float
    low: float
    high: float


def cost_points(runs: Mapping[ArmKey, Sequence[tuple[float, float]]]) -> tuple[CostPoint, ...]:
    """A point for each arm that has runs, the cheapest first.

    Args:
        runs: for each arm, every run's cost and accuracy in percent
    """
    points = []
    for arm, pairs in runs.items():
        if pairs:
            costs, top1 = zip(*pairs, strict=True)
            points.append(CostPoint(arm, fmean(costs), fmean(top1), min(top1), max(top1)))
    return tuple(sorted(points, key=lambda point: (point.cost, -point.top1, point.arm)))


def pareto_front(points: Sequence[CostPoint]) -> tuple[CostPoint, ...]:
    """Points that no other beats, the cheapest first: none costs less and is as accurate, or the same and is better.

    Means are taken as they are; whether one arm is better than another is `judge`'s to say.
    """
    front: list[CostPoint] = []
    for point in sorted(points, key=lambda point: (point.cost, -point.top1, point.arm)):
        if not front or point.top1 > front[-1].top1 or (point.cost, point.top1) == (front[-1].cost, front[-1].top1):
            front.append(point)
    return tuple(front)
