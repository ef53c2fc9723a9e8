"""A ViT that computes only the patches of a ticket, from the first operation on.

Kept patches are embedded before the first block (`embedding.py`); blocks, norms, pooling and head are timm's own
modules, so a step costs what its tokens cost and everything timm's model does (drop path, layer scale, checkpointing)
stays. Pooling averages over the kept patches. The wrapped model's parameters keep their names: save `TicketViT.vit`.
Convolutional and hybrid stems see their neighbours, so there all patches are embedded and dropped after
(`embeds_kept_only` is False).
"""

from typing import cast

from timm.models import checkpoint, checkpoint_seq
from timm.models.eva import Eva
from torch import Tensor, nn

from dlth.training.models.embedding import embed, embeds_kept_only, rotary_of_block
from dlth.training.models.registry import ViT, check_can_drop
from dlth.training.models.student import Student, check_patches
from dlth.training.models.token_logits import TokenLogits


class TicketViT(Student):
    """Run `vit` on the patches of a ticket; raises InputError for a model whose patches cannot be left out."""

    mixes_tokens = True

    def __init__(self, vit: nn.Module, patch_size: int | None = None) -> None:
        super().__init__(check_can_drop(vit), patch_size)
        self.embeds_kept_only = embeds_kept_only(self.vit.patch_embed)

    @classmethod
    def takes(cls, model: nn.Module) -> bool:
        """Whether it is of timm's plain vision transformers."""
        return isinstance(model, ViT)

    @property
    def vit(self) -> ViT:
        """The model."""
        return cast(ViT, self.model)

    def forward(
        self, images: Tensor, patches: Tensor | None = None, sources: Tensor | None = None
    ) -> Tensor | TokenLogits:
        """As `Student` has it: None is timm's own forward, and an index outside the grid an error of torch's gather.

        `sources`: as `embed` takes them, for MixToken.
        """
        if patches is None and sources is None:
            return self.vit(images)
        if patches is not None:
            check_patches(patches, len(images))
        tokens, rotary = embed(self.vit, images, patches, sources)
        return self.vit.forward_head(self.vit.norm(_run_blocks(self.vit, tokens, rotary)))


def _run_blocks(vit: ViT, tokens: Tensor, rotary: Tensor | None) -> Tensor:
    """All blocks on tokens [batch, tokens, width], as timm's `forward_features` runs them."""
    if not isinstance(vit, Eva):
        return checkpoint_seq(vit.blocks, tokens) if vit.grad_checkpointing else vit.blocks(tokens)
    for index, block in enumerate(vit.blocks):
        rope = rotary_of_block(vit, rotary, index)
        tokens = checkpoint(block, tokens, rope=rope) if vit.grad_checkpointing else block(tokens, rope=rope)
    return tokens
