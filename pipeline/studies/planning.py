"""The plan of a study: every arm opened and checked, matched with the others, counted, and given its runs by name.

All is checked before anything is spent, and all that is wrong with any arm is told at once: whoever mends one setting
at a time for a grid of ten arms would wait for ten checks. Seeds differ in nothing that can be refused, so they share
one check. What could never be judged is refused as well, before it is trained. Nothing is written here.
"""

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dlth.pipeline.evidence.arm_key import ArmKey
from dlth.pipeline.evidence.evidence import DENSE
from dlth.pipeline.evidence.study_plan import MAX_RUNS, PlannedRun, RunCost, StudyPlan
from dlth.pipeline.studies.arms import Arm, Counting, opened
from dlth.pipeline.studies.asked import located
from dlth.pipeline.studies.grid import grid
from dlth.pipeline.studies.identity import run_digest, run_name
from dlth.pipeline.studies.matching import matched
from dlth.pipeline.studies.outlook import outlook
from dlth.pipeline.studies.selector_cost import selector_cost, told
from dlth.pipeline.studies.study_config import CompareConfig
from dlth.pipeline.studies.study_controls import control_contents, control_file
from dlth.tickets.callbacks import Note
from dlth.tickets.errors import InputError
from dlth.tickets.format.jsontext import strict
from dlth.training.runs.result import read_result
from dlth.training.runs.runlog import RESULT
from dlth.training.settings.comparable import as_judged, comparable
from dlth.training.settings.train_config import TrainConfig


def plan_study(
    config: CompareConfig,
    train: Mapping[str, object],
    *,
    note: Note = lambda text: None,
    counting: Counting | None = None,
    known: StudyPlan | None = None,
) -> StudyPlan:
    """Plan a study: check every arm, match their epochs, count what they cost, and name their runs.

    Args:
        config: settings of the study
        train: settings of `dlth train` that its runs share, as a user gave them; a recipe by its name
        note: told what a person should know of any arm
        counting: shows progress, arm by arm
        known: the study's plan so far, whose finished runs tell how fast they were
    Raises:
        InputError: whatever does not fit, of all arms at once
    """
    cells, notes = grid(config, train)
    if len(cells) * len(config.seeds) > MAX_RUNS:
        raise InputError(f"{len(cells)} arms with {len(config.seeds)} seeds: at most {MAX_RUNS:,} runs are planned")
    arms = opened(cells, config, counting, {} if known is None else finished_rates(Path(config.out), known))
    for text in dict.fromkeys(text for arm in arms for text in arm.survey.notes):
        note(text)
    costs = {arm.key: selector_cost(arm, config) for arm in arms}
    arms = matched(arms, config, {key: cost.charged for key, cost in costs.items()}, known)
    may_differ = _may_differ(config)
    _refuse_unlike(arms, may_differ)
    return StudyPlan(
        runs=tuple(_run(arm, seed, config, costs[arm.key].charged) for arm in arms for seed in config.seeds),
        settings=config.model_dump(mode="json") | {"controls": _controls(arms, config)},
        may_differ=may_differ,
        notes=(*notes, *outlook(arms, config), *told(tuple(costs.values()), config)),
    )


def finished_rates(study: Path, known: StudyPlan) -> dict[ArmKey, float]:
    """Operations per second of each arm that a finished run of the study tells of."""
    rates = {}
    for run in known.runs:
        result = read_result(known.folder(study, run) / RESULT)
        if result is not None and result.status == "finished" and result.train_flops:
            seconds = sum(result.throughput.get(name, 0.0) for name in ("data_seconds", "compute_seconds"))
            if seconds > 0:
                rates[run.arm] = result.train_flops / seconds
    return rates


