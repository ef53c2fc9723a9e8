"""A whole small study of levels: what its runs are made of; kills, moves and growing change no byte of them."""

import os
import shutil
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from makers.runs import KWARGS
from makers.studies import leavings, write_inputs
from safetensors.torch import load_file

from dlth.pipeline.evidence.failure import Failure, write_failure
from dlth.pipeline.evidence.run_states import RunState, study_states
from dlth.pipeline.evidence.study_plan import PlannedRun, StudyPlan, write_study
from dlth.pipeline.pruning.planning import plan_prune
from dlth.pipeline.pruning.prune import found_prune
from dlth.pipeline.pruning.prune_config import PruneConfig
from dlth.pipeline.studies.founding import joined_study
from dlth.pipeline.studies.worker import StudyReporter, chains, run_study
from dlth.tickets.errors import InputError, MismatchError
from dlth.training.pruning.mask_file import read_mask
from dlth.training.settings.layering import checked

ARMS = "lt,rr,random-mask"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Settings of train: one epoch of 64 images in 4 steps."""
    folder = tmp_path_factory.mktemp("prune-data")
    tickets = write_inputs(folder)
    return {
        **{"recipe": "none", "data": str(folder / "train"), "val": str(folder / "val"), "seed": None},
        **{"model": "vit_tiny_patch16_224", "model_kwargs": KWARGS | {"depth": 2}, "img_size": 32},
        **{"epochs": 1, "warmup_epochs": 0, "batch_size": 16, "lr": 1e-3, "workers": 0, "device": "cpu"},
        "checkpoint_steps": 1,
        "both": {"tickets": tickets["train"], "val_tickets": tickets["val"]},
    }


def asked(out: Path, **study: Any) -> PruneConfig:
    """A study of two rounds, rewound to step 1."""
    base = {"out": str(out), "rounds": 2, "rewind": "1", "seeds": "0", "arm": ARMS, "measure": 0}
    return checked(PruneConfig, base | study)


def of_runs(shared: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {name: value for name, value in shared.items() if name != "both"} | changes


@pytest.fixture(scope="module")
def done(shared: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, StudyPlan]:
    """The study as one undisturbed worker leaves it."""
    folder = tmp_path_factory.mktemp("levels") / "study"
    plan = found_prune(asked(folder), of_runs(shared))
    assert not run_study(folder, plan).failed
    return folder, plan


def named(plan: StudyPlan, arm: str, weights: str = "") -> PlannedRun:
    return next(run for run in plan.runs if (run.arm.pruned, run.arm.weights) == (arm, weights))


@pytest.mark.parametrize(
    ("study", "train", "problem"),
    [
        ({"rate": "0.999999", "rounds": 3}, {}, "would mask every weight"),
        ({"rewind": "4"}, {}, "nothing would be left to train"),
        ({}, {"start_step": 1}, "--start-step"),
        ({}, {"mask": "mask.safetensors"}, "--mask"),
        ({}, {"val": None}, "never be judged"),
        ({"exclude": "no.such"}, {}, "matches no parameter"),
        ({"rate": "0.000001"}, {}, "larger rate"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_before_anything_is_spent(
    shared: dict[str, Any], tmp_path: Path, study: dict[str, Any], train: dict[str, Any], problem: str
) -> None:
    """One clear error, and no file."""
    with pytest.raises(InputError, match=problem):
        plan_prune(asked(tmp_path / "study", **study), of_runs(shared, **train))
    assert list(tmp_path.iterdir()) == []


def test_masks_are_nested_exact_and_held_to(done: tuple[Path, StudyPlan]) -> None:
    """Each level masks what the one before masks, counted to the weight; rr has lt's mask to the bit, random-mask as
    many weights of each layer; masked weights of what is saved are zero.
    """
    folder, plan = done
    masks = {(run.arm.pruned, run.arm.weights): read_mask(plan.folder(folder, run) / "mask.safetensors")
             for run in plan.runs if run.mask is not None}  # fmt: skip
    size = masks["lt", "0.8"].prunable
    left = size - round(size / 5)
    assert [masks["lt", share].remaining for share in ("0.8", "0.64")] == [left, left - round(left / 5)]
    for name, mask in masks["lt", "0.64"].masks.items():
        assert not (mask & ~masks["lt", "0.8"].masks[name]).any()
        assert mask.equal(masks["rr", "0.64"].masks[name])
        drawn = masks["random-mask", "0.64"].masks[name]
        assert (int(drawn.sum()), drawn.equal(mask)) == (int(mask.sum()), False)
    for run in plan.runs:
        if run.mask is not None:
            weights = load_file(plan.folder(folder, run) / "model.safetensors")
            held = masks[run.arm.pruned, run.arm.weights].masks
            assert not any(weights[name][~mask].any() for name, mask in held.items())


def test_a_level_begins_with_the_stored_weights_and_no_other_draws_them(done: tuple[Path, StudyPlan]) -> None:
    """lt and random-mask are set back to the unpruned run's file at step 1; rr starts at step 0 from a seed of its own,
    another at each level.
    """
    folder, plan = done
    first = named(plan, "")
    for run in plan.runs[1:]:
        settings = plan.train_settings(folder, run)
        assert settings["mask"] == str(plan.folder(folder, run) / "mask.safetensors")
        rewound = None if run.arm.pruned == "rr" else str(plan.folder(folder, first) / "rewind.safetensors")
        assert (settings["init_from"], settings["start_step"]) == (rewound, int(rewound is not None))
    assert len({run.settings["init_seed"] for run in plan.runs}) == 3


def forked(work: Callable[[], object]) -> int:
    """The exit code of work in a child process; a signal's number, negative, if that ended it."""
    child = os.fork()
    if child == 0:
        status = 70
        try:
            work()
            status = 0
        finally:
            sys.stdout.flush()
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


