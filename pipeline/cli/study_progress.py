"""How a study's progress is shown: a list of all runs that is redrawn on a terminal, plain lines anywhere else."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta

from dlth.pipeline.cli import console
from dlth.pipeline.cli.runs import COLUMNS, run_rows, runs_table
from dlth.pipeline.evidence.run_states import RunState
from dlth.pipeline.evidence.study_plan import StudyPlan
from dlth.pipeline.studies.pace import Pace, PaceMaker
from dlth.pipeline.studies.worker import StudyReporter

_FIRST = ("running", "failed", "stopped", "waiting", "finished")
"""A list that is longer than the screen loses its end."""


class StudyProgress(StudyReporter):
    """Tells a change of a run's state at once, and where running ones are every ten seconds."""

    def __init__(self, plan: StudyPlan) -> None:
        self.pace = PaceMaker(plan)
        self.before: dict[str, str] = {}
        self.last = time.monotonic()

    def note(self, text: str) -> None:
        """Pass it on."""
        console.note(text)

    def looked(self, states: Sequence[RunState]) -> None:
        """Say what is new."""
        pace, now = self.pace.at(states), time.monotonic()
        changed = [state for state in states if self.before.get(state.name, "waiting") != state.state]
        due = now - self.last >= console.PLAIN_INTERVAL
        for state in states:
            if state in changed or (due and state.state == "running"):
                console.note(_line(state))
        if due or changed:
            console.note(_total(states, pace))
        self.last = now if due else self.last
        self.before = {state.name: state.state for state in states}


class _List(StudyProgress):
    """The same as a list on a terminal, a line for each run."""

    def __init__(self, plan: StudyPlan, show: Callable[[str], None]) -> None:
        super().__init__(plan)
        self.show = show

    def looked(self, states: Sequence[RunState]) -> None:
        table = runs_table(sorted(states, key=lambda state: _FIRST.index(state.state)), console.room(error=True))
        self.show(f"{_total(states, self.pace.at(states))}\n{table}")


@contextmanager
def study_progress(plan: StudyPlan, quiet: bool = False) -> Iterator[StudyReporter]:
    """Who shows a study's progress while the block runs; nobody, if `quiet`."""
    if quiet:
        yield StudyReporter()
        return
    with console.redrawn() as show:
        yield StudyProgress(plan) if show is None else _List(plan, show)


def _line(state: RunState) -> str:
    name, epoch, step, top1 = (
        run_rows([state])[0][COLUMNS.index(column)] for column in ("run", "epoch", "step", "top-1 %")
    )
    accuracy = f" | top-1 {top1} %" if top1 else ""
    problem = f" | {state.problem}" if state.problem else ""
    return f"{name}: {state.state} | epoch {epoch} | step {step}{accuracy}{problem}"


def _total(states: Sequence[RunState], pace: Pace) -> str:
    """The whole study in a line: runs, share, rate, time left."""
    over = sum(state.is_over for state in states)
    parts = [f"{over}/{len(states)} runs ({100 * pace.share:.1f}%)"]
    if pace.images_per_second is not None:
        parts.append(f"{pace.images_per_second:.0f} images/s")
    if pace.seconds_left is not None:
        parts.append(f"{timedelta(seconds=round(pace.seconds_left))} left")
    return " | ".join(parts)
