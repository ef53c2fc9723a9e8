"""Which arm of pruning a run is of that no plan tells of: by the mask in its folder and the weights it began with.

A mask says how it was made; the run's settings say whether it began with given weights at some step, or with fresh
ones. What is none of the arms that are judged, such as another lab's mask on weights of one's own, is an arm apart: it
stands in tables, and no clause is about it.
"""

from dataclasses import replace
from fractions import Fraction

from dlth.pipeline.evidence.arm_key import MASKED, MOST_DRAWS, ArmKey, fresh_seed, share_remaining, share_text
from dlth.pipeline.evidence.finished_run import FinishedRun
from dlth.training.pruning.mask_header import MaskHeader


def pruned_as(arm: ArmKey, run: FinishedRun) -> ArmKey:
    """The key of an arm of patches with what is known of the run's weights; the same for an unpruned run."""
    result = run.result
    if not result.mask:
        return arm
    if run.mask is not None and (way := _way(run.mask, run)) != MASKED:
        recipe = run.mask.recipe
        draw = _drawing(run, recipe.level) if way == "rr" else recipe.draw
        return replace(arm, pruned=way, weights=share_remaining(recipe.rate, recipe.level), draw=draw)
    left = Fraction(result.remaining_weights or 0, result.prunable_weights or 1)
    return replace(arm, pruned=MASKED, weights=share_text(left))


def _way(mask: MaskHeader, run: FinishedRun) -> str:
    """One of `PRUNED`, or `MASKED`."""
    recipe, config = mask.recipe, run.result.config
    start, given = config.get("start_step", 0), config.get("init_from") is not None
    if given and start == mask.rewind_step and recipe.level:
        return "random-mask" if recipe.shuffled else "one-shot" if recipe.rounds > 1 else "lt"
    fresh = not given and not config.get("pretrained") and start == 0
    return "rr" if fresh and recipe.rounds == 1 and recipe.level and not recipe.shuffled else MASKED


def _drawing(run: FinishedRun, level: int) -> int:
    """Which drawing of fresh weights a run of rr began with, by their seed; the first where that is a user's own."""
    own = run.result.config.get("init_seed")
    return next((draw for draw in range(MOST_DRAWS) if fresh_seed(run.seed, level, draw) == own), 0)
