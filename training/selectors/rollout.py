"""Patches by attention rollout (Abnar and Zuidema, ACL 2020): how much of each has reached the class token.

Every block's attention, averaged over heads, is mixed half and half with the identity, which stands for the residual
branch; the product of these matrices over the blocks says where each token's content came from. Rows sum to one as they
are, so nothing is normalised again. The product is taken block by block, so that one matrix is in memory and not one
for each block, and of the last block's only the class token's row.
"""

import torch
from torch import Tensor

from dlth.training.models.blocks import run_blocks
from dlth.training.models.class_attention import TimmBlock, attention_matrix, class_row_only, no_autocast
from dlth.training.models.embedding import embed, rotary_of_block
from dlth.training.models.registry import ViT, check_can_select
from dlth.training.selectors.score_ranker import Rule


def scores(vit: ViT, images: Tensor, block: int) -> Tensor:
    """The class token's row of the product from block 0 to `block`, prefix tokens left out: float32 [B, P]."""
    tokens, table = embed(vit, images)
    flow = torch.eye(tokens.shape[1], device=tokens.device).expand(len(tokens), -1, -1)
    blocks: list[TimmBlock] = [*vit.blocks]
    for index in range(block):
        x = blocks[index].norm1(tokens)
        flow = _half(attention_matrix(blocks[index].attn, x, rotary_of_block(vit, table, index)), flow)
        tokens = run_blocks(vit, tokens, table, index, index + 1)
    last = class_row_only(blocks[block].attn, blocks[block].norm1(tokens), rotary_of_block(vit, table, block))
    return _half(last.unsqueeze(1), flow)[:, 0, vit.num_prefix_tokens :]


def _half(attention: Tensor, flow: Tensor) -> Tensor:
    """The first M tokens' rows of (attention + identity) / 2 · flow, for attention [B, M, N] and flow [B, N, N]."""
    with no_autocast(flow.device.type):
        return (attention @ flow + flow[:, : attention.shape[1]]) / 2


ROLLOUT = Rule(scores, check_can_select)
