"""`dlth compare`: a study from its flags and files, planned and shown before it is run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from dlth.pipeline.cli import console
from dlth.pipeline.cli.flags import with_flags
from dlth.pipeline.cli.options import ConfigFile, DryRun, Json
from dlth.pipeline.cli.study_command import OF_A_WORKER, carry_out, counting, joins, show_plan, split_flags, told
from dlth.pipeline.cli.training import recipe_help
from dlth.pipeline.studies.study_config import OWN, CompareConfig
from dlth.training.settings.layering import checked
from dlth.training.settings.recipes import UNLESS_SAID
from dlth.training.settings.train_config import TrainConfig

_OF_NO_FLAG = {*OWN, "arm"} - {"mode", "keep", "out"}
"""Settings of train that the study gives by itself, and those of single arms, which only a file can say."""


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
    from dlth.pipeline.studies.compare import foreseen_study, found_study
    from dlth.pipeline.studies.founding import joined_study

    named: list[Mapping[str, Any]]
    if config is None and recipe is None and joins("compare", overrides):
        study = checked(CompareConfig, {name: overrides[name] for name in overrides.keys() & OF_A_WORKER})
        plan, named = joined_study(Path(study.out), "compare"), [overrides]
    else:
        study, train = _asked(overrides, recipe, config)
        plan_of = foreseen_study if dry_run else found_study
        plan = plan_of(study, train, note=console.note, counting=counting(json))
        named = [train, study.sweep, *study.arm.values()]
    if dry_run or not json:
        show_plan(Path(study.out), plan, json)
    if not dry_run:
        carry_out(Path(study.out), plan, gpus=study.gpus, retry=retry, named=named, json=json)


def _asked(
    overrides: dict[str, Any], recipe: str | None, config: Path | None
) -> tuple[CompareConfig, Mapping[str, Any]]:
    """The study's settings, and those of train that its runs share."""
    from dlth.pipeline.project.settings import compare_settings

    chosen = compare_settings(*split_flags(overrides, recipe, CompareConfig), config)
    told(chosen)
    return chosen.study.config(), chosen.train
