"""The blocks of a vision transformer one after another, for those who stop between them.

timm runs all or none of its blocks; whoever reads a patch's score in the middle of a model, and drops nothing, runs the
blocks before.
"""

from typing import Any

from timm.models.eva import Eva
from torch import Tensor

from dlth.training.models.embedding import rotary_of_block
from dlth.training.models.registry import ViT


def run_blocks(vit: ViT, tokens: Tensor, table: Tensor | None, first: int, end: int) -> Tensor:
    """Tokens [B, N, D] after the blocks from number `first` up to, and without, `end`; `table` as `embed` gives it."""
    blocks: list[Any] = [*vit.blocks][first:end]
    for index, block in enumerate(blocks, first):
        rotary = rotary_of_block(vit, table, index)
        tokens = block(tokens, rope=rotary) if isinstance(vit, Eva) else block(tokens)
    return tokens
