"""A study's plan as a table: what each arm takes, what of it is there already, and what is left in all."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import ClassVar

from dlth.pipeline.evidence.arm_key import ArmKey
from dlth.pipeline.evidence.run_states import study_states
from dlth.pipeline.evidence.study_plan import PlannedRun, StudyPlan

_LETTERS = ("", "k", "M", "G", "T", "P", "E", "Z")


@dataclass(frozen=True)
class ArmRow:
    """The runs of an arm, all seeds together; `there`: how many of them are finished.

    epochs: of each run; the rest are sums over its runs, finished or not: flops with `charged_flops` beside them, as
    `RunCost` has them
    """

    arm: ArmKey
    runs: int
    there: int
    epochs: int
    steps: int
    images: int
    tokens: int
    flops: float
    charged_flops: float
    bytes_read: int
    bytes_written: int
    seconds: float | None

    @property
    def cells(self) -> tuple[object, ...]:
        """The row as `PlanTable.COLUMNS` name it."""
        amounts = map(scaled, (self.tokens, self.flops, self.charged_flops, self.bytes_read, self.bytes_written))
        counts = str(self.runs), str(self.there), str(self.epochs), f"{self.steps:,}"
        return (str(self.arm), *counts, *amounts, lasting(self.seconds))


@dataclass(frozen=True)
class PlanTable:
    """The arms of a plan, and sums over the runs that are not finished."""

    COLUMNS: ClassVar[tuple[str, ...]] = (
        *("arm", "runs", "there", "epochs", "steps", "tokens", "FLOP", "selector FLOP", "bytes read", "bytes written"),
        "time",
    )

    arms: tuple[ArmRow, ...]
    left: ArmRow

    @property
    def what(self) -> str:
        """The study in a few words."""
        runs, there = sum(arm.runs for arm in self.arms), sum(arm.there for arm in self.arms)
        return f"{runs} runs of {len(self.arms)} arms, {there} of them there"

    @property
    def totals(self) -> tuple[str, ...]:
        """What is left to do, in words."""
        left = self.left
        time = f", about {lasting(left.seconds)} one run after another" if left.seconds else ""
        amounts = f"{left.images:,} images", f"{left.tokens:,} tokens", scaled(left.flops, "FLOP") + time
        sizes = f"{scaled(left.bytes_read, 'B')} of images read, {scaled(left.bytes_written, 'B')} written"
        return (f"left to do: {left.runs} runs, {', '.join(amounts)}; {sizes}",)


def scaled(amount: float, unit: str = "") -> str:
    """A count in three digits with its thousands as a letter: 1.28 M, 3.4 PFLOP."""
    power = next((power for power in range(len(_LETTERS)) if abs(amount) < 999.5 * 1000**power), len(_LETTERS) - 1)
    return f"{amount / 1000**power:.3g} {_LETTERS[power]}{unit}".rstrip()


def lasting(seconds: float | None) -> str:
    """A time in days, hours, minutes and seconds; empty where it is not known."""
    return "" if seconds is None else str(timedelta(seconds=max(1, round(seconds))))


def plan_table(folder: Path, plan: StudyPlan) -> PlanTable:
    """The plan's arms in its order, and how many of their runs the study's folder has."""
    finished = {state.name for state in study_states(folder, plan) if state.state == "finished"}
    arms = dict.fromkeys(run.arm for run in plan.runs)
    rows = tuple(_row(arm, [run for run in plan.runs if run.arm == arm], finished) for arm in arms)
    return PlanTable(rows, _row(ArmKey("all"), [run for run in plan.runs if run.name not in finished], finished))


def _row(arm: ArmKey, runs: Sequence[PlannedRun], finished: set[str]) -> ArmRow:
    costs = [run.cost for run in runs]
    seconds = [cost.seconds for cost in costs if cost.seconds is not None]
    return ArmRow(
        arm=arm,
        runs=len(runs),
        there=sum(run.name in finished for run in runs),
        epochs=max((cost.epochs for cost in costs), default=0),
        steps=sum(cost.steps for cost in costs),
        images=sum(cost.images for cost in costs),
        tokens=sum(cost.tokens for cost in costs),
        flops=sum(cost.flops for cost in costs),
        charged_flops=sum(cost.charged_flops for cost in costs),
        bytes_read=sum(cost.bytes_read for cost in costs),
        bytes_written=sum(cost.bytes_written for cost in costs),
        seconds=sum(seconds) if len(seconds) == len(costs) else None,
    )
