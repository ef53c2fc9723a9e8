"""A pruning study from what was asked for to its plan; its runs and its report are made as every study's are."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dlth.pipeline.evidence.study_plan import StudyPlan
from dlth.pipeline.pruning.planning import plan_prune
from dlth.pipeline.pruning.prune_config import PruneConfig
from dlth.pipeline.studies.arms import Counting
from dlth.pipeline.studies.asked import study_text
from dlth.pipeline.studies.founding import MakePlan, foreseen, founded
from dlth.tickets.callbacks import Note


def found_prune(
    config: PruneConfig,
    train: Mapping[str, Any],
    *,
    note: Note = lambda text: None,
    counting: Counting | None = None,
) -> StudyPlan:
    """The plan that the study's folder has, or a new one there.

    Args:
        config: settings of the study
        train: settings of `dlth train` that its runs share
        note: told what a person should know
        counting: shows progress
    Raises:
        InputError, MismatchError: as `plan_prune` and `founded`
    """
    return founded(Path(config.out), study_text("prune", config, train), _maker(config, train, note, counting), note)


def foreseen_prune(
    config: PruneConfig,
    train: Mapping[str, Any],
    *,
    note: Note = lambda text: None,
    counting: Counting | None = None,
) -> StudyPlan:
    """The plan that `found_prune` would give, and its refusals; nothing is written."""
    return foreseen(Path(config.out), study_text("prune", config, train), _maker(config, train, note, counting))


def _maker(config: PruneConfig, train: Mapping[str, Any], note: Note, counting: Counting | None) -> MakePlan:
    return lambda known: plan_prune(config, train, note=note, counting=counting, known=known)
