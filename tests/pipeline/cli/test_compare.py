"""`dlth compare` from flags to verdicts: planned, run, joined, grown and told."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from makers.runs import KWARGS, SMALL
from makers.studies import planned_run, write_inputs
from makers.tickets import select_tickets
from safetensors.torch import save_file
from timm import create_model

from dlth.data.shards.index import open_index
from dlth.pipeline.evidence.failure import FAILED
from dlth.pipeline.evidence.study_plan import StudyPlan, read_study, write_study
from dlth.pipeline.studies.identity import run_digest, run_name
from dlth.tickets import ViewSpec
from dlth.training.settings.layering import checked
from dlth.training.settings.train_config import TrainConfig

Dlth = Callable[..., tuple[int, str, str]]
TRAIN = (*SMALL, "--recipe", "none", "--epochs", "1", "--warmup-epochs", "0", "--batch-size", "16", "--lr", "1e-3")
TRAIN = (*TRAIN, "--workers", "0", "--device", "cpu", "--measure", "0")


@pytest.fixture
def words(tmp_path: Path) -> tuple[str, ...]:
    """Flags of a study of a tiny model on 64 images."""
    tickets = write_inputs(tmp_path)
    data = ("--data", str(tmp_path / "train"), "--val", str(tmp_path / "val"))
    return (*TRAIN, *data, "--tickets", tickets["train"], "--val-tickets", tickets["val"])


def test_a_study_runs_grows_and_is_joined(words: tuple[str, ...], tmp_path: Path, dlth: Dlth) -> None:
    """Verdicts and table are printed and stand in the report; another seed is added to it by that flag alone; --out
    alone joins and says the same without training.
    """
    out = tmp_path / "study"
    code, told, said = dlth("compare", "--arms", "ticket,dense", "--seeds", "0", *words, "--out", out)
    assert code == 0, said
    assert "not decided: Ticket" in told or "not decided: ticket" in told, told
    assert re.search(r"^ticket +0\.5 +projected +1 +8 +1 +", told, re.MULTILINE), told
    assert "2/2 runs (100.0%)" in said
    code, told, said = dlth("compare", "--seeds", "0,1", "--measure", "0", "--out", out, "--json")
    assert code == 0, said
    assert f"settings: {out / 'study.toml'}" in said
    assert [row[:5] for row in json.loads(told)["tables"]["arms"]["rows"]] == [
        ["dense", "", "", "", 2],
        ["ticket", "0.5", "projected", "", 2],
    ]
    plan = read_study(out)
    before = {path: path.stat().st_mtime_ns for run in plan.runs for path in plan.folder(out, run).rglob("*")}
    code, again, said = dlth("compare", "--out", out, "--json")
    assert (code, again) == (0, told), said
    assert before == {path: path.stat().st_mtime_ns for path in before}
    assert (out / "report.html").is_file()
    for dry in ((), ("--dry-run",)):
        code, _, said = dlth("compare", "--arms", "ticket", "--seeds", "0", *words, "--out", out, *dry)
        assert code == 2
        assert "there is no dense with seed 0" in said


def test_a_study_with_a_failed_run_ends_with_2_and_tells_the_rest(
    words: tuple[str, ...], tmp_path: Path, dlth: Dlth
) -> None:
    """The run that diverged is named with its error, the others are in the table."""
    out = tmp_path / "study"
    sweep = ("--sweep", "lr=[1e-3,1e30]", "--nan-patience", "1")
    code, told, said = dlth("compare", "--arms", "dense", "--seeds", "0", *words, *sweep, "--out", out, "--json")
    result = json.loads(told)
    assert code == 2, said
    ((name, problem),) = result["failed"].items()
    assert "E_DIVERGED" in problem
    assert (out / "runs" / name / FAILED).is_file()
    assert [row[3] for row in result["tables"]["arms"]["rows"]] == ["lr=0.001"]


def test_files_exchanged_under_a_plan_are_refused_and_may_be_put_back(
    words: tuple[str, ...], tmp_path: Path, dlth: Dlth
) -> None:
    """Other tickets where the planned ones lay: nothing is trained or marked, and with the first ones back it goes on;
    a control, whose tickets are made after the plan, is no exchange.
    """
    out, tickets, kept = tmp_path / "study", tmp_path / "train.zarr", tmp_path / "kept.zarr"
    study = ("--arms", "ticket,dense", "--control", "inverse", "--seeds", "0", *words, "--out", out)
    code, _, said = dlth("compare", *study)
    assert code == 0, said
    shutil.rmtree(next((out / "runs").glob("ticket-*")))
    tickets.rename(kept)
    select_tickets(open_index(str(tmp_path / "train")), tickets, view=ViewSpec("whole", 32, 32), name="other")
    code, _, said = dlth("compare", *study)
    assert code == 2
    assert re.search(r"error\[E_MISMATCH\]: ticket-\S+ would not be .*'?tickets'? is \w+, was \w+", said), said
    assert not any((out / "runs").glob("ticket-*"))
    shutil.rmtree(tickets)
    kept.rename(tickets)
    code, _, said = dlth("compare", *study)
    assert code == 0, said


def test_a_folder_without_a_study_is_not_joined(tmp_path: Path, dlth: Dlth) -> None:
    """--out alone names a study that is there; otherwise what is to be compared must be said, and nothing is left."""
    code, _, said = dlth("compare", "--out", tmp_path / "study")
    assert code == 2
    assert "--data" in said
    assert list(tmp_path.iterdir()) == []


def test_a_study_of_others_brings_no_code_to_import(words: tuple[str, ...], tmp_path: Path, dlth: Dlth) -> None:
    """A study that is joined runs nobody's code but what the command line names: that is then looked for."""
    weights = tmp_path / "selector.safetensors"
    save_file(create_model("vit_tiny_patch16_224", num_classes=5, img_size=32, **KWARGS).state_dict(), weights)
    inputs = {"val": None, "mode": "online", "keep": "0.5", "selector": "vit_tiny_patch16_224"}
    inputs |= {"selector_checkpoint": str(weights), "selector_kwargs": KWARGS}
    study, code = tmp_path / "study", {"selector_ranker": "no_such_package:rank"}
    run = planned_run(str(tmp_path / "train"), "ticket", 0, inputs | code)
    study.mkdir()
    write_study(study, StudyPlan((run,), {"gpus": 1}))
    status, _, said = dlth("compare", "--out", study)
    assert status == 2
    assert "names code to import (selector_ranker = 'no_such_package:rank')" in said
    assert [path.name for path in study.iterdir()] == ["study.json"]
    status, _, said = dlth("compare", "--out", study, "--selector-ranker", "no_such_package:rank")
    assert status == 2
    assert "no_such_package cannot be imported" in said


