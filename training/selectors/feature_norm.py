"""Patches by the length of their features after a block: for models that have no class token to ask.

The length is taken before the model's last norm, which would make all lengths nearly alike. It is the simplest rule
that needs patch tokens alone, and a weak one: large models without registers put global content into a few tokens of
great length, mostly of plain background (Darcet et al., ICLR 2024).
"""

from functools import partial

from torch import Tensor

from dlth.training.models.blocks import run_blocks
from dlth.training.models.embedding import embed
from dlth.training.models.registry import ViT, check_family
from dlth.training.selectors.score_ranker import Rule


def scores(vit: ViT, images: Tensor, block: int) -> Tensor:
    """Euclidean length of each patch's token after `block`: float32 [B, P]."""
    tokens, table = embed(vit, images)
    tokens = run_blocks(vit, tokens, table, 0, block + 1)
    return tokens[:, vit.num_prefix_tokens :].float().norm(dim=2)


FEATURE_NORM = Rule(scores, partial(check_family, verb="select"))
