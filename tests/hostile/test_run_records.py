"""What somebody who makes the digests anew can write into a run's folder: sums, places and names that no run has."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from makers.results import write_run
from makers.runs import train_config

from dlth.pipeline.evidence.arm_key import ArmKey
from dlth.pipeline.evidence.study_plan import MAX_RUNS, PlannedRun, RunCost, StudyPlan, read_study
from dlth.tickets.errors import DamageError
from dlth.training.runs.checkpoint import FIRST_VERSION, Checkpoint
from dlth.training.runs.optim import make_optimizer
from dlth.training.runs.result import read_result
from dlth.training.runs.resume import check_optimizer, mark_of
from dlth.training.runs.run_progress import RunProgress, RunSize, Totals
from dlth.training.runs.runlog import RunLog
from dlth.training.runs.sealed_json import sealed

SIZE = RunSize(epochs=3, steps_per_epoch=4, num_images=10, global_batch=3, tokens_per_image=17)
SUMS = Totals(loss_sum=20.0, loss_weight=6.0, images=6.0, tokens=102.0, hidden=1.5, whole=6.0, data_seconds=1.0)
BEST = {"epoch": 1, "tokens": "ticket", "top1": 50.0}
SOUND = asdict(RunProgress(1, 2, 6, 1, BEST, [3], SUMS, SUMS))
FORGED: dict[str, Mapping[str, Any]] = {
    "an epoch of the future": {"best": BEST | {"epoch": 2}},
    "an endless epoch": {"best": BEST | {"epoch": 2**63 - 1}},
    "an epoch before all": {"best": BEST | {"epoch": -1}},
    "a kind that is none": {"best": BEST | {"tokens": "\x1b[31m"}},
    "more than all are right": {"best": BEST | {"top1": 1e308}},
    "fewer than none are right": {"best": BEST | {"top1": -0.5}},
    "more bad steps than steps": {"bad_steps": 7},
    **{f"{name} below zero": {"in_run": asdict(SUMS) | {name: -1e308}} for name in asdict(SUMS)},
    **{f"{name} past its bound": {"in_epoch": asdict(SUMS) | {name: 1.7e308}} for name in asdict(SUMS)},
    "images of a seventh step": {"in_run": asdict(SUMS) | {"images": 19.0}},
    "images of a third step": {"in_epoch": asdict(SUMS) | {"images": 7.0}},
    "a token too many": {"in_epoch": asdict(SUMS) | {"tokens": 103.0}},
}


@pytest.mark.parametrize("case", FORGED)
def test_progress_that_no_run_makes_is_refused(case: str) -> None:
    """Best epoch, kind and accuracy, and all sums, are within what so many steps of such batches can give."""
    assert RunProgress.from_json(SOUND, SIZE).in_run == SUMS
    with pytest.raises(DamageError):
        RunProgress.from_json({**SOUND, **FORGED[case]}, SIZE)


EPOCH = {"kind": "epoch", "step": 4, "epoch": 0, "lr": 0.1, "train_loss": 1.0}
LINES: dict[str, list[dict[str, Any]]] = {
    "a name of a megabyte": [EPOCH | {"A" * 900_000 + "loss": 1.0}],
    "a name of many lines": [EPOCH | {"\n" * 20_000 + "loss": 1.0}],
    "a name of mathematics": [EPOCH | {"$x^2$loss": 1.0}],
    "many names": [EPOCH | {f"x{number}_loss": 1.0 for number in range(1000)}],
    "a number past every axis": [EPOCH | {"train_loss": -1e308}],
    "an epoch twice": [EPOCH, EPOCH],
    "an epoch of many": [EPOCH | {"epoch": 4}],
    "an epoch that is no number": [EPOCH | {"epoch": None}],
    "a train line's name": [{"kind": "train", "step": 1, "": 1.0}],
}


@pytest.mark.parametrize("case", LINES)
def test_a_log_that_no_run_writes_is_refused(case: str, tmp_path: Path) -> None:
    """Its names become labels of a drawing and its epochs points: both are few and short, whatever the digests say."""
    log = tmp_path / "metrics.jsonl"
    log.write_text("".join(json.dumps(line) + "\n" for line in LINES[case]))
    with pytest.raises(DamageError):
        RunLog(tmp_path, after=8)
    log.write_text(json.dumps(EPOCH) + "\n")
    RunLog(tmp_path, after=8).close()


def test_a_checkpoint_that_says_nothing_of_its_log_is_of_the_first_version(tmp_path: Path) -> None:
    """Else whoever takes the field away could exchange the log."""
    for state in ({}, {"log": {}}):
        assert mark_of(Checkpoint({}, state, tmp_path, FIRST_VERSION)) is None
        with pytest.raises(DamageError, match="log cannot be read"):
            mark_of(Checkpoint({}, state, tmp_path))


GROUPS: dict[str, Any] = {
    "capturable": True,
    "maximize": True,
    "differentiable": True,
    "foreach": True,
    "lr": float("nan"),
    "weight_decay": 10**400,
    "betas": [0.9, float("inf")],
}


@pytest.mark.parametrize("name", GROUPS)
def test_an_optimizer_that_no_run_has_is_refused(name: str, tmp_path: Path) -> None:
    """A group's switches are the run's own, and its numbers are numbers: else a step fails, or climbs. A rate moves."""
    config = train_config("shards", tmp_path / "run", arm="dense")
    layer = torch.nn.Linear(2, 2)
    optimizer = make_optimizer(layer, config, 8)
    check_optimizer({"state": {}, "param_groups": _groups(optimizer, lr=0.5)}, optimizer, "checkpoint")
    with pytest.raises(DamageError, match="groups" if name == "foreach" else f"groups: {name} is"):
        check_optimizer({"state": {}, "param_groups": _groups(optimizer, **{name: GROUPS[name]})}, optimizer, "it")


def _groups(optimizer: torch.optim.Optimizer, **changes: Any) -> list[dict[str, Any]]:
    return [group | changes for group in optimizer.state_dict()["param_groups"]]


COST = asdict(RunCost(1, 1, 1, 1, 1.0))
RUN = asdict(PlannedRun("dense-seed0", ArmKey("dense"), 0, {"seed": 0}, RunCost(1, 1, 1, 1, 1.0)))
PLANS: dict[str, dict[str, Any]] = {
    **{f"gpus {gpus}": {"settings": {"gpus": gpus}} for gpus in ("x", [2], 0, -2)},
    "a margin of words": {"settings": {"margin": "x"}},
    "controls elsewhere": {"settings": {"controls": {"../centre-1": "t.zarr"}}},
    **{
        f"{name} past its bound": {"runs": [RUN | {"cost": COST | {name: 1e18 + 1e3}}]}
        for name in ("epochs", "seconds")
    },
    "endless operations": {"runs": [RUN | {"cost": COST | {"flops": 1e308}}]},
    "another seed in its settings": {"runs": [RUN | {"settings": {"seed": 1}}]},
    "a run twice": {"runs": [RUN, RUN]},
    "too many runs": {"runs": [RUN | {"name": f"run{number}"} for number in range(MAX_RUNS + 1)]},
}


@pytest.mark.parametrize("case", PLANS)
def test_a_plan_that_no_study_has_is_refused(case: str, tmp_path: Path) -> None:
    """What is done by a plan, summed or shown of it is within bounds, its runs are few and each has a folder alone."""
    sound = asdict(StudyPlan(())) | {"runs": [RUN]}
    (tmp_path / "study.json").write_text(json.dumps(sealed(sound)))
    assert read_study(tmp_path).runs[0].name == "dense-seed0"
    (tmp_path / "study.json").write_text(json.dumps(sealed(sound | PLANS[case])))
    with pytest.raises(DamageError):
        read_study(tmp_path)


def test_a_result_of_endless_times_is_none(tmp_path: Path) -> None:
    """What was measured is multiplied and summed for a table."""
    assert read_result(write_run(tmp_path / "sound", "dense", 0) / "result.json") is not None
    forged = write_run(tmp_path / "forged", "dense", 0, throughput={"step_seconds": 1e308})
    assert read_result(forged / "result.json") is None