@pytest.mark.parametrize(("of", "other", "settings"), [("compare", "prune", {}), ("prune", "compare", {"rounds": 2})])
def test_a_study_is_joined_by_the_command_that_made_it(
    tmp_path: Path, dlth: Dlth, of: str, other: str, settings: dict[str, Any]
) -> None:
    """The other one refuses it and says which is right, which takes it."""
    write_study(tmp_path, StudyPlan((planned_run(str(tmp_path / "train"), "dense", 0, {}),), settings))
    status, _, said = dlth(other, "--out", tmp_path, "--dry-run")
    assert status == 2
    assert f"holds a study of dlth {of}: dlth {of} --out {tmp_path} joins it" in " ".join(said.split())
    assert dlth(of, "--out", tmp_path, "--dry-run")[0] == 0


@pytest.mark.parametrize(
    ("changed", "flags", "problem"),
    [
        ({"token_labels": "http://127.0.0.1:9/x.zip"}, (), "would have something fetched (token_labels = http://127."),
        ({"model_kwargs": {"patch_size": 8, "pretrained_cfg": {"url": "hf://x"}}}, (), "fetched (model_kwargs = "),
        ({"pretrained": True}, (), "would have something fetched (pretrained = True)"),
        ({"lr": 0.5}, (), "has other settings than it was named by"),
        ({"lr": -1.0}, (), "--lr"),
        ({}, ("--gpus", "0"), "--gpus"),
    ],
    ids=str,
)
def test_a_study_of_others_is_checked_before_it_is_joined(
    tmp_path: Path, dlth: Dlth, changed: dict[str, Any], flags: tuple[str, ...], problem: str
) -> None:
    """What it would fetch, settings altered under a run's name, and settings that cannot be are refused by the run."""
    run = planned_run(str(tmp_path / "train"), "dense", 0, {})
    if "lr" in changed:
        contents = {"data": "images"}
        config = checked(TrainConfig, {**run.settings, "out": "-"})
        run = replace(run, name=run_name(run.arm, 0, run_digest(config, contents)), contents=contents)
    write_study(tmp_path, StudyPlan((replace(run, settings={**run.settings, **changed}),)))
    status, _, said = dlth("compare", "--out", tmp_path, *flags)
    said = " ".join(said.split())
    assert status == 2
    assert problem in said, said
    assert flags or f"study.json: {run.name}" in said, said
    assert [path.name for path in tmp_path.iterdir()] == ["study.json"]
