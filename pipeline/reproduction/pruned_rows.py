"""A row of pruned weights: the levels that `dlth prune` has for it, and in what a bundle's runs are not those.

One row is all levels of its arm with the unpruned run that they begin with. The masks of rr are made by lt's levels, so
these are runs of its row too, and its bundle shows both.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dlth.pipeline.evidence.arm_key import RR, share_remaining
from dlth.pipeline.evidence.finished_run import FinishedRun
from dlth.pipeline.evidence.study_plan import PlannedRun
from dlth.pipeline.pruning.levels import Level, levels
from dlth.pipeline.reproduction.experiment import Experiment
from dlth.tickets.errors import shown
from dlth.training.models.registry import outline
from dlth.training.pruning.magnitude import remaining_counts
from dlth.training.pruning.prunable import prunable_shapes
from dlth.training.pruning.recipe import MaskRecipe


def prune_settings(row: Experiment) -> dict[str, Any]:
    """The settings of `dlth prune` that a row decides."""
    assert row.pruning is not None
    return {"arm": (row.arm,), "rounds": row.pruning.rounds, "rate": row.pruning.rate, "rewind": "0", "draws": 1}


def last_share(row: Experiment) -> str:
    """The share of the prunable weights that the last level leaves; empty for a row whose weights are not pruned."""
    return share_remaining(row.pruning.rate, row.pruning.rounds) if row.pruning is not None else ""


def levels_unlike(row: Experiment, runs: Sequence[FinishedRun], planned: Mapping[str, PlannedRun]) -> list[str]:
    """In what the runs of a bundle are not every level of a row with each of its seeds; `planned`: by their names."""
    if row.pruning is None:
        return [f"{run.folder.name}: its weights are pruned" for run in runs if run.result.mask]
    if {run.folder.name for run in runs} != planned.keys():
        return ["no plan says which levels its runs are"]
    wanted = Counter(levels((row.arm,), row.pruning.rounds, draws=1))
    found: dict[int, Counter[Level]] = {run.result.seed: Counter() for run in runs}
    for run in runs:
        found[run.result.seed][_level(planned[run.folder.name])] += 1
    if odd := [f"seed {seed} has not each of its levels once" for seed, there in found.items() if there != wanted]:
        return odd
    shapes = prunable_shapes(outline(row.settings["model"], **row.settings.get("model_kwargs", {})))
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    whole = {run.seed: run.result.initial_weights for run in runs if not run.result.mask}
    return [
        text
        for run in runs
        for text in _level_unlike(row, run, planned[run.folder.name], sizes, whole.get(run.seed, ""))
    ]


def _level(run: PlannedRun) -> Level:
    return Level(run.arm.pruned, run.mask.recipe.level if run.mask is not None else 0, run.arm.draw)


def _level_unlike(
    row: Experiment, run: FinishedRun, planned: PlannedRun, sizes: Mapping[str, int], first: str
) -> Iterator[str]:
    """In what a run is not the level that the plan says: its mask's recipe, its weights, of which `sizes` may be
    pruned, and its first weights; `first`: digest of those that its seed's unpruned run began with. The step that it
    begins at is a setting, which rows have alike (`unlike`).
    """
    assert row.pruning is not None
    level, result, is_pruned = _level(planned), run.result, planned.mask is not None
    recipe = MaskRecipe(level.level, row.pruning.rate)
    share = share_remaining(recipe.rate, level.level) if is_pruned else ""
    remaining = sum(remaining_counts(sizes, recipe).values()) if is_pruned else None
    facts = {
        "the plan's recipe of its mask": (planned.mask.recipe if planned.mask is not None else recipe, recipe),
        "the plan's share of its weights": (planned.arm.weights, share),
        "a mask": (bool(result.mask), is_pruned),
        "prunable weights": (result.prunable_weights, sum(sizes.values()) if is_pruned else None),
        "remaining weights": (result.remaining_weights, remaining),
        "first weights of a seed of their own": (result.config.get("init_seed") is not None, level.arm == RR),
        "first weights of the unpruned run": (bool(first) and result.initial_weights == first, level.arm != RR),
    }
    for what, (ours, true) in facts.items():
        if ours != true:
            yield f"{run.folder.name}: {what}: {shown(ours)}, not {true}"
