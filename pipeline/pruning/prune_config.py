"""The settings of `dlth prune`: how weights are masked, round by round, and which arms are trained at each level."""

import re
from fractions import Fraction
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from dlth.pipeline.evidence.arm_key import LT, RR, Way
from dlth.tickets.errors import InputError, shown
from dlth.tickets.ranking.budget import exact_rate
from dlth.training.pruning.recipe import Scope
from dlth.training.settings.fields import Integers, Keep, Settings, comma_list, setting
from dlth.training.settings.layering import nearest
from dlth.training.settings.train_config import Arm

LEVELS, STUDY = "Levels of pruning", "How the study runs"
OWN = ("arm", "seed", "out", "resume", "mask", "start_step", "rewind_step", "init_seed")
"""Settings of train that a study gives each of its runs itself."""
BY_HAND = ("mask", "start_step", "rewind_step", "init_seed")
"""Those of them that mean something else than `dlth prune` would take them for, so that they are refused."""

PrunedArm = Literal[Way, "dense"]
_EPOCHS = re.compile(r"([0-9]{1,7}(?:\.[0-9]{1,9})?)ep")
_STEP = re.compile(r"[0-9]{1,15}")


def _arms(value: object) -> object:
    """Words, each a known one."""
    words, known = comma_list(value), get_args(PrunedArm)
    for word in words if isinstance(words, tuple | list) else ():
        if word not in known:
            raise ValueError(f"there is no arm {shown(word, 60)!r}{nearest(str(word), known)}: {', '.join(known)}")
    return words


def _rewinding_point(text: str) -> str:
    if not (_STEP.fullmatch(text) or _EPOCHS.fullmatch(text)):
        raise ValueError(f"expected a step, or epochs as in 2ep, got {shown(text, 60)}")
    return text


def _as_text(value: object) -> object:
    return str(value) if type(value) is int else value


Arms = Annotated[tuple[PrunedArm, ...], BeforeValidator(_arms), Field(min_length=1)]
Patterns = Annotated[
    tuple[Annotated[str, Field(max_length=200)], ...], BeforeValidator(comma_list), Field(max_length=64)
]
Rewind = Annotated[str, BeforeValidator(_as_text), AfterValidator(_rewinding_point)]


class PruneConfig(Settings):
    """Settings of `dlth prune`; field names are the flags' names."""

    out: str = setting(..., STUDY, "Folder of the study: its plan, runs and report.", path="file")
    rounds: int = setting(5, LEVELS, "Rounds of pruning; level i has i of them behind it.", gt=0, le=1_000)
    rate: Keep = setting("0.2", LEVELS, "Share of the remaining prunable weights that a round masks.")
    rewind: Rewind = setting(
        "0", LEVELS, "Where levels begin anew: a step, or epochs (2ep), whose weights and buffers they are set back to."
    )
    scope: Scope = setting("global", LEVELS, "Smallest of all prunable weights, or of each layer's.")
    exclude: Patterns = setting(
        (), LEVELS, "Names of parameters to leave whole, with * and commas, besides heads, norms, biases, embeddings."
    )
    arm: Arms = setting(
        (LT, RR, "dense"),
        LEVELS,
        "Arms at each level: lt (rewound weights), rr (its mask, fresh random weights), random-mask, one-shot, and"
        " dense, the unpruned model.",
    )
    draws: int = setting(1, LEVELS, "Drawings of rr and random-mask for each seed and level.", gt=0, le=100)
    seeds: Integers = setting((0, 1, 2), LEVELS, "Seeds; fewer than three give no verdict.")
    patches: Arm | None = setting(
        None, LEVELS, "What all runs are trained on: ticket, random or dense; ticket where --tickets is given."
    )
    margin: float = setting(1.0, STUDY, "Points within which two arms count as equally good.", gt=0, le=100)
    gpus: int = setting(1, STUDY, "Processes that train one run together, each on its own GPU.", gt=0, free=True)
    measure: float = setting(
        5.0, STUDY, "Seconds for which steps are measured, to estimate hours; 0: not.", ge=0, free=True
    )

    @model_validator(mode="after")
    def _can_be(self) -> Self:
        if exact_rate(self.rate) == 1:
            raise ValueError("--rate 1 masks every weight in the first round: give a share below 1")
        for what in ("arm", "seeds", "exclude"):
            given: tuple[Any, ...] = getattr(self, what)
            if len(set(given)) < len(given):
                raise ValueError(f"--{what} names something twice: {','.join(map(str, given))}")
        return self


def rewind_step(text: str, steps_per_epoch: int, epochs: int) -> int:
    """The step at which a rewinding point lies.

    Args:
        text: of `--rewind`
        steps_per_epoch, epochs: of each run
    Raises:
        InputError: epochs that are no whole number of steps, or a point that leaves nothing to train
    """
    in_epochs = _EPOCHS.fullmatch(text)
    step = Fraction(in_epochs[1]) * steps_per_epoch if in_epochs else Fraction(text)
    if step.denominator != 1:
        raise InputError(
            f"--rewind {text} is step {float(step):.10g}, and an epoch has {steps_per_epoch} steps: give --rewind"
            f" {round(step)} or a whole number of epochs"
        )
    if step >= epochs * steps_per_epoch:
        raise InputError(
            f"--rewind {text} is step {step} of the {epochs * steps_per_epoch} of a run ({epochs} epochs of"
            f" {steps_per_epoch}): nothing would be left to train"
        )
    return int(step)
