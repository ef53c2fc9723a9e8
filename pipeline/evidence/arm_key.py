"""What makes an arm of a study, but for its seed: runs of one key are repetitions of each other."""

from collections.abc import Collection, Container
from dataclasses import dataclass, replace

CONTROL = "control-"
"""What names of control arms begin with."""
PRUNED = ("lt", "rr", "random-mask", "one-shot")
"""Arms of weight-level pruning: the winning ticket (mask and rewound weights), its mask with fresh random weights, a
random mask of as many weights in each layer with rewound ones, and magnitude pruning in one round.
"""


@dataclass(frozen=True, order=True)
class ArmKey:
    """One arm as it stands in a study's grid.

    arm: "ticket", "random", "dense", or a control's, "control-" and its kind ("control-centre")
    keep: share of the patches, "0.7"; empty for the dense arm
    mode: "projected", "frozen", "online"; empty for the dense arm
    variant: swept settings, "lr=0.001"; empty without a sweep. "deit-s/zero" is one of "deit-s", whose arms stand in
        for those that it lacks
    pruned: which weights remain, one of `PRUNED`; empty for an unpruned model. It goes with any arm above: patches and
        weights are two lotteries
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
        keep = f"keep {self.keep}" if self.keep else ""
        weights = f"{self.pruned} {self.weights} of weights" if self.pruned else ""
        draw = f"draw {self.draw}" if self.draw else ""
        return ", ".join(filter(None, (self.arm, keep, self.mode, self.variant, weights, draw)))


def judged_on(arm: str, measured: Container[str]) -> str:
    """Tokens that an arm is judged by: all for the dense arm, the selector's for others where they were `measured`."""
    return "ticket" if arm != "dense" and "ticket" in measured else "dense"


def beside(key: ArmKey, arm: str, there: Container[ArmKey]) -> ArmKey | None:
    """The run of another arm that an arm is held against; None where there is none.

    It is of the arm's own variant and mode. Random patches need no selector, so those of mode "projected" stand in
    where the mode has none; and where the variant has none, the arm of the variant that it is one of.
    """
    for variant in dict.fromkeys((key.variant, key.variant.rpartition("/")[0] or key.variant)):
        own = ArmKey(arm, "" if arm == "dense" else key.keep, "" if arm == "dense" else key.mode, variant)
        for found in (own, replace(own, mode="projected") if arm == "random" else own):
            if found in there:
                return found
    return None


def pairs(first: str, second: str, there: Collection[ArmKey]) -> dict[tuple[ArmKey, ArmKey], ArmKey]:
    """Which arms are held against each other in a claim about two, such as "ticket" and "dense".

    Returns:
        By first and second, the one of the two whose keep, mode and variant the claim is made at; larger keeps first.
    """
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
