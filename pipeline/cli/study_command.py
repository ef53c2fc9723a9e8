"""What the commands that make a study share: joining one that is there, showing a plan, running it, telling its end."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from json import loads
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from dlth.pipeline.cli import console
from dlth.pipeline.cli.exit_codes import EXIT_INPUT
from dlth.pipeline.cli.sharing import fetched
from dlth.tickets.errors import shown
from dlth.training.distributed.signals import EXIT_RESUMABLE
from dlth.training.settings.fields import Settings, names_code

if TYPE_CHECKING:
    from dlth.pipeline.evidence.study_plan import StudyPlan
    from dlth.pipeline.pages.report import Report
    from dlth.pipeline.project.settings import StudySettings
    from dlth.pipeline.studies.arms import Counting
    from dlth.pipeline.studies.worker import StudyState

OF_A_WORKER = {"out", "gpus"}
"""What a process that joins a study may say of itself, besides the code that its runs may import."""


def joins(command: str, overrides: Mapping[str, Any]) -> bool:
    """Whether a study that is there is named, and neither flags nor a file say what its runs are."""
    from dlth.pipeline.evidence.study_plan import STUDY
    from dlth.pipeline.project.file import project_file

    said = {name for name, value in overrides.items() if not names_code(name, value)}
    if said - OF_A_WORKER or not (Path(overrides.get("out", "")) / STUDY).is_file():
        return False
    file = project_file(command, None)
    return file is None or not file.tables.get(command)


def own_code(named: Iterable[Mapping[str, Any]]) -> set[str]:
    """Places of code among settings, and among their values to sweep over."""
    items = [item for settings in named for item in settings.items()]
    each = [(name, one) for name, value in items for one in (value if isinstance(value, list) else [value])]
    return {one for name, one in each if names_code(name, one)}


def told(chosen: "StudySettings[Any]") -> None:
    """Say what a person should know of a study's settings, and fetch tickets that lie elsewhere."""
    for text in chosen.notes:
        console.note(text)
    fetched(chosen.train.get("tickets"), chosen.train.get("val_tickets"))


def split_flags(
    overrides: Mapping[str, Any], recipe: str | None, own: type[Settings]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Flags of the study itself, and those of its runs."""
    of_study = {name: value for name, value in overrides.items() if name in own.model_fields}
    of_runs = {name: value for name, value in overrides.items() if name not in of_study}
    return of_study, of_runs | ({"recipe": recipe} if recipe is not None else {})


def counting(json: bool) -> "Counting":
    """What shows how arms are checked; nothing beside JSON."""
    return lambda label, total, unit: console.counting(label, total, unit, quiet=json)


def carry_out(
    folder: Path, plan: "StudyPlan", *, gpus: int, retry: bool, named: Iterable[Mapping[str, Any]], json: bool
) -> None:
    """Run a study to its end and tell what came of it; ends the command.

    Args:
        folder, plan: the study
        gpus, retry: as `run_study` takes them
        named: settings as this user gave them, whose code may be imported
        json: print the outcome as JSON
    """
    from dlth.pipeline.cli.study_progress import study_progress
    from dlth.pipeline.studies.compare import conclude
    from dlth.pipeline.studies.worker import run_study

    with study_progress(plan, quiet=json) as reporter:
        state = run_study(folder, plan, gpus=gpus, retry=retry, own_code=own_code(named), reporter=reporter)
    if state.stopped:
        console.note("stopped on request: the same command goes on from there")
        raise typer.Exit(EXIT_RESUMABLE)
    show_outcome(folder, conclude(folder, console.note), state, json)
    raise typer.Exit(EXIT_INPUT if state.failed else 0)


def show_plan(folder: Path, plan: "StudyPlan", json: bool) -> None:
    """Print what a study will do: an arm a line, what is there already, sums and notes."""
    from dlth.pipeline.studies.plan_table import plan_table

    table = plan_table(folder, plan)
    if json:
        console.as_json({"out": str(folder), **asdict(table), "runs": [asdict(run) for run in plan.runs]})
        return
    console.write(f"study {shown(folder)}: {table.what}", style="bold")
    console.write(console.aligned(table.COLUMNS, [arm.cells for arm in table.arms]))
    for text in (*table.totals, *plan.notes):
        console.note(text)


def show_outcome(folder: Path, report: "Report", state: "StudyState", json: bool) -> None:
    """Print the verdicts and the table of arms, and which runs failed."""
    from dlth.pipeline.pages.report import as_json
    from dlth.pipeline.studies.compare import REPORT

    failed = {run.name: run.problem for run in state.failed}
    if json:
        console.as_json(loads(as_json(report)) | {"out": str(folder), "failed": failed})
        return
    for warning in report.warnings:
        console.note(warning)
    if (arms := report.tables.get("arms")) is not None:
        console.write(console.aligned(arms.shown_columns, arms.texts))
    for verdict in report.verdicts:
        console.write(f"{verdict.outcome}: {verdict.text}")
    for name, problem in failed.items():
        console.note(f"failed: {name}: {problem}")
    console.note(f"the whole report: {shown(folder / REPORT)}")
