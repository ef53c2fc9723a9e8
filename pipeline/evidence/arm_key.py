"""What makes an arm of a study, but for its seed: runs of one key are repetitions of each other."""

from collections.abc import Container
from dataclasses import dataclass, replace


@dataclass(frozen=True, order=True)
class ArmKey:
    """One arm as it stands in a study's grid.

    arm: "ticket", "random", "dense", or a control's, "control-" and its kind ("control-centre")
    keep: share of the patches, "0.7"; empty for the dense arm
    mode: "projected", "frozen", "online"; empty for the dense arm
    variant: swept settings, "lr=0.001"; empty without a sweep
    """

    arm: str
    keep: str = ""
    mode: str = ""
    variant: str = ""

    def __str__(self) -> str:
        keep = f"keep {self.keep}" if self.keep else ""
        return ", ".join(filter(None, (self.arm, keep, self.mode, self.variant)))


def random_beside(key: ArmKey, there: Container[ArmKey]) -> ArmKey:
    """The random arm that an arm is held against, which need not be there.

    Random patches need no selector, so those of mode "projected" stand in where the arm's own mode has none.
    """
    own = replace(key, arm="random")
    return own if own in there else replace(own, mode="projected")
