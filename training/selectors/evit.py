"""The selector: a trained ViT whose class token says which patches of an image matter.

EViT's rule (`docs/method.md`): at a selection block, run the attention; score each patch by the attention that the
class token pays to it; add the residual; keep the best; run the MLP on what is left. What a ticket needs and no more is
computed: at the last selection block only norm, keys and one query, and nothing after.

The ranking holds every patch: those that reached the last selection block by its score, then those that fell at the
stage before by that stage's score, and so on back to the first. So the ticket of a smaller budget, and the refill of a
crop, are prefixes of one ordering. Ties go to the lowest patch index: tokens are kept in the order of their patches,
not of their rank, and sorting is stable. Rejected: `topk`, which promises no order among ties, and keeping tokens best
first, which would break ties by an earlier stage's rank.

Axes: B images, P patches of the grid, N tokens, n prefix tokens, m patch tokens still there, D width.
"""

from collections.abc import Sequence
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

import torch
from timm.models.eva import Eva
from torch import Tensor, nn

from dlth.tickets import SelectorInfo
from dlth.tickets.errors import InputError, shown
from dlth.tickets.ranking.budget import Budget, Rate
from dlth.training.models.class_attention import (
    TimmBlock,
    attend,
    class_row,
    class_row_only,
    feed_forward,
    key_of,
    value_of,
)
from dlth.training.models.embedding import embed, rotary_of_block, take, take_rotary
from dlth.training.models.frame import Frame
from dlth.training.models.registry import check_can_select, flops_of, grid_of
from dlth.training.models.weights import weights_digest
from dlth.training.selectors.patch_ranker import Selection


class Selector:
    """Ranks the patches of images with a timm ViT, which is put into evaluation mode: EViT's `PatchRanker`.

    Args:
        vit: a timm ViT with a class token (`check_can_select`)
        stage_keep: share of its patches that each stage keeps (EViT's and the paper's rate)
        blocks: selection blocks, counted from 0
        fuse_tokens: fuse the patches dropped at a stage into one token, weighted by their scores (EViT's option)
        keep: final share of the patches, takes the place of `stage_keep`
        tokens: final number of patches, takes the place of `stage_keep`
        frame: what its images must be; the model's own if absent
        model, source: timm's name of the model, and where its weights are from, for `info`
    Attributes:
        grid, budget: of the image size that the model was built for
    Raises:
        InputError: a model that cannot select, or blocks or rates that make no sense
    """

    def __init__(
        self,
        vit: nn.Module,
        stage_keep: Rate | None = 0.7,
        blocks: Sequence[int] = (3, 6, 9),
        fuse_tokens: bool = False,
        *,
        keep: Rate | None = None,
        tokens: int | None = None,
        frame: Frame | None = None,
        model: str = "",
        source: str = "",
    ) -> None:
        if keep is not None and tokens is not None:
            raise InputError("give keep or tokens, not both")
        self.vit = check_can_select(vit)
        self.vit.eval()
        self.blocks = _checked_blocks(blocks, len(self.vit.blocks))
        self.fuse_tokens = fuse_tokens
        if fuse_tokens and getattr(self.vit, "rope", None) is not None:
            raise InputError("this model's positions are rotary, and a fused token has no position: use no fuse_tokens")
        self._rates = stage_keep, keep, tokens
        self.grid = grid_of(self.vit)
        self.budget = self._new_budget(self.grid.num_patches)
        self.device = next(self.vit.parameters()).device
        self._frame, self._model, self._source = frame, model, source

    @cached_property
    def frame(self) -> Frame:
        """What its images must be."""
        return self._frame or Frame.of(self.vit)

    @cached_property
    def info(self) -> SelectorInfo:
        """What a header says of it, with the digest of the weights when this was first asked."""
        digest = weights_digest(self.vit)
        return SelectorInfo(self._model, digest, self._source, self.blocks, fuse_tokens=self.fuse_tokens)

    @cached_property
    def flops(self) -> tuple[int, int]:
        """Floating-point operations of ranking one image, and of the model's whole forward pass."""
        size, device = self.frame.size, self.device
        return flops_of(self.rank, size, device), flops_of(self.vit, size, device)

    def to(self, device: torch.device | str) -> "Selector":
        """Move the model; returns the selector."""
        self.vit.to(device)
        self.device = torch.device(device)
        return self

    def rank(self, images: Tensor, budget: Budget | None = None) -> Tensor:
        """What `select` ranks: int64 [B, P]. It alone tells an image whose scores are no numbers."""
        return self.select(images, budget).patches

    def select(self, images: Tensor, budget: Budget | None = None) -> Selection:
        """As `PatchRanker` has it.

        Raises:
            InputError: images or a budget that do not fit, or a model that was put into training mode
        """
        self._check_mode()
        with torch.no_grad():  # not inference mode: its tensors could not index a student's in training
            stages, _ = self._forward(images, to_the_end=False, budget=budget)
            ranking = _ranking(stages)
            gap = _gap(stages, ranking)
            gap = gap.masked_fill(~_are_numbers(stages), torch.nan)  # on the device: who reads the gap learns of it
        return Selection(ranking, gap)

    def logits(self, images: Tensor) -> Tensor:
        """Logits [B, classes] of the whole forward pass with dropping switched on, as EViT evaluates."""
        self._check_mode()
        with torch.no_grad():
            _, tokens = self._forward(images, to_the_end=True)
            return self.vit.forward_head(self.vit.norm(tokens))

    def _check_mode(self) -> None:
        if self.vit.training:
            raise InputError("the selector's model is in training mode; call vit.eval() before selecting")

    def _budget_of(self, num_patches: int, budget: Budget | None = None) -> Budget:
        """The budget for images of that many patches; another number than the model's own needs dynamic_img_size."""
        if budget is None:
            return self.budget if num_patches == self.budget.num_patches else self._new_budget(num_patches)
        if (budget.num_patches, len(budget.stage_tokens)) != (num_patches, len(self.blocks)):
            raise InputError(
                f"a budget for {budget.num_patches} patches in {len(budget.stage_tokens)} stages does not fit"
                f" {num_patches} patches and {len(self.blocks)} selection blocks"
            )
        return budget

    def _new_budget(self, num_patches: int) -> Budget:
        stage_keep, keep, tokens = self._rates
        stages = len(self.blocks)
        if tokens is not None:
            return Budget.from_tokens(tokens, num_patches, stages, self.fuse_tokens)
        if keep is not None:
            return Budget.from_keep(keep, num_patches, stages, self.fuse_tokens)
        if stage_keep is None:
            raise InputError("give stage_keep, keep or tokens: one of them must say how many patches to keep")
        return Budget.from_stage_keep(stage_keep, num_patches, stages, self.fuse_tokens)

    def _forward(self, images: Tensor, to_the_end: bool, budget: Budget | None = None) -> tuple[list["_Stage"], Tensor]:
        """Every stage's scores, and the last tokens [B, N, D]: those before the last stage unless `to_the_end`."""
        vit, n = self.vit, self.vit.num_prefix_tokens
        tokens, table = embed(vit, images)
        num_patches = tokens.shape[1] - n
        patches = torch.arange(num_patches, device=tokens.device).expand(len(tokens), -1)
        stage_tokens = self._budget_of(num_patches, budget).stage_tokens
        rotary = table
        stages: list[_Stage] = []
        blocks: list[TimmBlock] = [*vit.blocks]
        last = self.blocks[-1]
        for index, block in enumerate(blocks if to_the_end else blocks[:last]):
            rope = rotary_of_block(vit, rotary, index)
            if index not in self.blocks:
                tokens = block(tokens, rope=rope) if isinstance(vit, Eva) else block(tokens)
                continue
            x = block.norm1(tokens)
            key, value = key_of(block.attn, x, rope), value_of(block.attn, x)
            stage = _Stage.of(class_row(block.attn, x, key)[:, n:], patches, stage_tokens[len(stages)])
            stages.append(stage)
            if self.fuse_tokens:  # the dropped tokens are needed too
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
            x, rope = blocks[last].norm1(tokens), rotary_of_block(vit, rotary, last)
            stages.append(_Stage.of(class_row_only(blocks[last].attn, x, rope)[:, n:], patches, stage_tokens[-1]))
        return stages, tokens


