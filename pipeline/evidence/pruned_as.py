"""Which arm of pruning a run is of that no plan tells of: by the mask in its folder and the weights it began with.

A mask says how it was made, and the digest of the weights that are set back; the run's result has that of the weights
it began with, its settings the step and who drew them. Settings alone would not do: with a rewinding point at step 0
the seed itself draws those weights again, and any trained ones can be begun with at that step. What is none of the arms
that are judged, such as another lab's mask on weights of one's own, is an arm apart: it stands in tables, and no clause
is about it.
"""

from dataclasses import replace
from fractions import Fraction

from dlth.pipeline.evidence.arm_key import (
    LT,
    MASKED,
    MOST_DRAWS,
    ONE_SHOT,
    RANDOM_MASK,
    RR,
    ArmKey,
    fresh_seed,
    share_remaining,
    share_text,
)
from dlth.pipeline.evidence.finished_run import FinishedRun
from dlth.training.pruning.mask_header import MaskHeader


def pruned_as(arm: ArmKey, run: FinishedRun) -> ArmKey:
    """The key of an arm of patches with what is known of the run's weights; the same for an unpruned run."""
    result = run.result
    if not result.mask:
        return arm
    if run.mask is not None and (way := _way(run.mask, run)) != MASKED:
        recipe = run.mask.recipe
        draw = _drawing(run, recipe.level) if way == RR else recipe.draw
        return replace(arm, pruned=way, weights=share_remaining(recipe.rate, recipe.level), draw=draw)
    left = Fraction(result.remaining_weights or 0, result.prunable_weights or 1)
    return replace(arm, pruned=MASKED, weights=share_text(left))


def _way(mask: MaskHeader, run: FinishedRun) -> str:
    """One of `PRUNED`, or `MASKED`."""
    recipe, config, first = mask.recipe, run.result.config, run.result.initial_weights
    start = config.get("start_step", 0)
    if not (recipe.level and first):
        return MASKED
    if first == mask.initial:
        way = RANDOM_MASK if recipe.shuffled else ONE_SHOT if recipe.rounds > 1 else LT
        return way if start == mask.rewind_step else MASKED
    fresh = config.get("init_from") is None and not config.get("pretrained") and start == 0
    redrawn = fresh and config.get("init_seed") not in (None, run.seed)
    return RR if redrawn and recipe.rounds == 1 and not recipe.shuffled else MASKED


def _drawing(run: FinishedRun, level: int) -> int:
    """Which drawing of fresh weights a run of rr began with, by their seed; the first where that is a user's own."""
    own = run.result.config.get("init_seed")
    return next((draw for draw in range(MOST_DRAWS) if fresh_seed(run.seed, level, draw) == own), 0)
