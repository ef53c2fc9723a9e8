"""Workers on levels that are killed, inside one and between two, and two at once, against one undisturbed worker."""

import os
import signal
from collections.abc import Sequence
from pathlib import Path

import pytest
from makers.levels import Study, the_run
from makers.studies import leavings
from makers.workers import ended, forked

from dlth.pipeline.evidence.run_states import RunState, study_states
from dlth.pipeline.evidence.study_plan import StudyPlan
from dlth.pipeline.studies.worker import StudyReporter, run_study
from dlth.training.pruning.recipe import MASK, REWIND

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
    """kill -9 in the second epoch of level 1, and once it is finished, before level 2 is begun; two others then do the
    rest at once. Weights, masks, rewinding points, logs and per-image results are the same bytes.
    """
    first, one, two = (the_run(whole.plan, arm, level) for arm, level in (("", 0), ("lt", 1), ("lt", 2)))
    plan = StudyPlan((first, one, the_run(whole.plan, "rr", 1), two), whole.plan.settings)

    def states() -> dict[str, str]:
        return {state.name: state.state for state in study_states(tmp_path, plan)}

    assert ended(forked(lambda: run_study(tmp_path, plan, reporter=KillAt(one.name, 5)))) == -signal.SIGKILL
    assert (states()[first.name], states()[one.name], states()[two.name]) == ("finished", "stopped", "waiting")
    saved = plan.folder(tmp_path, one) / "checkpoints" / "latest"
    assert saved.exists()
    assert ended(forked(lambda: run_study(tmp_path, plan, reporter=KillAt(one.name)))) == -signal.SIGKILL
    assert (states()[one.name], states()[two.name]) == ("finished", "waiting")
    both = [forked(lambda: run_study(tmp_path, plan)) for _ in range(2)]
    assert [ended(child) for child in both] == [0, 0]
    assert set(states().values()) == {"finished"}
    assert leavings(tmp_path, plan) == leavings(whole.folder, plan)
    for run in plan.runs:
        for name in (MASK, REWIND):
            here, there = plan.folder(tmp_path, run) / name, whole.run(run) / name
            assert here.exists() == there.exists()
            assert not here.exists() or here.read_bytes() == there.read_bytes()
