"""Attention of timm's Swin V1 and V2 within windows of which only some tokens are there.

timm's modules take whole windows [windows, A, C]. Here the same weights act on a list of tokens that a plan shares out
to windows; projections stay one product for all. V1 scales dot products and learns a table of biases; V2 takes cosines,
learns their scale, and computes biases by a small network of the offset.

Biases are looked up by `torch.gather`: on a CPU, forward and backward, 6 ms where indexing took 22 and an embedding 42.
On a GPU its backward adds in no fixed order, unless `torch.use_deterministic_algorithms` asks for one.

Axes: T tokens, C width, W windows, n tokens of a window, h heads, d width of a head.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from timm.models.swin_transformer import WindowAttention
from timm.models.swin_transformer_v2 import WindowAttention as WindowAttentionV2
from torch import Tensor

from dlth.training.models.window_plan import Group, WindowPlan, bias_rows

AnyWindowAttention = WindowAttention | WindowAttentionV2


def attend_in_windows(attn: AnyWindowAttention, tokens: Tensor, plan: WindowPlan) -> Tensor:
    """The attention branch [T, C] of tokens [T, C], each looking at those of its window."""
    with_padding = F.pad(tokens, (0, 0, 0, 1))  # timm pads grids with zeros, which are looked at like any token
    qkv = _project(attn, with_padding.index_select(0, plan.rows))
    biases = bias_rows(_position_bias(attn)).t().contiguous()
    parts = qkv.split([group.num_windows * group.num_slots for group in plan.groups])
    out = torch.cat([_attend(attn, part, group, biases) for part, group in zip(parts, plan.groups, strict=True)])
    return attn.proj_drop(attn.proj(out.index_select(0, plan.slots)))


def _attend(attn: AnyWindowAttention, qkv: Tensor, group: Group, biases: Tensor) -> Tensor:
    """Values [W·n, C] gathered within the windows of a group, for queries, keys and values [W·n, 3·C] side by side."""
    num_heads, shape = attn.num_heads, group.pairs.shape
    by_head = qkv.view(*shape[:2], 3, num_heads, -1).permute(2, 3, 0, 1, 4).flatten(1, 2)  # [3, h·W, n, d]
    query, key, value = by_head.unbind(0)
    bias = biases.gather(1, group.pairs.flatten().expand(num_heads, -1)).view(-1, *shape[1:]).to(query.dtype)
    if isinstance(attn, WindowAttentionV2):
        scale = attn.logit_scale.clamp(max=math.log(100)).exp().repeat_interleave(len(group.pairs), dim=0)
        query, key, factor = F.normalize(query, dim=-1) * scale, F.normalize(key, dim=-1), 1.0
    else:
        factor = attn.scale
    shares = torch.baddbmm(bias, query, key.transpose(1, 2), alpha=factor).softmax(dim=-1)
    out = attn.attn_drop(shares) @ value
    return out.unflatten(0, (num_heads, -1)).permute(1, 2, 0, 3).reshape(len(qkv), -1)


def _project(attn: AnyWindowAttention, tokens: Tensor) -> Tensor:
    """Queries, keys and values side by side, [T, 3·C]."""
    if isinstance(attn, WindowAttentionV2) and attn.q_bias is not None:
        biases: list[Any] = [attn.q_bias, attn.k_bias, attn.v_bias]
        return F.linear(tokens, attn.qkv.weight, torch.cat(biases))
    return attn.qkv(tokens)


def _position_bias(attn: AnyWindowAttention) -> Tensor:
    """The bias of each offset between two places of a window, [offsets, h]."""
    if isinstance(attn, WindowAttentionV2):
        return 16 * attn.cpb_mlp(attn.relative_coords_table).flatten(0, 2).sigmoid()
    return attn.relative_position_bias_table
