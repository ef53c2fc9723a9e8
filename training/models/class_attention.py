"""The class token's attention row, and the parts of an attention block around it.

timm's attention modules give either the result or, unfused, the whole matrix; a selector needs one row of the matrix
beside the result, and at its last block the row alone. So queries, keys and values are computed here from slices of
timm's weights, each for the tokens that need it: queries only for tokens that go on, and at the last selection block no
keys at all, since (x W_k) · q = x · (W_k^T q) costs one vector per head. Rejected: hooks that catch the matrix (B·h·N²
floats, and no fused attention), and patching timm's forward (which rots).

The row is computed in float32 whatever dtype the projections have: bf16 would round scores into ties.

For rankers that EViT's rule is compared with, there are also the row of another product than query · key (the paper's
ablation), the row by heads, and the whole matrix.

Axes: B images, N tokens (prefix first), D width, h heads, d width of a head.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import Attention, AttentionRope, apply_rot_embed_cat
from timm.models.eva import EvaAttention, EvaBlock
from timm.models.vision_transformer import Block
from torch import Tensor, nn

QUERY, KEY, VALUE = range(3)
Product = tuple[int, int]
"""What of the class token is multiplied with what of every token."""
QUERY_KEY: Product = (QUERY, KEY)

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


def class_row(attn: TimmAttention, x: Tensor, key: Tensor) -> Tensor:
    """The class token's attention to all tokens, mean over heads: float32 [B, N] for normed tokens x and their keys."""
    return class_rows(attn, x, key).mean(dim=1)


def class_rows(attn: TimmAttention, x: Tensor, key: Tensor) -> Tensor:
    """What `class_row` gives, by heads: float32 [B, h, N]."""
    return _row(attn, _class_query(attn, x), key)


def class_row_only(attn: TimmAttention, x: Tensor, rotary: Tensor | None) -> Tensor:
    """What `class_row` gives, for normed tokens x [B, N, D] whose keys nobody else needs."""
    folds = rotary is None and isinstance(attn.k_norm, nn.Identity) and attn.qkv is not None
    if not folds:
        return class_row(attn, x, key_of(attn, x, rotary))
    query = _class_query(attn, x)
    with no_autocast(x.device.type):
        weight = attn.qkv.weight.chunk(3)[KEY].float().unflatten(0, (attn.num_heads, -1))
        probes = (query.float() @ weight).squeeze(2)  # a bias of the keys adds the same to all and falls out of softmax
        return _softmax(attn, probes @ x.float().transpose(1, 2)).mean(dim=1)


def product_row(attn: TimmAttention, x: Tensor, rotary: Tensor | None, product: Product) -> Tensor:
    """The softmax of the class token's `product[0]` with every token's `product[1]`, scaled as attention is, mean over
    heads: float32 [B, N] for normed tokens x [B, N, D].
    """
    parts = {QUERY: query_of, KEY: key_of, VALUE: lambda attn, x, rotary: value_of(attn, x)}
    ours, theirs = (parts[part](attn, x, rotary) for part in product)
    return _row(attn, ours[:, :, :1], theirs).mean(dim=1)


def attention_matrix(attn: TimmAttention, x: Tensor, rotary: Tensor | None) -> Tensor:
    """Every token's attention to all tokens, mean over heads: float32 [B, N, N] for normed tokens x [B, N, D]."""
    query, key = query_of(attn, x, rotary), key_of(attn, x, rotary)
    with no_autocast(x.device.type):
        return _softmax(attn, query.float() @ key.float().transpose(2, 3)).mean(dim=1)


def query_of(attn: TimmAttention, x: Tensor, rotary: Tensor | None) -> Tensor:
    """Queries of normed tokens x [B, N, D]: [B, h, N, d]."""
    return _rotated(attn, attn.q_norm(_heads(attn, x, QUERY)), rotary)


def key_of(attn: TimmAttention, x: Tensor, rotary: Tensor | None) -> Tensor:
    """Keys of normed tokens x [B, N, D]: [B, h, N, d]."""
    return _rotated(attn, attn.k_norm(_heads(attn, x, KEY)), rotary)


def value_of(attn: TimmAttention, x: Tensor) -> Tensor:
    """Values of normed tokens x [B, N, D]: [B, h, N, d]."""
    return _heads(attn, x, VALUE)


def attend(block: TimmBlock, x: Tensor, rotary: Tensor | None, key: Tensor, value: Tensor) -> Tensor:
    """The attention branch [B, M, D] of normed tokens x [B, M, D] that look at `key` and `value` [B, h, N, d].

    In training mode with the block's dropout and drop path, as `feed_forward` has them, too.
    """
    return project(block, x, mixed_values(block.attn, x, rotary, key, value))


def mixed_values(attn: TimmAttention, x: Tensor, rotary: Tensor | None, key: Tensor, value: Tensor) -> Tensor:
    """What each of the tokens of `attend` gathers from `value`, by heads: [B, h, M, d]."""
    query = query_of(attn, x, rotary)
    dropout = attn.attn_drop.p if attn.training else 0.0
    return F.scaled_dot_product_attention(query.to(value.dtype), key.to(value.dtype), value, dropout_p=dropout)


def project(block: TimmBlock, x: Tensor, mixed: Tensor) -> Tensor:
    """The attention branch [B, M, D] from what `mixed_values` gave for normed tokens x."""
    attn = block.attn
    out = attn.norm(mixed.transpose(1, 2).flatten(2))
    if getattr(attn, "gate", None) is not None:
        out = out * attn.gate(x).sigmoid()
    return block.drop_path1(_scaled(block, "1", attn.proj_drop(attn.proj(out))))


def feed_forward(block: TimmBlock, tokens: Tensor) -> Tensor:
    """The block's MLP branch added to tokens [B, N, D]."""
    return tokens + block.drop_path2(_scaled(block, "2", block.mlp(block.norm2(tokens))))


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


def no_autocast(device: str) -> AbstractContextManager[Any]:
    """Matrix products in the dtype of their operands; the meta device has no autocast, so nothing to switch off.

    Not by `torch.amp.is_autocast_available`, at which the compiler of torch 2.11 ends a graph.
    """
    return nullcontext() if device == "meta" else torch.autocast(device, enabled=False)


def _class_query(attn: TimmAttention, x: Tensor) -> Tensor:
    """The class token's query [B, h, 1, d]; a prefix token, so never rotated."""
    return attn.q_norm(_heads(attn, x[:, :1], QUERY))


def _row(attn: TimmAttention, one: Tensor, every: Tensor) -> Tensor:
    """Softmax of the products of one token [B, h, 1, d] with every token [B, h, N, d]: float32 [B, h, N]."""
    with no_autocast(one.device.type):
        return _softmax(attn, (one.float() @ every.float().transpose(2, 3)).squeeze(2))


def _softmax(attn: TimmAttention, products: Tensor) -> Tensor:
    """Softmax of products [B, h, ..., N] over all tokens."""
    return (products * attn.scale).softmax(dim=-1)


def _scaled(block: TimmBlock, branch: str, out: Tensor) -> Tensor:
    """Layer scale of branch "1" (attention) or "2" (MLP), where the block has one."""
    if isinstance(block, EvaBlock):
        gamma = getattr(block, f"gamma_{branch}")
        return out if gamma is None else gamma * out
    return getattr(block, f"ls{branch}")(out)
