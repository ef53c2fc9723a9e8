"""Which runs a pruning study has for one seed: every arm at every level, and what each is made of.

    unpruned ── lt 1 ── lt 2 ── lt 3 …      each masks the smallest of the weights that the one before it ended with
        │         │       │       │
        │        rr 1    rr 2    rr 3       the same mask, fresh random weights, in several drawings
        │         │       │       │
        │        random-mask …              as many weights in each layer, drawn by chance, lt's first weights
        │
        └── one-shot 2, one-shot 3 …        as many weights as lt masks, all at once

A run of rr or random-mask takes the mask that lt makes at its level, of the same run as lt makes it, so the three begin
as soon as the level before is done. One-shot pruning in one round is lt's first level, which stands for it. A grid may
grow by rounds, arms and drawings: nothing that is there depends on how many there are.
"""

from collections.abc import Collection
from dataclasses import dataclass

from dlth.pipeline.evidence.arm_key import LT, ONE_SHOT, RANDOM_MASK, RR


@dataclass(frozen=True)
class Level:
    """A run of a study, but for its seed.

    arm: one of `arm_key.PRUNED`, or "" for the unpruned run
    level: rounds of pruning behind it
    draw: which of several drawings of what chance decides
    """

    arm: str = ""
    level: int = 0
    draw: int = 0

    @property
    def of(self) -> "Level":
        """The run whose final weights, and mask if it has one, its mask is made of; of a pruned run alone."""
        return Level() if self.level == 1 or self.arm == ONE_SHOT else Level(LT, self.level - 1)

    @property
    def rounds(self) -> int:
        """Rounds of pruning between that run and this."""
        return self.level if self.arm == ONE_SHOT else 1

    @property
    def is_rewound(self) -> bool:
        """Whether it begins with the unpruned run's weights at the rewinding point, and not with fresh ones."""
        return self.arm not in ("", RR)


def levels(arms: Collection[str], rounds: int, draws: int) -> tuple[Level, ...]:
    """The runs of one seed, each after those that it needs: level by level, and lt first in each.

    Args:
        arms: that were asked for; what they need besides is there too
        rounds: of pruning
        draws: drawings of rr and random-mask at each level
    """
    depth = rounds if {LT, RR, RANDOM_MASK} & set(arms) else min(rounds, ONE_SHOT in arms)
    found = [Level()]
    for level in range(1, rounds + 1):
        found += [Level(LT, level)] if level <= depth else []
        found += [Level(arm, level, draw) for arm in (RR, RANDOM_MASK) if arm in arms for draw in range(draws)]
        found += [Level(ONE_SHOT, level)] if ONE_SHOT in arms and level > 1 else []
    return tuple(found)


def added(arms: Collection[str]) -> tuple[str, ...]:
    """What else is trained than the arms that were asked for, and why, in words."""
    told = []
    if LT not in arms and (needing := [arm for arm in (RR, RANDOM_MASK) if arm in arms]):
        told.append(f"lt is trained too: {' and '.join(needing)} take the masks that its levels make")
    elif LT not in arms and ONE_SHOT in arms:
        told.append("lt's first level is trained too, which is what one-shot pruning does in one round")
    elif ONE_SHOT in arms:
        told.append("one-shot pruning begins with two rounds: in one round it is lt's first level")
    if "dense" not in arms:
        told.append("the unpruned run is trained too: every level is made of it")
    return tuple(told)
