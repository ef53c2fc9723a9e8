"""Patches by the attention that the class token pays to them at one block, with no patch dropped before it.

EViT's score without EViT's stages: what dropping does to a ranking is the difference between the two. So the block is
the last of the paper's selection blocks, where EViT takes its last scores, and nothing after it is computed.
"""

from torch import Tensor

from dlth.training.models.blocks import run_blocks
from dlth.training.models.class_attention import TimmBlock, class_row_only
from dlth.training.models.embedding import embed, rotary_of_block
from dlth.training.models.registry import ViT, check_can_select, default_blocks
from dlth.training.selectors.score_ranker import Rule


def scores(vit: ViT, images: Tensor, block: int) -> Tensor:
    """The class token's attention after the softmax, mean over heads, prefix tokens left out: float32 [B, P]."""
    tokens, table = embed(vit, images)
    tokens = run_blocks(vit, tokens, table, 0, block)
    at: TimmBlock = vit.blocks[block]
    return class_row_only(at.attn, at.norm1(tokens), rotary_of_block(vit, table, block))[:, vit.num_prefix_tokens :]


CLS_ATTENTION = Rule(scores, check_can_select, lambda vit: default_blocks(vit)[-1])
