"""What the plan of a pruning study says before anything is trained: what is masked, and what remains of it."""

import math
from collections.abc import Mapping, Sequence

from dlth.pipeline.evidence.arm_key import share_remaining
from dlth.pipeline.judging.arm_comparison import SEEDS_FOR_ARMS
from dlth.pipeline.pruning.levels import LT, RANDOM_MASK, RR, Level, added
from dlth.pipeline.pruning.prune_config import PruneConfig
from dlth.pipeline.studies.arms import Arm
from dlth.tickets.errors import shown
from dlth.training.pruning.magnitude import remaining_counts
from dlth.training.pruning.recipe import MaskRecipe

LEFT_WHOLE = "the head, the patch embedding, norms, biases, position embeddings"


def outlook(
    config: PruneConfig, arm: Arm, shapes: Mapping[str, tuple[int, ...]], found: Sequence[Level]
) -> tuple[str, ...]:
    """What a person should know of a plan, in words.

    Args:
        config: the study's
        arm: the unpruned runs
        shapes: prunable parameter -> its shape
        found: the runs of a seed
    Raises:
        InputError: a rate that would empty a layer, or rounds after which nothing remains
    """
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    last = max(level.level for level in found)
    remaining = sum(remaining_counts(sizes, MaskRecipe(last, config.rate, scope=config.scope)).values())
    excluded = f", and --exclude {shown(','.join(config.exclude))}" if config.exclude else ""
    prunable, parameters = sum(sizes.values()), arm.survey.record["parameters"]
    rounds = "1 round leaves" if last == 1 else f"{last} rounds leave"
    notes = [
        f"prunable: {prunable:,} weights of {len(sizes)} layers, of {parameters:,} parameters; left whole: {LEFT_WHOLE}"
        + excluded,
        f"{rounds} {remaining:,} prunable weights ({share_remaining(config.rate, last)})",
        "masked weights are zeros in a dense model, which saves no operations: FLOP are the unpruned model's",
        *added(config.arm),
    ]
    arms = {level.arm for level in found}
    if RR in arms and (arm.config.pretrained or arm.config.init_from is not None):
        notes.append("rr begins with random weights all the same, not with those that the unpruned run starts from")
    if config.draws > 1 and not arms & {RR, RANDOM_MASK}:
        notes.append(f"--draws {config.draws} says nothing: neither rr nor random-mask is an arm")
    if arms == {""}:
        notes.append("nothing is pruned: --arm dense is the unpruned run alone")
    elif arms == {"", LT}:
        notes.append("lt is held against the unpruned model alone: --arm rr, random-mask and one-shot are its controls")
    if len(config.seeds) < SEEDS_FOR_ARMS:
        notes.append(f"fewer than {SEEDS_FOR_ARMS} seeds decide nothing: --seeds {','.join(map(str, config.seeds))}")
    return tuple(notes)
