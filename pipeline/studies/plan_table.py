"""A study's plan as a table: what each arm takes, what of it is there already, and what is left in all."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import ClassVar

from dlth.pipeline.evidence.arm_key import ArmKey
from dlth.pipeline.evidence.run_states import study_states
from dlth.pipeline.evidence.study_plan import PlannedRun, StudyPlan


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
        charged = (self.flops + self.charged_flops) / 1e15
        hours = "" if self.seconds is None else round(self.seconds / 3600, 3)
        sizes = (round(size / 1e9, 3) for size in (self.bytes_read, self.bytes_written))
        tokens = round(self.tokens / 1e6, 3)
        return (str(self.arm), self.runs, self.there, self.epochs, self.steps, tokens, charged, hours, *sizes)


@dataclass(frozen=True)
class PlanTable:
    """The arms of a plan, and sums over the runs that are not finished."""

    COLUMNS: ClassVar[tuple[str, ...]] = (
        *("arm", "runs", "there", "epochs", "steps", "M tokens", "PFLOP", "hours", "GB read", "GB written"),
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
        hours = "" if left.seconds is None else f", about {timedelta(seconds=round(left.seconds))} one after another"
        return (
            f"left to do: {left.runs} runs, {left.images:,} images shown, {left.tokens:,} tokens,"
            f" {left.flops / 1e15:,.4g} PFLOP{hours}; {left.bytes_read / 1e9:,.3g} GB of images read,"
            f" {left.bytes_written / 1e9:,.3g} GB written",
        )


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