class KillWhen(StudyReporter):
    """kill -9 of this process once so many runs are finished and one stands at that step."""

    def __init__(self, finished: int, step: int) -> None:
        self.finished, self.step = finished, step

    def looked(self, states: Sequence[RunState]) -> None:
        over = sum(state.state == "finished" for state in states)
        if over >= self.finished and (not self.step or any(0 < self.step <= state.step < 4 for state in states)):
            os.kill(os.getpid(), signal.SIGKILL)


def test_killed_inside_and_between_levels_and_moved_it_leaves_the_same_bytes(
    done: tuple[Path, StudyPlan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGKILL inside a level, then between two; the folder is moved; another worker ends with every file of an
    undisturbed one, and what was finished is not touched again.
    """
    monkeypatch.setattr("dlth.pipeline.studies.worker.BETWEEN_LOOKS", 0.0)
    monkeypatch.setattr("dlth.pipeline.studies.worker.SHARE_OF_LOOKS", 1e9)
    folder, plan = done
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    for name in ("study.json", "study.toml"):
        shutil.copy(folder / name, one / name)
    assert forked(lambda: run_study(one, plan, reporter=KillWhen(1, 2))) == -signal.SIGKILL
    assert forked(lambda: run_study(one, plan, reporter=KillWhen(2, 0))) == -signal.SIGKILL
    one.rename(two)
    over = [state.folder for state in study_states(two, plan) if state.state == "finished"]
    before = {path: path.stat().st_mtime_ns for place in over for path in place.rglob("*")}
    assert before
    assert not run_study(two, joined_study(two)).failed
    assert before == {path: path.stat().st_mtime_ns for path in before}
    assert leavings(two, plan) == leavings(folder, plan)


def test_a_grid_grows_and_another_chain_is_refused_by_name(
    shared: dict[str, Any], done: tuple[Path, StudyPlan]
) -> None:
    """More rounds, arms, draws and seeds keep every run's name; another rate, rewinding point or recipe is told."""
    folder, plan = done
    more = asked(folder, rounds=3, arm=f"{ARMS},one-shot,dense", draws=2, seeds="0,1")
    assert {run.name for run in plan.runs} < {run.name for run in plan_prune(more, of_runs(shared), known=plan).runs}
    for study, train, told in (
        ({"rate": "0.5"}, {}, "rate is 0.5, was 0.2"),
        ({"rewind": "2"}, {}, "rewind is 2, was 1"),
        ({}, {"lr": 2e-3}, "lr is 0.002, was 0.001"),
    ):
        with pytest.raises(MismatchError, match=told):
            found_prune(asked(folder, **study), of_runs(shared, **train))


def test_a_changed_mask_is_refused_with_the_plan_that_asks_for_it(done: tuple[Path, StudyPlan], tmp_path: Path) -> None:
    """A plan whose recipe was altered under a run's name is not joined, and a run is planned after what it needs."""
    plan = done[1]
    last = plan.runs[-1]
    assert last.mask is not None
    altered = replace(last, mask=replace(last.mask, recipe=replace(last.mask.recipe, rate="0.3")))
    write_study(tmp_path, replace(plan, runs=(*plan.runs[:-1], altered)))
    with pytest.raises(MismatchError, match="was changed since"):
        joined_study(tmp_path)
    with pytest.raises(ValueError, match="does not stand before it"):
        StudyPlan(plan.runs[::-1])


def test_what_needs_a_failed_run_fails_with_it_and_the_longest_chain_goes_first(
    done: tuple[Path, StudyPlan], tmp_path: Path
) -> None:
    """Nothing is written for runs that cannot be; a worker takes what most levels wait for first."""
    plan = done[1]
    write_failure(plan.folder(tmp_path, named(plan, "lt", "0.8")), Failure("E_DIVERGED", "nan"))
    states = {state.name: state for state in study_states(tmp_path, plan)}
    for run in plan.runs:
        lost = run.arm.weights == "0.64"
        assert ("is made of" in states[run.name].problem) is lost
    assert [chains(plan)[run.name] for run in plan.runs] == [2, 1, 0, 0, 0, 0, 0]


def test_both_lotteries_at_once(shared: dict[str, Any], tmp_path: Path) -> None:
    """With tickets all runs, unpruned and pruned, are of the ticket arm, and their keys say both shares."""
    plan = plan_prune(asked(tmp_path / "s", arm="lt", rounds=1), of_runs(shared, **shared["both"]))
    assert [str(run.arm) for run in plan.runs] == [
        "ticket, keep 0.5, projected",
        "ticket, keep 0.5, projected, lt 0.8 of weights",
    ]
    assert plan.may_differ == ()
