"""`dlth compare`: a study from its flags and files, planned and shown before it is run."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from json import loads
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dlth.pipeline.cli import console
from dlth.pipeline.cli.exit_codes import EXIT_INPUT
from dlth.pipeline.cli.flags import with_flags
from dlth.pipeline.cli.options import ConfigFile, DryRun, Json
from dlth.pipeline.cli.sharing import fetched
from dlth.pipeline.cli.training import recipe_help
from dlth.pipeline.studies.study_config import OWN, CompareConfig
from dlth.tickets.errors import shown
from dlth.training.distributed.signals import EXIT_RESUMABLE
from dlth.training.settings.fields import names_code
from dlth.training.settings.layering import checked
from dlth.training.settings.recipes import UNLESS_SAID
from dlth.training.settings.train_config import TrainConfig

if TYPE_CHECKING:
    from dlth.pipeline.evidence.study_plan import StudyPlan
    from dlth.pipeline.pages.report import Report
    from dlth.pipeline.studies.worker import StudyState

_OF_NO_FLAG = {*OWN, "arm"} - {"mode", "keep", "out"}
"""Settings of train that the study gives by itself, and those of single arms, which only a file can say."""
_OF_A_WORKER = {"out", "gpus"}
"""What a process that joins a study may say of itself, besides the code that its runs may import."""


@with_flags(CompareConfig, TrainConfig, without=_OF_NO_FLAG)
def compare(
    overrides: dict[str, Any],
    recipe: Annotated[
        str | None, typer.Option(help=recipe_help(TrainConfig, UNLESS_SAID, "`dlth train --print-config`"))
    ] = None,
    config: ConfigFile = None,
    retry: Annotated[bool, typer.Option("--retry", help="Try runs again that failed by themselves.")] = False,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Train arms x keeps x modes x seeds side by side, and judge them; every flag of train is a flag here.

    Run it again, anywhere that sees the folder: what is done is used, what others do is left to them, and what was
    broken off goes on. A study that is there is joined by its --out alone.
    """
    from dlth.pipeline.cli.study_progress import study_progress
    from dlth.pipeline.studies.compare import conclude
    from dlth.pipeline.studies.founding import joined_study
    from dlth.pipeline.studies.worker import run_study

    named: list[Mapping[str, Any]]
    if config is None and recipe is None and _joins(overrides):
        study = checked(CompareConfig, {name: overrides[name] for name in overrides.keys() & _OF_A_WORKER})
        folder = Path(study.out)
        plan, named = joined_study(folder), [overrides]
    else:
        study, train = _asked(overrides, recipe, config)
        folder = Path(study.out)
        plan, named = _planned(study, train, dry_run, json), [train, study.sweep, *study.arm.values()]
    if dry_run or not json:
        show_plan(folder, plan, json)
    if dry_run:
        return
    with study_progress(plan, quiet=json) as reporter:
        state = run_study(folder, plan, gpus=study.gpus, retry=retry, own_code=_own_code(named), reporter=reporter)
    if state.stopped:
        console.note("stopped on request: the same command goes on from there")
        raise typer.Exit(EXIT_RESUMABLE)
    show_outcome(folder, conclude(folder, console.note), state, json)
    raise typer.Exit(EXIT_INPUT if state.failed else 0)


def _joins(overrides: Mapping[str, Any]) -> bool:
    """Whether a study that is there is named, and neither flags nor a file say what is to be compared."""
    from dlth.pipeline.evidence.study_plan import STUDY
    from dlth.pipeline.project.file import project_file

    said = {name for name, value in overrides.items() if not names_code(name, value)}
    if said - _OF_A_WORKER or not (Path(overrides.get("out", "")) / STUDY).is_file():
        return False
    file = project_file("compare", None)
    return file is None or not file.tables.get("compare")


def _own_code(named: Iterable[Mapping[str, Any]]) -> set[str]:
    """Places of code among settings, and among their values to sweep over."""
    items = [item for settings in named for item in settings.items()]
    each = [(name, one) for name, value in items for one in (value if isinstance(value, list) else [value])]
    return {one for name, one in each if names_code(name, one)}


def _asked(
    overrides: dict[str, Any], recipe: str | None, config: Path | None
) -> tuple[CompareConfig, Mapping[str, Any]]:
    """The study's settings, and those of train that its runs share."""
    from dlth.pipeline.project.settings import compare_settings

    own = {name: value for name, value in overrides.items() if name in CompareConfig.model_fields}
    shared = {name: value for name, value in overrides.items() if name not in own}
    shared |= {"recipe": recipe} if recipe is not None else {}
    chosen = compare_settings(own, shared, config)
    for text in chosen.notes:
        console.note(text)
    fetched(chosen.train.get("tickets"), chosen.train.get("val_tickets"))
    return chosen.study.config(), chosen.train


def _planned(study: CompareConfig, train: Mapping[str, Any], dry_run: bool, json: bool) -> "StudyPlan":
    """The study's plan; in a dry run as it would be made."""
    from dlth.pipeline.studies.compare import foreseen_study, found_study

    def counting(label: str, total: int, unit: str) -> Any:
        return console.counting(label, total, unit, quiet=json)

    plan_of = foreseen_study if dry_run else found_study
    return plan_of(study, train, note=console.note, counting=counting)


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