def _refuse_unlike(arms: Sequence[Arm], may_differ: Sequence[str]) -> None:
    """Raises InputError for arms of one keep, mode and variant that differ in more than the study says.

    Their runs would be trained, and then stop the verdicts.
    """
    problems: dict[str, None] = {}
    for key in dict.fromkeys((arm.key.keep, arm.key.mode, arm.key.variant) for arm in arms if arm.key.arm != DENSE):
        dense = [arm for arm in arms if arm.key.arm == DENSE and arm.key.variant == key[2]]
        family = [arm for arm in arms if (arm.key.keep, arm.key.mode, arm.key.variant) == key]
        problems |= dict.fromkeys(comparable(list(map(result_of, dense + family)), may_differ))
    refuse_unjudged(problems)


def refuse_unjudged(problems: Collection[str]) -> None:
    """Raises InputError if there are any: what `comparable` says of results that runs are going to have."""
    if problems:
        raise InputError(
            "these runs could not be judged, as they differ in more than the arm: "
            + "; ".join(problems)
            + ". Give all arms the same."
        )


def result_of(arm: Arm) -> dict[str, Any]:
    """What the results of an arm's runs will say that must be alike."""
    of_epochs = ("epochs", "warmup_epochs", "keep_schedule_start", "keep_schedule_epochs", "decay_milestones")
    record = arm.survey.record
    config = record["config"] | {name: getattr(arm.config, name) for name in of_epochs}
    steps = arm.config.epochs * arm.survey.steps_per_epoch
    return as_judged({**record, "config": config, "steps": steps})


def _run(arm: Arm, seed: int, config: CompareConfig, charged: float) -> PlannedRun:
    """The run of an arm with a seed."""
    settings, contents = arm.config.model_copy(update={"seed": seed}), arm.survey.contents
    values = kept_settings(settings)
    if arm.cell.control:
        assert arm.tickets is not None
        identity = arm.tickets.identity
        contents = {**contents, "tickets": control_contents(arm.cell.control, identity)}
        values["tickets"] = os.path.abspath(control_file(Path(config.out), arm.cell.control, identity))
    return PlannedRun(
        name=run_name(arm.key, seed, run_digest(settings, contents)),
        arm=arm.key,
        seed=seed,
        settings=values,
        cost=replace(run_cost(arm), charged_flops=charged),
        contents=strict(contents),
    )


def kept_settings(config: TrainConfig) -> dict[str, Any]:
    """Settings as a planned run has them: paths as found from anywhere, without its folder."""
    values = {name: located(TrainConfig, name, value) for name, value in config.model_dump(mode="json").items()}
    return {name: value for name, value in values.items() if name not in ("out", "resume")}


def run_cost(arm: Arm) -> RunCost:
    """What a run of an arm costs in all, but for what its tickets did."""
    config, found = arm.config, arm.survey
    work, evaluations = found.work(config.epochs), found.evaluations(config.epochs, config.val_interval)
    return RunCost(
        epochs=config.epochs,
        steps=config.epochs * found.steps_per_epoch - config.start_step,
        images=work.images,
        tokens=work.tokens,
        flops=work.flops,
        bytes_read=found.bytes_read(config.epochs, evaluations),
        bytes_written=found.written_bytes,
        seconds=found.seconds(config.epochs, evaluations),
    )


def _controls(arms: tuple[Arm, ...], config: CompareConfig) -> dict[str, str]:
    """Names of the control files, and the ticket files that they are made of."""
    made = {}
    for arm in arms:
        if arm.cell.control and arm.tickets is not None:
            name = control_file(Path(config.out), arm.cell.control, arm.tickets.identity).name
            made[name] = located(TrainConfig, "tickets", arm.config.tickets)
    return made


def _may_differ(config: CompareConfig) -> tuple[str, ...]:
    """In what the runs differ because the study says so."""
    own = {name for values in config.arm.values() for name in values}
    grid = {"keep": len(config.keep) > 1, "mode": len(config.mode) > 1, "epochs": config.match != "epochs"}
    return tuple(sorted(own | set(config.sweep) | {name for name, differs in grid.items() if differs}))
