"""How many patches are kept at which step: all the way the ticket's number, the paper's adjusted schedule, milestones.

The schedule is on the *stage rate*, the share that each selection stage keeps of what reaches it: it falls from 1 by
half a cosine, a little each step, and the patches follow by the ceils of the stages, so about as its third power. A
cosine on the number of patches itself is up to 13 of 196 off.

Milestones name epochs and shares, so that a run can end on all patches: a student that was trained on tickets meets
sequences of another length when it is evaluated dense, and a few epochs on whole images mend what that costs (as FLIP's
unmasked tuning does).

The budget of a step is a function of (epoch, step), so a resumed run needs no state, and it is the selector's too where
that runs in the loop. A step that keeps all patches ranks none: it is a step of the dense arm.
"""

import math
from dataclasses import dataclass

from dlth.tickets import Budget, TicketHeader
from dlth.tickets.ranking.budget import exact_rate

PAPERS_STAGES = 3
"""Selection stages of the paper's selectors, where nothing says how many there were."""

_DIGITS = 9
"""Decimals of a rate, so that what is a whole number on paper is not one more by the dust of a cosine."""


@dataclass(frozen=True)
class KeepSchedule:
    """The budget of every step: `final`, or on the way there from all patches.

    The rate falls from the first step of epoch `start` on, for `epochs` epochs of `steps_per_epoch` steps; with 0
    epochs every step has the final budget. `fuse_tokens`: whether the selector fuses what it drops, which counts.
    """

    final: Budget
    start: int = 0
    epochs: int = 0
    steps_per_epoch: int = 1
    fuse_tokens: bool = False

    def budget(self, epoch: int, step: int = 0) -> Budget:
        """What is kept at `step` of `epoch`, both from 0.

        Source: the authors' r(t) = r_end + (1 - r_end) · (cos(π t / T) + 1) / 2, t steps since `start`, T of `epochs`.
        """
        passed, length = (epoch - self.start) * self.steps_per_epoch + step, self.epochs * self.steps_per_epoch
        if passed >= length:
            return self.final
        end, fall = float(exact_rate(self.final.stage_keep)), (math.cos(math.pi * max(passed, 0) / length) + 1) / 2
        rate = round(end + (1 - end) * fall, _DIGITS)
        return Budget.from_stage_keep(rate, self.final.num_patches, len(self.final.stage_tokens), self.fuse_tokens)

    def __str__(self) -> str:
        text = f"{self.final.k} of {self.final.num_patches} patches"
        end = self.start + self.epochs
        return text if self.epochs == 0 else f"{text}, falling from all between epochs {self.start} and {end}"

    @property
    def most_sizes(self) -> int:
        """At most so many different numbers of patches are kept over a run."""
        return 1 if self.epochs == 0 else self.final.num_patches - self.final.k + 1


@dataclass(frozen=True)
class KeepMilestones:
    """The budget of every step by milestones (epoch, budget from it on), epochs rising; the run's `own` before them."""

    own: Budget
    milestones: tuple[tuple[int, Budget], ...]

    def budget(self, epoch: int, step: int = 0) -> Budget:
        """What is kept at any `step` of `epoch`, from 0."""
        return next((budget for start, budget in reversed(self.milestones) if start <= epoch), self.own)

    def __str__(self) -> str:
        later = [f", {budget.k} from epoch {start} on" for start, budget in self.milestones if start > 0]
        return f"{self.budget(0).k} of {self.own.num_patches} patches" + "".join(later)

    @property
    def most_sizes(self) -> int:
        """At most so many different numbers of patches are kept over a run."""
        return len({self.own.k, *(budget.k for _, budget in self.milestones)})


Schedule = KeepSchedule | KeepMilestones


def final_budget(k: int, num_patches: int, keep: str | None, header: TicketHeader | None) -> Budget:
    """The budget of `k` of `num_patches` patches, with the stages by which a selector comes to them.

    `keep`: the share that was asked for; `header`: of the tickets. Where a file says its stages and its own share is
    taken, they are the file's; else as many as it has, or three, share the cut evenly.
    """
    fuse_tokens = header is not None and header.selector.fuse_tokens
    stages = len(header.stage_tokens) if header is not None and header.stage_tokens else PAPERS_STAGES
    if keep is not None:
        return Budget.from_keep(keep, num_patches, stages, fuse_tokens)
    if header is not None and header.stage_tokens and header.stage_keep and header.grid.num_patches == num_patches:
        return Budget(num_patches, header.stage_tokens, k, header.keep, header.stage_keep)
    return Budget.from_tokens(k, num_patches, stages, fuse_tokens)
