"""The class token's attention row, and the parts of a block around it.

timm's attention modules give either the result or, unfused, the whole matrix; a selector needs one row of the matrix
beside the result, and at its last block the row alone. So the projections are computed here from slices of timm's
weights: everything at a block whose result is needed, keys and one query at the last. Rejected: hooks that catch the
matrix (B·h·N² floats, and no fused attention), and patching timm's forward (which rots).

The row is computed in float32 from whatever dtype the projections have, as a product and a sum: no setting of matmul
precision (TF32, autocast) can round scores into ties.

Axes: B images, N tokens (prefix first), D width, h heads, d width of a head.
"""

from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import Attention, AttentionRope, apply_rot_embed_cat
from timm.models.eva import EvaAttention, EvaBlock
from timm.models.vision_transformer import Block
from torch import Tensor, nn

QUERY, KEY, VALUE = range(3)

TimmBlock = Any
TimmAttention = Any
"""timm's modules: a type checker takes what they hold for `Tensor | Module`, which can neither be called nor scaled."""


def unsupported(block: TimmBlock) -> str:
    """Why the class token's row cannot be computed in this block; empty if it can."""
    if type(block) not in (Block, EvaBlock):
        return f"its blocks are of type {type(block).__name__}, in which nothing stands between attention and MLP"
    attn = block.attn
    if type(attn) not in (Attention, AttentionRope, EvaAttention):
        return f"its attention is of type {type(attn).__name__}, which has no single softmax row"
    projections = [attn.qkv] if attn.qkv is not None else [attn.q_proj, attn.k_proj, attn.v_proj]
    if any(type(projection) is not nn.Linear for projection in projections):
        return f"its projections are of type {type(projections[0]).__name__}, not plain linear layers"
    return ""


def class_row(block: TimmBlock, tokens: Tensor, rotary: Tensor | None, num_prefix: int) -> Tensor:
    """Scores of the patches and nothing else: float32 [B, N - num_prefix] for tokens [B, N, D].

    The class token's attention to each patch: softmax over all tokens, prefix included, then the mean over heads.
    """
    x = block.norm1(tokens)
    query = block.attn.q_norm(_heads(block.attn, x[:, :1], QUERY))  # a prefix token, so never rotated
    key = _rotated(block.attn, block.attn.k_norm(_heads(block.attn, x, KEY)), rotary)
    return _row(block.attn, query, key)[:, num_prefix:]


def attend(block: TimmBlock, tokens: Tensor, rotary: Tensor | None, num_prefix: int) -> tuple[Tensor, Tensor]:
    """The block's attention branch added to tokens [B, N, D], and the scores as `class_row` gives them."""
    attn = block.attn
    x = block.norm1(tokens)
    value = _heads(attn, x, VALUE)
    query = _rotated(attn, attn.q_norm(_heads(attn, x, QUERY)), rotary)
    key = _rotated(attn, attn.k_norm(_heads(attn, x, KEY)), rotary)
    scores = _row(attn, query[:, :, :1], key)[:, num_prefix:]
    out = F.scaled_dot_product_attention(query.to(value.dtype), key.to(value.dtype), value)
    out = attn.norm(out.transpose(1, 2).flatten(2))
    if getattr(attn, "gate", None) is not None:
        out = out * attn.gate(x).sigmoid()
    return tokens + _scaled(block, "1", attn.proj(out)), scores


def feed_forward(block: TimmBlock, tokens: Tensor) -> Tensor:
    """The block's MLP branch added to tokens [B, N, D]."""
    return tokens + _scaled(block, "2", block.mlp(block.norm2(tokens)))


def _heads(attn: TimmAttention, x: Tensor, part: int) -> Tensor:
    """Query, key or value of tokens [B, N, D] by heads: [B, h, N, d]; grouped keys and values repeated."""
    if attn.qkv is None:
        projected = (attn.q_proj, attn.k_proj, attn.v_proj)[part](x)
    else:
        weight = attn.qkv.weight.chunk(3)[part]
        bias = attn.qkv.bias.chunk(3)[part] if attn.qkv.bias is not None else None
        if getattr(attn, "q_bias", None) is not None:
            bias = (attn.q_bias, attn.k_bias, attn.v_bias)[part]
        projected = F.linear(x, weight, bias)
    groups = getattr(attn, "num_kv_groups", 1) if part != QUERY else 1
    by_head = projected.unflatten(2, (attn.num_heads // groups, -1)).transpose(1, 2)
    return by_head.repeat_interleave(groups, dim=1) if groups > 1 else by_head


def _rotated(attn: TimmAttention, x: Tensor, rotary: Tensor | None) -> Tensor:
    """Rotate the patches of queries or keys [B, h, N, d]; prefix tokens have no position."""
    if rotary is None:
        return x
    prefix, patches = x[:, :, : attn.num_prefix_tokens], x[:, :, attn.num_prefix_tokens :]
    rotated = apply_rot_embed_cat(patches, rotary, half=getattr(attn, "rotate_half", False))
    return torch.cat([prefix, rotated.to(x.dtype)], dim=2)


def _row(attn: TimmAttention, query: Tensor, key: Tensor) -> Tensor:
    """Softmax attention of one query [B, h, 1, d] to all keys [B, h, N, d], mean over heads: float32 [B, N]."""
    products = (query.float() * key.float()).sum(dim=-1)
    return (products * attn.scale).softmax(dim=-1).mean(dim=1)


def _scaled(block: TimmBlock, branch: str, out: Tensor) -> Tensor:
    """Layer scale of branch "1" (attention) or "2" (MLP), where the block has one."""
    if isinstance(block, EvaBlock):
        gamma = getattr(block, f"gamma_{branch}")
        return out if gamma is None else gamma * out
    return getattr(block, f"ls{branch}")(out)
