"""`dlth prune`: weights pruned level by level, from flags and files to a study that is planned, shown and run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from dlth.pipeline.cli import console
from dlth.pipeline.cli.flags import with_flags
from dlth.pipeline.cli.options import ConfigFile, DryRun, Json
from dlth.pipeline.cli.study_command import OF_A_WORKER, carry_out, counting, joins, show_plan, split_flags, told
from dlth.pipeline.cli.training import recipe_help
from dlth.pipeline.pruning.prune_config import OWN, PruneConfig
from dlth.training.settings.layering import checked
from dlth.training.settings.recipes import UNLESS_SAID
from dlth.training.settings.train_config import TrainConfig

_OF_NO_FLAG = set(OWN) - {"arm", "out"}
"""Settings of train that the study gives by itself."""


@with_flags(PruneConfig, TrainConfig, without=_OF_NO_FLAG)
def prune(
    overrides: dict[str, Any],
    recipe: Annotated[
        str | None, typer.Option(help=recipe_help(TrainConfig, UNLESS_SAID, "`dlth train --print-config`"))
    ] = None,
    config: ConfigFile = None,
    retry: Annotated[bool, typer.Option("--retry", help="Try runs again that failed by themselves.")] = False,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Mask the smallest weights round by round, rewind the rest and train again, beside controls; every flag of train.

    Run it again, anywhere that sees the folder: levels that are done are used, what others do is left to them, and what
    was broken off goes on. A study that is there is joined by its --out alone, and grows by rounds, arms, draws, seeds.
    """
    from dlth.pipeline.pruning.prune import foreseen_prune, found_prune
    from dlth.pipeline.studies.founding import joined_study

    train: Mapping[str, Any]
    if config is None and recipe is None and joins("prune", overrides):
        study = checked(PruneConfig, {name: overrides[name] for name in overrides.keys() & OF_A_WORKER})
        plan, train = joined_study(Path(study.out), "prune"), overrides
    else:
        study, train = _asked(overrides, recipe, config)
        plan_of = foreseen_prune if dry_run else found_prune
        plan = plan_of(study, train, note=console.note, counting=counting(json))
    if dry_run or not json:
        show_plan(Path(study.out), plan, json)
    if not dry_run:
        carry_out(Path(study.out), plan, gpus=study.gpus, retry=retry, named=[train], json=json)


def _asked(overrides: dict[str, Any], recipe: str | None, config: Path | None) -> tuple[PruneConfig, Mapping[str, Any]]:
    """The study's settings, and those of train that its runs share."""
    from dlth.pipeline.project.settings import prune_settings

    chosen = prune_settings(*split_flags(overrides, recipe, PruneConfig), config)
    told(chosen)
    return chosen.study.config(), chosen.train