def _checked_blocks(blocks: Sequence[int], depth: int) -> tuple[int, ...]:
    numbers = tuple(blocks)
    rising = all(earlier < later for earlier, later in pairwise(numbers))
    if not numbers or not rising or not all(type(block) is int and 0 <= block < depth for block in numbers):
        raise InputError(
            f"blocks must be one or more numbers from 0 to {depth - 1} (the model has {depth} blocks), rising, "
            f"got {shown(numbers)}"
        )
    return numbers


class _Stage(NamedTuple):
    """One stage's verdict on the m patch tokens that reached it.

    `order` int64 [B, m]: their places among the patch tokens, best first. `patches` int64 [B, m]: the patches there (a
    number from P on is a fused token). `scores` float32 [B, m]: theirs. `kept`: how many go on.
    """

    order: Tensor
    patches: Tensor
    scores: Tensor
    kept: int

    @classmethod
    def of(cls, scores: Tensor, patches: Tensor, kept: int) -> "_Stage":
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


def _ranking(stages: list[_Stage]) -> Tensor:
    """All patches, best first: int64 [B, P]. Fused tokens are taken out."""
    groups = [stages[-1].patches, *(stage.patches[:, stage.kept :] for stage in reversed(stages[:-1]))]
    everyone = torch.cat(groups, dim=1)
    num_patches = stages[0].patches.shape[1]
    if everyone.shape[1] == num_patches:
        return everyone
    patches_first = (everyone >= num_patches).to(torch.uint8).sort(dim=1, stable=True).indices
    return everyone.gather(1, patches_first[:, :num_patches])


def _are_numbers(stages: list[_Stage]) -> Tensor:
    """Bool [B]: whether every score of every stage is finite (then so is their sum: they are attention, 0 to 1)."""
    return torch.stack([stage.scores.sum(dim=1) for stage in stages]).isfinite().all(dim=0)


def _gap(stages: list[_Stage], ranking: Tensor) -> Tensor:
    """Score of the k-th patch minus that of the (k+1)-th at the last stage that saw both: float32 [B]."""
    num_patches = ranking.shape[1]
    k = min(stages[-1].kept, num_patches)
    gap = ranking.new_full((len(ranking),), torch.inf, dtype=torch.float32)
    if k == num_patches:
        return gap
    for stage in stages:
        table = gap.new_full((len(ranking), num_patches + len(stages)), torch.nan)
        pair = table.scatter(1, stage.patches, stage.scores).gather(1, ranking[:, k - 1 : k + 1])
        seen = pair[:, 0] - pair[:, 1]
        gap = torch.where(seen.isnan(), gap, seen)
    return gap
