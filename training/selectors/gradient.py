"""Patches by gradient times attention: how much of the predicted class's logit hangs on the attention paid to each.

At one block, the class token's attention to a patch is multiplied with the gradient of the largest logit by it, and the
products are averaged over heads (after Chefer et al., CVPR 2021, at one block). Their sign is kept: patches that speak
against the class come last. Clamped at zero, as there, patches that no head speaks for would be ties.

The gradient by a weight needs no leaf for it: with g the gradient by what the class token gathers of the values v,
it is g · v. So blocks before are run without gradients, and one backward pass goes from the logits to that block.
"""

import torch
from torch import Tensor, nn

from dlth.tickets.errors import InputError
from dlth.training.models.blocks import run_blocks
from dlth.training.models.class_attention import (
    TimmBlock,
    class_rows,
    feed_forward,
    key_of,
    mixed_values,
    project,
    value_of,
)
from dlth.training.models.embedding import embed, rotary_of_block
from dlth.training.models.registry import ViT, check_can_select
from dlth.training.selectors.score_ranker import Rule


def scores(vit: ViT, images: Tensor, block: int) -> Tensor:
    """Attention · gradient of the predicted class's logit, mean over heads, prefix tokens left out: float32 [B, P]."""
    # Tensors of inference mode take no part in a backward pass, but copies do; leaving it switches gradients on.
    with torch.inference_mode(False), torch.no_grad():
        at: TimmBlock = vit.blocks[block]
        tokens, table = embed(vit, images.clone())
        tokens = run_blocks(vit, tokens, table, 0, block)
        x, rotary = at.norm1(tokens), rotary_of_block(vit, table, block)
        key, value = key_of(at.attn, x, rotary), value_of(at.attn, x)
        rows = class_rows(at.attn, x, key)
        gathered = mixed_values(at.attn, x, rotary, key, value)
        with torch.enable_grad():
            gathered.requires_grad_()
            after = feed_forward(at, tokens + project(at, x, gathered))
            after = run_blocks(vit, after, table, block + 1, len(vit.blocks))
            logits = vit.forward_head(vit.norm(after)).float()
            (gradient,) = torch.autograd.grad(logits.max(dim=1).values.sum(), gathered)
        by_weight = (value.float() * gradient[:, :, :1].float()).sum(dim=3)
        return (rows * by_weight).mean(dim=1)[:, vit.num_prefix_tokens :]


def check_predicts(vit: nn.Module) -> ViT:
    """The model, if it has classes and reads them from the class token; raises InputError that says why not."""
    checked = check_can_select(vit)
    name = type(checked).__name__
    if checked.num_classes < 1:
        raise InputError(
            f"this {name} predicts no class (it has no head), so there is no gradient of one: take --ranker evit,"
            " cls-attention or rollout, or weights with a head"
        )
    if checked.global_pool == "avg":
        raise InputError(
            f"this {name} reads its classes from the mean of the patches, not from the class token, whose attention at"
            " the last block then has no gradient: take --ranker evit, cls-attention or rollout"
        )
    return checked


GRADIENT = Rule(scores, check_predicts)
