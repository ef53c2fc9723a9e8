"""What the plan of a pruning study says before anything is trained: what is masked, and what remains of it."""

import math
from collections.abc import Mapping, Sequence

from torch import nn

from dlth.pipeline.evidence.arm_key import LT, RANDOM_MASK, RR, UNPRUNED, share_remaining
from dlth.pipeline.judging.arm_comparison import SEEDS_FOR_ARMS
from dlth.pipeline.judging.verdicts import WEIGHTS
from dlth.pipeline.pruning.levels import Level, added
from dlth.pipeline.pruning.prune_config import PruneConfig
from dlth.pipeline.studies.arms import Arm
from dlth.tickets.errors import InputError, shown
from dlth.training.pruning.magnitude import remaining_counts
from dlth.training.pruning.prunable import prunable_shapes
from dlth.training.pruning.recipe import MaskRecipe


def outlook(config: PruneConfig, arm: Arm, model: nn.Module, found: Sequence[Level]) -> tuple[str, ...]:
    """What a person should know of a plan, in words.

    Args:
        config: the study's
        arm: the unpruned runs
        model: theirs; it may be on the meta device
        found: the runs of a seed
    Raises:
        InputError: nothing to prune, a pattern of --exclude that matches nothing, a rate that would empty a layer, or
            rounds after which nothing remains, or that mask nothing
    """
    sizes = {name: math.prod(shape) for name, shape in prunable_shapes(model, config.exclude).items()}
    last = max(level.level for level in found)
    remaining = _remaining(config, sizes, last)
    if last and remaining == _remaining(config, sizes, last - 1):  # a round that masks nothing is followed by such
        raise InputError(
            f"level {last} at rate {config.rate} would mask none of the {remaining:,} weights that remain, and be level"
            f" {last - 1} again: take fewer --rounds, or a larger --rate"
        )
    excluded = f", and --exclude {shown(','.join(config.exclude))}" if config.exclude else ""
    prunable, parameters = sum(sizes.values()), arm.survey.record["parameters"]
    rounds = "1 round leaves" if last == 1 else f"{last} rounds leave"
    notes = [
        f"prunable: {prunable:,} weights of {len(sizes)} layers, of {parameters:,} parameters; left whole:"
        f" {left_whole(model)}{excluded}",
        f"{rounds} {remaining:,} prunable weights ({share_remaining(config.rate, last)})",
        "masked weights are zeros in a dense model, which saves no operations: FLOP are the unpruned model's",
        *added(config.arm),
    ]
    arms = {level.arm for level in found}
    if arms != {""}:
        steps = arm.survey.steps_per_epoch * arm.config.epochs
        point = f"step {arm.config.rewind_step} of {steps}" if arm.config.rewind_step else "the first weights"
        fresh = "; rr at the first step, with fresh random weights" if RR in arms else ""
        notes.append(f"levels begin again at {point} (--rewind {config.rewind}){fresh}")
    if clauses := [str(clause) for clause in WEIGHTS if {clause.first, clause.second} <= {*arms, UNPRUNED}]:
        notes.append(f"judged at each share: {', '.join(clauses)} (--margin {config.margin:g} points)")
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


def _remaining(config: PruneConfig, sizes: Mapping[str, int], level: int) -> int:
    """How many prunable weights a level leaves."""
    return sum(remaining_counts(sizes, MaskRecipe(level, config.rate, scope=config.scope)).values())


def left_whole(model: nn.Module) -> str:
    """What of a model is never pruned, besides what is excluded by name: of all that there is, what it has."""
    named = {name: parameter.ndim for name, parameter in model.named_parameters()}
    has = {
        "the patch embedding": any("patch_embed" in name.split(".") for name in named),
        "norms": any(name.endswith(".weight") and ndim == 1 for name, ndim in named.items()),
        "biases": any(name.endswith(".bias") for name in named),
        "position embeddings": any("pos" in name.rpartition(".")[2] for name in named),  # pos_embed, tables of biases
    }
    return ", ".join(("the head", *(what for what, there in has.items() if there)))
