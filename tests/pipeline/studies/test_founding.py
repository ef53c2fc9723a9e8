"""A study has one plan, whoever began it; its grid may grow and never loses a run. Its pace comes from its runs."""

import threading
from dataclasses import replace
from pathlib import Path

import pytest

from dlth.pipeline.evidence.arm_key import ArmKey
from dlth.pipeline.evidence.run_states import RunState
from dlth.pipeline.evidence.study_plan import PlannedRun, RunCost, StudyPlan, read_study
from dlth.pipeline.studies.founding import foreseen, founded
from dlth.pipeline.studies.pace import Pace, PaceMaker
from dlth.tickets.errors import InputError, MismatchError
from dlth.tickets.store.locks import owned


def planned(*seeds: int, lr: float = 0.1, digest: str = "aa") -> StudyPlan:
    cost = RunCost(1, 10, 100, 1000, 1e6)
    runs = [
        PlannedRun(f"dense-seed{seed}-{digest}", ArmKey("dense"), seed, {"lr": lr, "seed": seed}, cost)
        for seed in seeds
    ]
    return StudyPlan(tuple(runs))


def never(known: StudyPlan | None) -> StudyPlan:
    raise AssertionError("planned anew")


def test_what_was_asked_before_is_planned_once(tmp_path: Path) -> None:
    """The same text follows the plan that is there, whatever it would be now."""
    plan = founded(tmp_path / "study", "arms", lambda known: planned(0))
    assert founded(tmp_path / "study", "arms", never) == plan == read_study(tmp_path / "study")
    assert sorted(path.name for path in (tmp_path / "study").iterdir()) == ["study.json", "study.toml"]


def test_a_grid_may_grow_and_loses_no_run(tmp_path: Path) -> None:
    """More seeds take the plan's place; a plan without its runs is refused, in a dry run too, says why, and changes
    nothing.
    """
    founded(tmp_path, "seeds 0", lambda known: planned(0))
    grown = founded(tmp_path, "seeds 0 and 1", lambda known: planned(0, 1))
    assert read_study(tmp_path) == grown
    for lost, why in (
        (planned(1), "there is no dense with seed 0"),
        (planned(0, 1, lr=0.2, digest="bb"), "lr is 0.2, was 0.1"),
        (planned(0, 1, digest="cc"), "images, tickets or weights are others now"),
    ):
        with pytest.raises(MismatchError, match=why):
            founded(tmp_path, "others", lambda known, lost=lost: lost)  # type: ignore[misc]
        with pytest.raises(MismatchError, match=why):
            foreseen(tmp_path, "others", lambda known, lost=lost: lost)  # type: ignore[misc]
        assert read_study(tmp_path) == grown
    assert founded(tmp_path, "seeds 0 and 1", never) == foreseen(tmp_path, "seeds 0 and 1", never) == grown
    assert foreseen(tmp_path, "three seeds", lambda known: planned(0, 1, 2)) != read_study(tmp_path) == grown


def test_a_folder_of_other_things_is_refused(tmp_path: Path) -> None:
    """Nothing is planned among files that are none of a study's, and a refused plan leaves no folder."""
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(InputError, match=r"holds no study \(thesis.tex\)"):
        founded(tmp_path, "arms", never)
    with pytest.raises(InputError, match=r"thesis\.tex"):
        foreseen(tmp_path, "arms", never)
    with pytest.raises(AssertionError):
        founded(tmp_path / "new", "arms", never)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_who_comes_while_another_plans_waits_and_follows(tmp_path: Path) -> None:
    """The second process says that it waits, and has the first one's plan."""
    noted = threading.Event()
    plan: list[StudyPlan] = []
    second = threading.Thread(
        target=lambda: plan.append(founded(tmp_path, "arms", never, note=lambda text: noted.set()))
    )

    def make(known: StudyPlan | None) -> StudyPlan:
        second.start()
        assert noted.wait(20)
        return planned(0, 1)

    founded(tmp_path, "arms", make)
    second.join(20)
    assert plan == [planned(0, 1)]
    with owned(tmp_path):
        pass


def test_the_pace_is_that_of_all_runs_since_the_first_look(tmp_path: Path) -> None:
    """What was done before counts as done and not towards the rate; a failed run is not waited for."""
    plan = planned(0, 1, 2, 3)
    states = [RunState(run.name, tmp_path, "waiting", run.arm, steps=10) for run in plan.runs]
    states[0] = replace(states[0], state="finished")
    pace = PaceMaker(plan)
    assert pace.at(states, now=100.0) == Pace(0.25)
    assert pace.at(states, now=110.0) == Pace(0.25)
    states[1] = replace(states[1], state="running", step=5)
    assert pace.at(states, now=120.0) == Pace(0.375, images_per_second=2.5, seconds_left=100.0)
    states[2] = replace(states[2], state="failed")
    assert pace.at(states, now=120.0).share == 0.625
