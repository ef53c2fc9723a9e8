"""What makes an arm of a study, but for its seed: runs of one key are repetitions of each other."""

import re
from collections.abc import Collection, Container
from dataclasses import dataclass, replace
from decimal import Context, Decimal
from fractions import Fraction
from typing import Literal, get_args

from dlth.tickets.ranking.budget import exact_rate
from dlth.tickets.seeding import derive

CONTROL = "control-"
"""What names of control arms begin with."""
Way = Literal["lt", "rr", "random-mask", "one-shot"]
PRUNED: tuple[Way, ...] = get_args(Way)
LT, RR, RANDOM_MASK, ONE_SHOT = PRUNED
"""Arms of weight-level pruning: the winning ticket (mask and rewound weights), its mask with fresh random weights, a
random mask of as many weights in each layer with rewound ones, and magnitude pruning in one round.
"""
MASKED = "mask"
"""A pruned model that is of none of these, as far as its folder says."""
UNPRUNED = "the unpruned model"
"""What clauses about weights call it."""
MOST_DRAWS = 100
"""Draws of a seed that are compared: sums of their hits stay exact."""


@dataclass(frozen=True, order=True)
class ArmKey:
    """One arm as it stands in a study's grid.

    arm: "ticket", "random", "dense", or a control's, "control-" and its kind ("control-centre")
    keep: share of the patches, "0.7"; empty for the dense arm
    mode: "projected", "frozen", "online"; empty for the dense arm
    variant: swept settings, "lr=0.001"; empty without a sweep. "deit-s/zero" is one of "deit-s", whose arms stand in
        for those that it lacks
    pruned: which weights remain, one of `PRUNED`, or `MASKED`; empty for an unpruned model. It goes with any arm
        above: patches and weights are two lotteries
    weights: share of the prunable weights that remain, "0.512"; empty for an unpruned model
    draw: which of several drawings of what chance decides (rr's weights, random-mask's mask), from 0
    """

    arm: str
    keep: str = ""
    mode: str = ""
    variant: str = ""
    pruned: str = ""
    weights: str = ""
    draw: int = 0

    def __str__(self) -> str:
        """In words; a pruned arm on all patches is called by its weights alone, as "dense" says unpruned."""
        arm = "" if self.pruned and self.arm == "dense" else self.arm
        keep = f"keep {self.keep}" if self.keep else ""
        weights = f"{self.pruned} {self.weights} of weights" if self.weights else self.pruned
        draw = f"draw {self.draw}" if self.draw else ""
        return ", ".join(filter(None, (arm, keep, self.mode, self.variant, weights, draw)))

    @property
    def unpruned(self) -> "ArmKey":
        """The same arm with all of its weights."""
        return replace(self, pruned="", weights="", draw=0)

    @property
    def all_draws(self) -> "ArmKey":
        """What stands for the draws of an arm together: its first."""
        return replace(self, draw=0)


def fresh_seed(seed: int, level: int, draw: int) -> int:
    """The seed of the weights that rr begins a level with."""
    return derive(seed, RR, level, draw)


def share(text: str) -> float:
    """A share that a key names, as a number; 0 for none, and for what is no number."""
    return float(text) if re.fullmatch(r"[0-9]*\.?[0-9]+", text) else 0.0


def share_remaining(rate: str, level: int) -> str:
    """The share of the prunable weights that `level` rounds of `rate` leave, as keys name it."""
    return share_text((1 - exact_rate(rate)) ** level)


def share_text(left: Fraction) -> str:
    """A share of weights as keys name it: decimal text of four significant digits at most, without an exponent."""
    rounded = Context(prec=4).divide(Decimal(left.numerator), Decimal(left.denominator))
    return f"{rounded.normalize():f}"


def by_weights(key: ArmKey) -> tuple[object, ...]:
    """Order of what one arm's weights may be: all, then shares falling; of a share in the order of `PRUNED`."""
    kind = PRUNED.index(key.pruned) if key.pruned in PRUNED else len(PRUNED)
    return bool(key.pruned), -share(key.weights), kind, key.draw


def judged_on(arm: str, measured: Container[str]) -> str:
    """Tokens that an arm is judged by: all for the dense arm, the selector's for others where they were `measured`."""
    return "ticket" if arm != "dense" and "ticket" in measured else "dense"


def beside(key: ArmKey, arm: str, there: Container[ArmKey]) -> ArmKey | None:
    """The run of another arm that an arm is held against; None where there is none.

    It is of the arm's own variant and mode, and has the same weights. Random patches need no selector, so those of mode
    "projected" stand in where the mode has none; and where the variant has none, the arm of the variant that it is one
    of.
    """
    whole = replace(key, arm=arm, keep="", mode="") if arm == "dense" else replace(key, arm=arm)
    for variant in dict.fromkeys((key.variant, key.variant.rpartition("/")[0] or key.variant)):
        own = replace(whole, variant=variant)
        for found in (own, replace(own, mode="projected") if arm == "random" else own):
            if found in there:
                return found
    return None


def pairs(first: str, second: str, there: Collection[ArmKey]) -> dict[tuple[ArmKey, ArmKey], ArmKey]:
    """Which arms are held against each other in a claim about two, such as "ticket" and "dense", or "lt" and "rr".

    Arms of patches have the same weights; arms of weights are the same arm of patches, and have the same share of the
    weights, or all of them (`UNPRUNED`).

    Returns:
        By first and second, the one of the two whose keep, mode, variant and weights the claim is made at; larger
        shares first.
    """
    if first in PRUNED:
        of_first = sorted((key for key in there if key.pruned == first), key=by_weights)
        others = (key.unpruned if second == UNPRUNED else replace(key, pruned=second) for key in of_first)
        return {(key, other): key for key, other in zip(of_first, others, strict=True) if other in there}
    keyed: dict[tuple[ArmKey, ArmKey], ArmKey] = {}
    for arm in (first, second):
        of_arm = [key for key in there if key.arm == arm and arm != "dense"]
        for key in sorted(of_arm, key=lambda key: key.keep, reverse=True):
            one, other = (key if side == arm else beside(key, side, there) for side in (first, second))
            if one is not None and other is not None:
                keyed.setdefault((one, other), key)
    return keyed


def stands_in(first: ArmKey, second: ArmKey) -> bool:
    """Whether one of two arms is of another variant, or both keep a share and one is of another mode."""
    return first.variant != second.variant or bool(first.keep and second.keep and first.mode != second.mode)
