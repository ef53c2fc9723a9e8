"""Rankers of one stage: a rule scores all patches in one pass that drops none, and they are sorted once.

What EViT's selector is compared with. A rule is a function of a model and images; all else that a `PatchRanker` is
(budget, header, gap) is the same for each and stands here, so that a rule is a short file and two rankings differ in
the rule alone.

Axes: B images, P patches of the grid.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from dlth.tickets import Budget, SelectorInfo
from dlth.tickets.errors import InputError
from dlth.training.models.frame import Frame
from dlth.training.models.registry import ViT, flops_of
from dlth.training.selectors.patch_ranker import Selection


def last_block(vit: ViT) -> int:
    """Number of the last block."""
    return len(vit.blocks) - 1


@dataclass(frozen=True)
class Rule:
    """How patches are scored.

    scores: of (model, normalised images [B, 3, H, W], block): float32 [B, P], higher is better
    check: the model, if it can be scored so; raises InputError that says why not, and what can
    block: the block whose tokens or attention are looked at, where the user names none
    """

    scores: Callable[[ViT, Tensor, int], Tensor]
    check: Callable[[nn.Module], ViT]
    block: Callable[[ViT], int] = last_block


@dataclass(frozen=True)
class ScoreRanker:
    """Ranks the patches of images by a rule's scores: a `PatchRanker` whose model is in evaluation mode."""

    vit: ViT
    rule: Rule
    block: int
    frame: Frame
    budget: Budget
    info: SelectorInfo
    device: torch.device

    @cached_property
    def flops(self) -> tuple[int, int]:
        """Of ranking one image, and of a whole forward pass of the model."""
        size, device = self.frame.size, self.device
        return flops_of(self.select, size, device), flops_of(self.vit, size, device)

    def scores(self, images: Tensor) -> Tensor:
        """The rule's scores of normalised images, float32 [B, P]. Raises InputError for a model in training mode."""
        if self.vit.training:
            raise InputError("the selector's model is in training mode; call vit.eval() before selecting")
        with torch.no_grad():
            return self.rule.scores(self.vit, images, self.block)

    def select(self, images: Tensor, budget: Budget | None = None) -> Selection:
        """As `PatchRanker` has it.

        Raises:
            InputError: a budget for another number of patches, or a model that was put into training mode
        """
        scores = self.scores(images)
        budget, num_patches = budget or self.budget, scores.shape[1]
        if budget.num_patches != num_patches:
            raise InputError(f"a budget for {budget.num_patches} patches does not fit images of {num_patches}")
        best = scores.sort(dim=1, descending=True, stable=True)
        gap = scores.new_full((len(scores),), torch.inf)
        if budget.k < num_patches:
            gap = best.values[:, budget.k - 1] - best.values[:, budget.k]
        return Selection(best.indices, gap.masked_fill(~scores.isfinite().all(dim=1), torch.nan))
