"""Patches by the attention of a pooling head (SigLIP): its learnt query asks the patches what a class token would.

Models that pool so were trained to find by it what an image shows, so it ranks patches where there is no class token.
"""

from timm.layers import AttentionPoolLatent
from torch import Tensor, nn

from dlth.tickets.errors import InputError
from dlth.training.models.blocks import run_blocks
from dlth.training.models.class_attention import no_autocast
from dlth.training.models.embedding import embed
from dlth.training.models.registry import ViT, check_family
from dlth.training.selectors.score_ranker import Rule, last_block


def scores(vit: ViT, images: Tensor, block: int) -> Tensor:
    """The query's attention after the softmax, mean over heads (and over queries): float32 [B, P]."""
    if block != last_block(vit):
        raise InputError(f"pool-attention reads the head, behind the last block ({last_block(vit)}), not block {block}")
    pool, n = vit.attn_pool, vit.num_prefix_tokens
    assert isinstance(pool, AttentionPoolLatent)
    tokens, table = embed(vit, images)
    seen = vit.norm(run_blocks(vit, tokens, table, 0, block + 1))
    if not getattr(vit, "pool_include_prefix", True):
        seen, n = seen[:, n:], 0
    if pool.pos_embed is not None:
        seen = seen + pool.pos_embed
    query = pool.q_norm(pool.q(pool.latent).unflatten(2, (pool.num_heads, -1)).transpose(1, 2))
    key = pool.k_norm(pool.kv(seen).chunk(2, dim=2)[0].unflatten(2, (pool.num_heads, -1)).transpose(1, 2))
    with no_autocast(seen.device.type):
        rows = (query.float() @ key.float().transpose(2, 3) * pool.scale).softmax(dim=3)
    return rows.mean(dim=(1, 2))[:, n:]


def check_pools(vit: nn.Module) -> ViT:
    """The model, if its head pools by attention; raises InputError otherwise."""
    checked = check_family(vit, "select")
    if not isinstance(checked.attn_pool, AttentionPoolLatent):
        raise InputError(
            f"this {type(checked).__name__} has no pooling head whose attention could rank patches (it pools by"
            f" {checked.global_pool!r}): take --ranker evit where it has a class token, otherwise feature-norm"
        )
    return checked


POOL_ATTENTION = Rule(scores, check_pools)
