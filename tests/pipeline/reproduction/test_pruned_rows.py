"""Rows of pruned weights: all levels of an arm, made by the pruning study, in a bundle that says which they are."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from makers.experiments import SPLITS, toy_row
from makers.pictures import write_shards

from dlth.pipeline.evidence.finished_run import FinishedRun
from dlth.pipeline.evidence.study_plan import PlannedRun, StudyPlan, read_study
from dlth.pipeline.reproduction.bundle import BundleOf, write_bundle
from dlth.pipeline.reproduction.check import check_bundle, check_bundles
from dlth.pipeline.reproduction.experiment import Pruning
from dlth.pipeline.reproduction.pruned_rows import levels_unlike
from dlth.pipeline.reproduction.reproduce import Reproduction
from dlth.pipeline.reproduction.reproduce_config import ReproduceConfig
from dlth.pipeline.reproduction.row_settings import unlike
from dlth.pipeline.reproduction.table import table

HALVES = Pruning(rounds=2, rate="0.5")
ROWS = {
    row.name: row
    for row in (
        toy_row("toy/dense", "dense"),
        toy_row("toy/imp/lt", "lt", pruning=HALVES),
        toy_row("toy/imp/rr", "rr", pruning=HALVES),
    )
}
LEVELS = {("", ""), ("lt", "0.5"), ("lt", "0.25")}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which both pruned rows were run with one seed."""
    folder = tmp_path_factory.mktemp("pruned")
    train, val = (write_shards(folder, len(rows), rows, split=split).spec for split, rows in SPLITS.items())
    machine = {"device": "cpu", "workers": 0, "measure": 0, "batch_size": 8}
    config = ReproduceConfig(**machine, data=train, val=val, out=str(folder / "out"))
    asked = Reproduction.of(config, [ROWS["toy/imp/lt"], ROWS["toy/imp/rr"]], experiments=ROWS)
    foreseen = [run.name for run in asked.foreseen().runs]
    came = asked.run()
    assert sorted(foreseen) == sorted(path.name for path in (folder / "out" / "study" / "runs").iterdir())
    assert (came.failed, len(came.bundles)) == ((), 2)
    return folder / "out"


def test_a_row_is_all_levels_of_its_arm(finished: Path) -> None:
    """lt is the unpruned run and each level; rr has lt's chain besides, which made its masks and was run once; the
    table has the last level's number, and names the share of the weights that it left.
    """
    lt, rr = check_bundles(finished, ROWS)
    assert [(bundle.damage, bundle.unlike) for bundle in (lt, rr)] == [((), ())] * 2
    assert {(run.pruned, run.weights) for run in lt.runs} == LEVELS
    assert {(run.pruned, run.weights) for run in rr.runs} == LEVELS | {("rr", "0.5"), ("rr", "0.25")}
    assert len(list((finished / "study" / "runs").iterdir())) == 5
    assert "seed 0, lt 0.25 of weights: dense" in lt.text
    for bundle, line in zip((lt, rr), table(list(ROWS.values())[1:], (lt, rr)), strict=True):
        (last,) = (run for run in bundle.runs if (run.pruned, run.weights) == (line.row[-2:], "0.25"))
        assert (line.dense, line.weights, line.seeds) == (last.numbers["dense"]["top1"], "0.25", "0")
        assert line.hours == pytest.approx(sum(run.hours for run in bundle.runs))


def bundled(home: Path, finished: Path, row: str, runs: Mapping[str, PlannedRun]) -> tuple[str, ...]:
    """Why a bundle of some of lt's runs, as a plan has them, does not count as a row."""
    plan = StudyPlan(tuple(runs.values()))
    folders = {name: finished / "study" / "runs" / name for name in runs}
    found = check_bundle(write_bundle(home, BundleOf(row, "", "1", folders, plan)), ROWS)
    assert found.damage == ()
    return found.unlike


def test_levels_that_are_not_the_rows_are_named(finished: Path, tmp_path: Path) -> None:
    """A level that is missing, another arm's levels, a mask of another recipe, a pruned run in a row of none."""
    runs = {run.name: run for run in read_study(finished / "bundles" / "toy_imp_lt").runs}
    unpruned, first, last = runs
    assert bundled(tmp_path / "whole", finished, "toy/imp/lt", runs) == ()
    without = {unpruned: runs[unpruned], first: runs[first]}
    assert bundled(tmp_path / "part", finished, "toy/imp/lt", without) == ("seed 0 has not each of its levels once",)
    assert "seed 0 has not each of its levels once" in bundled(tmp_path / "other", finished, "toy/imp/rr", runs)
    mask = runs[last].mask
    assert mask is not None
    drawn = runs | {last: replace(runs[last], mask=replace(mask, recipe=replace(mask.recipe, shuffled=True)))}
    (why,) = bundled(tmp_path / "drawn", finished, "toy/imp/lt", drawn)
    assert f"{last}: the plan's recipe of its mask" in why
    pruned = {text for text in bundled(tmp_path / "dense", finished, "toy/dense", runs) if text.endswith("are pruned")}
    assert pruned == {f"{name}: its weights are pruned" for name in (first, last)}


@pytest.mark.parametrize("way", ["lt", "rr"])
def test_levels_begin_with_the_weights_and_at_the_step_of_their_row(finished: Path, way: str) -> None:
    """lt with other weights than its unpruned run's, rr with those, or any at a later step: not the row's levels."""
    row, folder = ROWS[f"toy/imp/{way}"], finished / "bundles" / f"toy_imp_{way}"
    planned = {run.name: run for run in read_study(folder).runs}
    whole, *others = (FinishedRun.load(folder / "runs" / name) for name in planned)
    last, first = others[-1], whole.result.initial_weights
    assert levels_unlike(row, [whole, *others], planned) == []
    swapped = replace(last.result, initial_weights="0" * 64 if way == "lt" else first)
    told = levels_unlike(row, [whole, *others[:-1], replace(last, result=swapped)], planned)
    assert told == [f"{last.folder.name}: first weights of the unpruned run: {way == 'rr'}, not {way == 'lt'}"]
    late = replace(last.result, config=last.result.config | {"start_step": 2})
    assert "start_step is 2, not 0" in unlike(row, late)


def test_counts_are_those_of_the_rows_model_and_rate(finished: Path) -> None:
    """Of another model another number is prunable, and of another rate other numbers remain, as other shares."""
    row, folder = ROWS["toy/imp/lt"], finished / "bundles" / "toy_imp_lt"
    _, first, _ = read_study(folder).runs
    kwargs = row.settings["model_kwargs"] | {"depth": 1}
    for other, expected in (
        (replace(row, settings={**row.settings, "model_kwargs": kwargs}), {"prunable weights", "remaining weights"}),
        (replace(row, pruning=Pruning(2, "0.4")), {"the plan's recipe of its mask", "remaining weights"}),
    ):
        unlike = check_bundle(folder, {row.name: other}).unlike
        told = {text.split(": ")[1] for text in unlike if text.startswith(first.name)}
        assert expected <= told
