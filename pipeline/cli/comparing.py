"""`dlth compare`: a study from its flags and files, planned and shown before it is run."""

from dataclasses import asdict
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
from dlth.training.settings.recipes import UNLESS_SAID
from dlth.training.settings.train_config import TrainConfig

if TYPE_CHECKING:
    from dlth.pipeline.evidence.study_plan import StudyPlan

_OF_NO_FLAG = {*OWN, "arm"} - {"mode", "keep", "out"}
"""Settings of train that the study gives by itself, and those of single arms, which only a file can say."""


@with_flags(CompareConfig, TrainConfig, without=_OF_NO_FLAG)
def compare(
    overrides: dict[str, Any],
    recipe: Annotated[str | None, typer.Option(help=recipe_help(TrainConfig, UNLESS_SAID))] = None,
    config: ConfigFile = None,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Train arms x keeps x modes x seeds side by side, and judge them; every flag of train is a flag here.

    Run it again, anywhere that sees the folder: what is done is used, what others do is left to them, and what was
    broken off goes on.
    """
    from dlth.pipeline.evidence.study_plan import STUDY, read_study
    from dlth.pipeline.project.settings import compare_settings
    from dlth.pipeline.studies.asked import asked_text
    from dlth.pipeline.studies.founding import founded
    from dlth.pipeline.studies.planning import plan_study
    from dlth.pipeline.studies.study_controls import make_controls
    from dlth.pipeline.studies.worker import run_study

    own = {name: value for name, value in overrides.items() if name in CompareConfig.model_fields}
    shared = {name: value for name, value in overrides.items() if name not in own}
    shared |= {"recipe": recipe} if recipe is not None else {}
    chosen = compare_settings(own, shared, config)
    for text in chosen.notes:
        console.note(text)
    study = chosen.study.config()
    fetched(chosen.train.get("tickets"), chosen.train.get("val_tickets"))

    def counting(label: str, total: int, unit: str) -> Any:
        return console.counting(label, total, unit, quiet=json)

    def made(known: "StudyPlan | None") -> "StudyPlan":
        plan = plan_study(study, chosen.train, note=console.note, counting=counting, known=known)
        for text in [] if dry_run else make_controls(folder, plan.settings):
            console.note(text)
        return plan

    folder = Path(study.out)
    if dry_run:
        show_plan(folder, made(read_study(folder) if (folder / STUDY).is_file() else None), json)
        return
    plan = founded(folder, asked_text(study, chosen.train), made, console.note)
    show_plan(folder, plan, json)
    state = run_study(folder, plan, gpus=study.gpus)
    raise typer.Exit(EXIT_RESUMABLE if state.stopped else EXIT_INPUT if state.failed else 0)


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
