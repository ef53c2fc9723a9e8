"""A selector in training as the loop knows it: one more `Student`, which is given no patches and picks its own.

It is asked for two forward passes: with a budget patches fall on the way, as in EViT; without one it is the model's own
forward. So evaluation says what dropping costs, and the loop needs no words for it but the budget.
"""

from typing import Any

from torch import Tensor, nn

from dlth.tickets import Budget
from dlth.tickets.errors import InputError
from dlth.training.models.student import Student
from dlth.training.models.token_logits import TokenLogits
from dlth.training.selectors.trainable import EViT


class SelectorStudent(Student):
    """Trains the model of an `EViT`."""

    def __init__(self, evit: EViT) -> None:
        super().__init__(evit.vit)
        self.evit = evit

    @classmethod
    def takes(cls, model: nn.Module) -> bool:
        """Whether the model can select; a `Student` is made of it only where a selector is what is trained."""
        return isinstance(model, EViT)

    @property
    def budget(self) -> Budget:
        """What falls when nothing else is asked for."""
        return self.evit.budget

    @property
    def text(self) -> str:
        """Where patches fall and how many are left, in one line."""
        blocks, counts = self.evit.blocks, (self.budget.num_patches, *self.budget.stage_tokens)
        fused = ", fallen ones fused" if self.evit.fuse_tokens else ""
        return f"blocks {','.join(map(str, blocks))}: {' -> '.join(map(str, counts))} tokens{fused}"

    def facts(self) -> dict[str, Any]:
        """How the model is trained to select: blocks, the rate of their stages, and what it comes to."""
        return {
            "blocks": list(self.evit.blocks),
            "fuse_tokens": self.evit.fuse_tokens,
            "stage_keep": self.budget.stage_keep,
            "stage_tokens": list(self.budget.stage_tokens),
        }

    def forward(
        self, images: Tensor, patches: Tensor | None = None, budget: Budget | None = None
    ) -> Tensor | TokenLogits:
        """As `Student` has it, with the patches falling that `budget` lets fall, none without one.

        Raises InputError for `patches`: nobody gives a selector its patches.
        """
        if patches is not None:
            raise InputError("a selector in training picks its patches itself")
        logits: Tensor | TokenLogits = self.model(images) if budget is None else self.evit(images, budget)
        return logits

    def num_tokens(self, k: int) -> int:
        """All of them: patches fall behind the first blocks."""
        return super().num_tokens(self.grid.num_patches)

    def step_flops(self, budget: Budget) -> int:
        """As `Student` has it: of a forward in which patches fall as `budget` says."""
        return self._counted(lambda images: self(images, budget=budget))

    def on_first(self, images: Tensor, k: int | None) -> Tensor | TokenLogits:
        """As many as its own budget keeps, whatever k is; on all of them where it is None."""
        output: Tensor | TokenLogits = self(images, budget=None if k is None else self.budget)
        return output
