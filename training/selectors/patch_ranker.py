"""What ranks the patches of images, as everybody else sees it.

Stage 1 and the online mode ask a `PatchRanker` and nothing else, so that one which draws lots or looks at gradients is
a class in a file of its own, and one line in `rankers.py`. Scores are float32, sorted stably, and a tie goes to the
lower patch: then the same pixels give the same ticket on any machine.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from dlth.tickets import Budget, SelectorInfo
from dlth.training.models.frame import Frame


class Selection(NamedTuple):
    """Rankings of a batch.

    `patches` int64 [B, P]: all patches, best first. `gap` float32 [B]: score of the k-th minus that of the (k+1)-th at
    the last stage that saw both (0 is a tie, inf means that nothing was cut): how fragile the ticket is. NaN where a
    score is no number: sorted, such scores leave the patches in their own order, and that is no ticket.
    """

    patches: Tensor
    gap: Tensor


Select = Callable[..., Selection]
"""What `select` does, as a function; the online mode's takes the student's images."""


class PatchRanker(Protocol):
    """Ranks the patches of images, without gradients."""

    @property
    def frame(self) -> Frame:
        """Its grid, and what its images must be."""

    @property
    def budget(self) -> Budget:
        """How many patches stay, stage by stage."""

    @property
    def info(self) -> SelectorInfo:
        """What the header of a ticket file says of it; one selection block for each stage of the budget."""

    @property
    def device(self) -> torch.device:
        """Where its images must be."""

    @property
    def flops(self) -> tuple[int, int]:
        """Of ranking one image, and of a whole forward pass of the model that does so (0 without one)."""

    def select(self, images: Tensor, budget: Budget | None = None) -> Selection:
        """Rankings and gaps of normalised float images [B, 3, *frame.size]; the ticket is the first `budget.k`.

        `budget` takes the place of the ranker's own for these images, as a keep schedule asks each step for another.
        """


@runtime_checkable
class Scoring(Protocol):
    """A ranker that can say what it ranks by: whoever ranks patches need not have a number for each."""

    def scores(self, images: Tensor) -> Tensor:
        """Of normalised float images [B, 3, H, W]: float32 [B, P], in the order of the patches, higher is better."""
