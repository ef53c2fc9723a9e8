"""Accuracy over what was spent for it: epochs, tokens, FLOPs or hours; of one run, and over the seeds of an arm.

Over epochs alone arms cannot be compared: one that drops patches learns less in an epoch and pays less for it. What an
epoch cost is in its row of the log; a log of an older version lacks it, and has no curve over that axis.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Literal

import numpy as np

Axis = Literal["epochs", "tokens", "flops", "hours"]
AXES: tuple[Axis, ...] = ("epochs", "tokens", "flops", "hours")


@dataclass(frozen=True)
class Curve:
    """A run's accuracy wherever it was evaluated.

    spent: what training had cost until then, ascending, in the unit of the axis
    top1: accuracy in percent, one each
    """

    spent: tuple[float, ...]
    top1: tuple[float, ...]


@dataclass(frozen=True)
class MeanCurve:
    """Accuracy over the seeds of an arm.

    spent: as in `Curve`; mean, low, high: mean, least and most accuracy of the runs there, in percent, one each
    """

    spent: tuple[float, ...]
    mean: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    num_runs: int


def spent_in(row: Mapping[str, Any], axis: Axis) -> float | None:
    """What an epoch cost, by its row of the log; None where the row does not say.

    Hours are those of training: waiting for data and computing, without evaluations, on all ranks at once.
    """
    if axis == "epochs":
        return 1
    values = [row.get(name) for name in (("data_seconds", "compute_seconds") if axis == "hours" else (axis,))]
    known = [value for value in values if isinstance(value, int | float) and value >= 0]
    if len(known) < len(values):
        return None
    return sum(known) / 3600 if axis == "hours" else known[0]


def total_spent(rows: Sequence[Mapping[str, Any]], axis: Axis) -> float | None:
    """What all epochs of a run cost; None where one does not say, or there is none."""
    costs = [cost for row in rows if (cost := spent_in(row, axis)) is not None]
    return sum(costs) if costs and len(costs) == len(rows) else None


def run_curve(rows: Sequence[Mapping[str, Any]], axis: Axis, judged_on: str, before: float = 0) -> Curve | None:
    """The curve of one run.

    Args:
        rows: every epoch of its log, in order
        judged_on: tokens of the evaluations: "dense", "ticket", "random"
        before: spent before the first epoch, such as the run's share of the selector's cost, in the axis' unit
    Returns:
        None where no epoch was evaluated so, or one does not say what it cost.
    """
    costs = [cost for row in rows if (cost := spent_in(row, axis)) is not None]
    if len(costs) < len(rows):
        return None
    column = f"eval_{judged_on}_top1"
    sums = accumulate(costs, initial=before)
    next(sums)  # before the first epoch
    points = [(spent, row[column]) for spent, row in zip(sums, rows, strict=True) if row.get(column) is not None]
    return Curve(*(tuple(values) for values in zip(*points, strict=True))) if points else None


def mean_curve(curves: Sequence[Curve]) -> MeanCurve | None:
    """Mean and range over runs, at every place where one of them was evaluated and all of them have a value.

    Runs are straight lines between their evaluations. A curve is not drawn on beyond what its runs have spent: what is
    left out is before the last run's first evaluation and after the first run's last. None where nothing is left.
    """
    if not curves:
        return None
    first, last = max(curve.spent[0] for curve in curves), min(curve.spent[-1] for curve in curves)
    spent_P = np.unique(np.concatenate([curve.spent for curve in curves]).astype(float))
    spent_P = spent_P[(first <= spent_P) & (spent_P <= last)]
    if not spent_P.size:
        return None
    top1_SP = np.stack([np.interp(spent_P, curve.spent, curve.top1) for curve in curves])
    return MeanCurve(
        spent=tuple(spent_P.tolist()),
        mean=tuple(top1_SP.mean(axis=0).tolist()),
        low=tuple(top1_SP.min(axis=0).tolist()),
        high=tuple(top1_SP.max(axis=0).tolist()),
        num_runs=len(curves),
    )
