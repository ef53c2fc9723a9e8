"""How fast a study goes: work done over all its runs and workers, as logs tell it, and the time that is left."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from dlth.pipeline.evidence.run_states import RunState
from dlth.pipeline.evidence.study_plan import StudyPlan


@dataclass(frozen=True)
class Pace:
    """How a study stands as a whole.

    share: of its work that is done, by the plan's seconds, or FLOPs where those are not known; failed runs are done
    images_per_second: shown to all runs, by all workers, since the first look; None at that
    seconds_left: at the pace since the first look; None while nothing moved
    """

    share: float
    images_per_second: float | None = None
    seconds_left: float | None = None


class PaceMaker:
    """Remembers the first look at a study, and tells the pace since then."""

    def __init__(self, plan: StudyPlan) -> None:
        costs = [run.cost for run in plan.runs]
        timed = all(cost.seconds for cost in costs)
        self.work = [float(cost.seconds or 0) if timed else cost.flops for cost in costs]
        self.images = [cost.images for cost in costs]
        self.first: tuple[float, float, float] | None = None

    def at(self, states: Sequence[RunState], now: float | None = None) -> Pace:
        """The pace when runs, in the plan's order, stand so; `now`: seconds of a clock, this machine's if absent."""
        now = time.monotonic() if now is None else now
        shares = [1.0 if state.is_over else state.done for state in states]
        work, images = (sum(map(float.__mul__, map(float, whole), shares)) for whole in (self.work, self.images))
        if self.first is None:
            self.first = now, work, images
        begun, work_then, images_then = self.first
        total, seconds = sum(self.work), now - begun
        share = work / total if total else 0.0
        if seconds <= 0 or work <= work_then:
            return Pace(share)
        left = (total - work) * seconds / (work - work_then)
        return Pace(share, max(0.0, images - images_then) / seconds, left)
