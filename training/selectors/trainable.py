"""A selector in training: a ViT with EViT's dropping switched on, which gives logits with gradients.

EViT fine-tunes a trained ViT in this way for some epochs, so that its class token learns to look where patches that
are dropped cost least (Liang et al., ICLR 2022). The rule is `run_stages`, the selector's own: what was trained is what
ranks. Gradients flow through the tokens that stay, and with fused tokens through the scores that weigh them; which
patches fall has none.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from dlth.tickets import Budget
from dlth.tickets.ranking.budget import Rate
from dlth.training.models.embedding import embed
from dlth.training.models.registry import grid_of
from dlth.training.models.token_logits import TokenLogits
from dlth.training.selectors.stages import check_dropping, fitting_budget, run_stages


class EViT(nn.Module):
    """Run `vit` and drop patches at some of its blocks.

    Args:
        vit: a timm ViT with a class token, which is trained under its own names
        stage_keep: share of its patches that each stage keeps
        blocks: selection blocks, counted from 0; None is `default_blocks`: 3, 6, 9 of 12
        fuse_tokens: fuse the patches dropped at a stage into one token, weighted by their scores
    Attributes:
        budget: what each stage keeps of an image of the size that the model was built for
    Raises:
        InputError: a model that cannot select, or blocks or rates that make no sense
    """

    def __init__(
        self,
        vit: nn.Module,
        stage_keep: Rate = 0.7,
        blocks: Sequence[int] | None = None,
        fuse_tokens: bool = False,
    ) -> None:
        super().__init__()
        self.vit, self.blocks = check_dropping(vit, blocks, fuse_tokens)
        self.fuse_tokens, self._stage_keep = fuse_tokens, stage_keep
        self.budget = self._new_budget(grid_of(vit).num_patches)

    def forward(self, images: Tensor, budget: Budget | None = None) -> Tensor | TokenLogits:
        """Logits [B, classes] of normalised float images [B, C, height, width]; LV-ViT's `TokenLogits` in training.

        `budget` takes the place of the model's own for these images, as a keep schedule asks each step for another.
        Raises InputError for images or a budget that do not fit.
        """
        tokens, table = embed(self.vit, images)
        num_patches = tokens.shape[1] - self.vit.num_prefix_tokens
        budget = fitting_budget(budget, self.budget, num_patches, self._new_budget)
        _, tokens = run_stages(
            self.vit,
            tokens,
            table,
            self.blocks,
            budget.stage_tokens,
            fuse_tokens=self.fuse_tokens,
            to_the_end=True,
        )
        logits: Tensor | TokenLogits = self.vit.forward_head(self.vit.norm(tokens))
        return logits

    def _new_budget(self, num_patches: int) -> Budget:
        return Budget.from_stage_keep(self._stage_keep, num_patches, len(self.blocks), self.fuse_tokens)
