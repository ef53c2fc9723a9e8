"""A study's progress: a line for each run on a terminal, changes and sums in plain lines off it."""

from dataclasses import replace
from pathlib import Path

import pytest

from dlth.pipeline.cli.runs import runs_table
from dlth.pipeline.cli.study_progress import StudyProgress, _List
from dlth.pipeline.evidence.arm_key import ArmKey
from dlth.pipeline.evidence.run_states import RunState
from dlth.pipeline.evidence.study_plan import PlannedRun, RunCost, StudyPlan

PLAN = StudyPlan(
    tuple(PlannedRun(f"dense-seed{seed}", ArmKey("dense"), seed, {}, RunCost(1, 10, 9, 9, 9.0)) for seed in (0, 1))
)
WAITING = tuple(RunState(run.name, Path(), "waiting", run.arm, run.seed, steps=10) for run in PLAN.runs)


def test_a_terminal_shows_every_run_the_running_ones_first() -> None:
    """One line each below the sum of all, in the place of the text before."""
    texts: list[str] = []
    shown = _List(PLAN, texts.append)
    shown.looked(WAITING)
    shown.looked((WAITING[0], replace(WAITING[1], state="running", step=5)))
    total, _, first, second = texts[-1].splitlines()
    assert total.startswith("0/2 runs (25.0%) | ")
    assert first.split() == ["running", "dense", "1", "5/10", "dense-seed1"]
    assert second.split()[-1] == "dense-seed0"


def test_a_narrow_terminal_keeps_what_matters() -> None:
    """In 80 columns stand state, arm, seed, epoch, top-1 and step of a long arm, whole; the name where there is room,
    and always where arm and seed are not enough to tell runs apart."""
    arm = ArmKey("ticket", "0.25", "projected")
    name = "ticket-keep0.25-projected-seed0-6d9e54a1"
    state = RunState(name, Path(), "running", arm, 0, 49, 12, 300, 15012, 375300, 71.5)
    head, row = runs_table([state], 80).splitlines()
    assert head.split()[:-1] == ["state", "arm", "seed", "epoch", "top-1", "%", "step"]
    assert row.split(maxsplit=5)[-1].split() == ["0", "12/300", "71.50", "15012/375300"]
    for table in (runs_table([state], 140), runs_table([state, state], 80)):
        assert table.splitlines()[-1].endswith(name)


def test_plain_lines_tell_what_changed_and_nothing_twice(capsys: pytest.CaptureFixture[str]) -> None:
    """A run that ends or fails is told at once, with what is known of it; the same look again says nothing."""
    shown = StudyProgress(PLAN)
    now = (
        replace(WAITING[0], state="finished", top1=12.5),
        replace(WAITING[1], state="failed", problem="E_DIVERGED: no"),
    )
    for states in (WAITING, now, now):
        shown.looked(states)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "dense-seed0: finished | epoch  | step 0/10 | top-1 12.50 %"
    assert lines[1] == "dense-seed1: failed | epoch  | step 0/10 | E_DIVERGED: no"
    assert lines[2].startswith("2/2 runs (100.0%)")
    assert len(lines) == 3
