"""Workers on levels that are killed, inside one and between two, and two at once, against one undisturbed worker."""

import os
import signal
from collections.abc import Sequence
from pathlib import Path

import pytest
from makers.pruning import Study, the_run
from makers.studies import leavings
from makers.workers import ended, forked

from dlth.pipeline.evidence.run_states import RunState, study_states
from dlth.pipeline.evidence.study_plan import StudyPlan
from dlth.pipeline.studies.worker import StudyReporter, run_study

pytestmark = pytest.mark.usefixtures("often")


class KillAt(StudyReporter):
    """Kills this process when a run is seen to stand at a step or, without one, to be finished."""

    def __init__(self, name: str, step: int | None = None) -> None:
        self.name, self.step = name, step

    def looked(self, states: Sequence[RunState]) -> None:
        (state,) = [state for state in states if state.name == self.name]
        if state.state == "finished" if self.step is None else state.step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def test_killed_workers_leave_what_an_undisturbed_one_does(whole: Study, tmp_path: Path) -> None:
    """kill -9 in the second epoch of level 1, whose study is then moved, and once it is finished, before level 2 is
    begun; two others do the rest at once. Weights, masks, rewinding points, logs and per-image results are the same
    bytes.
    """
    first, one, two = (the_run(whole.plan, arm, level) for arm, level in (("", 0), ("lt", 1), ("lt", 2)))
    plan = StudyPlan((first, one, the_run(whole.plan, "rr", 1), two), whole.plan.settings)

    before, study = tmp_path / "before", tmp_path / "study"

    def states(folder: Path) -> list[str]:
        return [state.state for state in study_states(folder, plan)]

    assert ended(forked(lambda: run_study(before, plan, reporter=KillAt(one.name, 5)))) == -signal.SIGKILL
    assert states(before) == ["finished", "stopped", "waiting", "waiting"]
    assert (plan.folder(before, one) / "checkpoints" / "latest").exists()
    before.rename(study)
    assert ended(forked(lambda: run_study(study, plan, reporter=KillAt(one.name)))) == -signal.SIGKILL
    assert states(study) == ["finished", "finished", "waiting", "waiting"]
    both = [forked(lambda: run_study(study, plan)) for _ in range(2)]
    assert [ended(child) for child in both] == [0, 0]
    assert states(study) == ["finished"] * 4
    assert leavings(study, plan) == leavings(whole.folder, plan)
