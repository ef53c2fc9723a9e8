"""EViT's rule of dropping patches: what stage 1 ranks by, and what a selector is trained with.

At a selection block, run the attention; score each patch by the attention that the class token pays to it; add the
residual; keep the best; run the MLP on what is left (Liang et al., ICLR 2022; `docs/method.md`). It is written once,
for a `Selector` that asks for rankings and for an `EViT` that asks for logits with gradients. In training mode a block
has its dropout and drop path as in timm's forward; scores are the attention before any dropout.

Axes: B images, P patches of the grid, N tokens, n prefix tokens, m patch tokens still there, D width.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from numbers import Integral
from typing import NamedTuple

import torch
from timm.models.eva import Eva
from torch import Tensor, nn

from dlth.tickets import Budget
from dlth.tickets.errors import InputError, shown
from dlth.training.models.class_attention import (
    QUERY_KEY,
    Product,
    TimmAttention,
    TimmBlock,
    attend,
    class_row,
    class_row_only,
    feed_forward,
    key_of,
    product_row,
    value_of,
)
from dlth.training.models.embedding import rotary_of_block, take, take_rotary
from dlth.training.models.registry import ViT, check_can_select, default_blocks


def check_dropping(vit: nn.Module, blocks: Sequence[int] | None, fuse_tokens: bool) -> tuple[ViT, tuple[int, ...]]:
    """The model and its selection blocks (None: its `default_blocks`), if the rule can be run on them.

    Raises:
        InputError: a model that cannot select, blocks that it does not have or out of order, or fused tokens that
            would need a position
    """
    checked = check_can_select(vit)
    numbers, depth = default_blocks(checked) if blocks is None else tuple(blocks), len(checked.blocks)
    whole = all(isinstance(block, Integral) and not isinstance(block, bool) and 0 <= block < depth for block in numbers)
    if not numbers or not whole or not all(earlier < later for earlier, later in pairwise(numbers)):
        raise InputError(
            f"blocks must be one or more numbers from 0 to {depth - 1} (the model has {depth} blocks), rising, "
            f"got {shown(numbers)}"
        )
    if fuse_tokens and getattr(checked, "rope", None) is not None:
        raise InputError("this model's positions are rotary, and a fused token has no position: use no fuse_tokens")
    return checked, tuple(int(block) for block in numbers)


def fitting_budget(asked: Budget | None, own: Budget, num_patches: int, made: Callable[[int], Budget]) -> Budget:
    """The budget asked for, for images of that many patches; else the model's own, or the one `made` for another size.

    Another number of patches than the model's own needs dynamic_img_size. Raises InputError for a budget that is for
    another number of patches, or of stages than the model's own.
    """
    num_stages = len(own.stage_tokens)
    if asked is None:
        return own if num_patches == own.num_patches else made(num_patches)
    if (asked.num_patches, len(asked.stage_tokens)) != (num_patches, num_stages):
        raise InputError(
            f"a budget for {asked.num_patches} patches in {len(asked.stage_tokens)} stages does not fit"
            f" {num_patches} patches and {num_stages} selection blocks"
        )
    return asked


def run_stages(
    vit: ViT,
    tokens: Tensor,
    table: Tensor | None,
    blocks: Sequence[int],
    stage_tokens: Sequence[int],
    *,
    fuse_tokens: bool,
    to_the_end: bool,
    product: Product = QUERY_KEY,
) -> tuple[list["Stage"], Tensor]:
    """Run a model's blocks, dropping patches at some of them.

    Args:
        vit: a model that `check_dropping` has seen
        tokens, table: of all patches, float [B, n + P, D], and their rotary table, as `embed` gives them
        blocks: selection blocks, rising; `stage_tokens`: how many patch tokens each keeps
        fuse_tokens: put what a block drops together into one token, weighted by the scores
        to_the_end: run all blocks; otherwise no more than the last scores take
        product: what of the class token is multiplied with what of every token for the scores; blocks compute attention
            as ever, so that tokens stay what the model was trained to make of them
    Returns:
        every stage's verdict, and the last tokens [B, N, D]: those before the last stage unless `to_the_end`
    """
    n = vit.num_prefix_tokens
    num_patches = tokens.shape[1] - n
    patches = torch.arange(num_patches, device=tokens.device).expand(len(tokens), -1)
    rotary = table
    stages: list[Stage] = []
    every: list[TimmBlock] = [*vit.blocks]
    last = blocks[-1]
    for index, block in enumerate(every if to_the_end else every[:last]):
        rope = rotary_of_block(vit, rotary, index)
        if index not in blocks:
            tokens = block(tokens, rope=rope) if isinstance(vit, Eva) else block(tokens)
            continue
        x = block.norm1(tokens)
        key, value = key_of(block.attn, x, rope), value_of(block.attn, x)
        stage = Stage.of(_scores(block.attn, x, rope, product, key)[:, n:], patches, stage_tokens[len(stages)])
        stages.append(stage)
        if fuse_tokens:  # the dropped tokens are needed too
            tokens = tokens + attend(block, x, rope, key, value)
            tokens, patches = stage.fuse(tokens, patches, n, number=num_patches + len(stages) - 1)
        else:
            kept_at = stage.kept_at()
            patches = patches.gather(1, kept_at)
            tokens, x = _take_patches(tokens, kept_at, n), _take_patches(x, kept_at, n)
            rotary = None if table is None else take_rotary(vit, table, tokens, patches)
            tokens = tokens + attend(block, x, rotary_of_block(vit, rotary, index), key, value)
        tokens = feed_forward(block, tokens)
    if not to_the_end:
        x, rope = every[last].norm1(tokens), rotary_of_block(vit, rotary, last)
        stages.append(Stage.of(_scores(every[last].attn, x, rope, product)[:, n:], patches, stage_tokens[-1]))
    return stages, tokens


def _scores(attn: TimmAttention, x: Tensor, rope: Tensor | None, product: Product, key: Tensor | None = None) -> Tensor:
    """Scores float32 [B, N] of normed tokens x [B, N, D], whose keys may be at hand."""
    if product != QUERY_KEY:
        return product_row(attn, x, rope, product)
    return class_row_only(attn, x, rope) if key is None else class_row(attn, x, key)


class Stage(NamedTuple):
    """One stage's verdict on the m patch tokens that reached it.

    `order` int64 [B, m]: their places among the patch tokens, best first. `patches` int64 [B, m]: the patches there (a
    number from P on is a fused token). `scores` float32 [B, m]: theirs. `kept`: how many go on.
    """

    order: Tensor
    patches: Tensor
    scores: Tensor
    kept: int

    @classmethod
    def of(cls, scores: Tensor, patches: Tensor, kept: int) -> "Stage":
        """Sort float32 scores [B, m] of `patches` int64 [B, m], whose order decides ties."""
        best = scores.sort(dim=1, descending=True, stable=True)
        return cls(best.indices, patches.gather(1, best.indices), best.values, kept)

    def kept_at(self) -> Tensor:
        """Places of the tokens that go on, in the order they stood in: int64 [B, kept]."""
        return self.order[:, : self.kept].sort(dim=1).values

    def fuse(self, tokens: Tensor, patches: Tensor, n: int, number: int) -> tuple[Tensor, Tensor]:
        """Keep the best of tokens [B, n + m, D] and `patches` [B, m]; the others become one that is put last.

        It is their sum weighted by their scores as they are (EViT's rule), and stands under `number` among the patches.
        """
        if self.kept == self.order.shape[1]:
            return tokens, patches
        kept_at = self.kept_at()
        dropped = take(tokens[:, n:], self.order[:, self.kept :])
        fused = (dropped * self.scores[:, self.kept :].unsqueeze(2)).sum(dim=1, keepdim=True)
        return (
            torch.cat([_take_patches(tokens, kept_at, n), fused.to(tokens.dtype)], dim=1),
            torch.cat([patches.gather(1, kept_at), torch.full_like(patches[:, :1], number)], dim=1),
        )


def _take_patches(tokens: Tensor, places: Tensor, n: int) -> Tensor:
    """The n prefix tokens and the patch tokens at `places` int64 [B, k] of tokens [B, n + m, D]."""
    return torch.cat([tokens[:, :n], take(tokens[:, n:], places)], dim=1)
