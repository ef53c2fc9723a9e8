"""The selector: a trained ViT whose class token says which patches of an image matter.

It drops patches by EViT's rule (`stages.py`). What a ticket needs and no more is computed: at the last selection block
only norm, keys and one query, and nothing after.

The ranking holds every patch: those that reached the last selection block by its score, then those that fell at the
stage before by that stage's score, and so on back to the first. So the ticket of a smaller budget, and the refill of a
crop, are prefixes of one ordering. Ties go to the lowest patch index: tokens are kept in the order of their patches,
not of their rank, and sorting is stable. Rejected: `topk`, which promises no order among ties, and keeping tokens best
first, which would break ties by an earlier stage's rank.

Axes: B images, P patches of the grid, N tokens, D width.
"""

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor, nn

from dlth.tickets import SelectorInfo
from dlth.tickets.errors import InputError
from dlth.tickets.ranking.budget import Budget, Rate
from dlth.training.models.class_attention import QUERY_KEY, Product
from dlth.training.models.embedding import embed
from dlth.training.models.frame import Frame
from dlth.training.models.registry import flops_of, grid_of
from dlth.training.models.weights import weights_digest
from dlth.training.selectors.patch_ranker import Selection
from dlth.training.selectors.stages import Stage, check_dropping, fitting_budget, run_stages


class Selector:
    """Ranks the patches of images with a timm ViT, which is put into evaluation mode: EViT's `PatchRanker`.

    Args:
        vit: a timm ViT with a class token (`check_can_select`)
        stage_keep: share of its patches that each stage keeps (EViT's and the paper's rate)
        blocks: selection blocks, counted from 0; None is `default_blocks`: 3, 6, 9 of 12
        fuse_tokens: fuse the patches dropped at a stage into one token, weighted by their scores (EViT's option)
        keep: final share of the patches, takes the place of `stage_keep`
        tokens: final number of patches, takes the place of `stage_keep`
        product: what of the class token is multiplied with what of a patch for its score; attention's own by default
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
        blocks: Sequence[int] | None = None,
        fuse_tokens: bool = False,
        *,
        keep: Rate | None = None,
        tokens: int | None = None,
        product: Product = QUERY_KEY,
        frame: Frame | None = None,
        model: str = "",
        source: str = "",
    ) -> None:
        self.vit, self.blocks = check_dropping(vit, blocks, fuse_tokens)
        self.vit.eval()
        self.fuse_tokens, self.product = fuse_tokens, product
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

    def scores(self, images: Tensor) -> Tensor:
        """Attention to each patch at the first selection block, which all patches reach: float32 [B, P].

        Raises InputError as `select`.
        """
        self._check_mode()
        with torch.no_grad():
            tokens, table = embed(self.vit, images)
            whole = tokens.shape[1] - self.vit.num_prefix_tokens
            (stage,), _ = run_stages(
                *(self.vit, tokens, table, self.blocks[:1], (whole,)),
                fuse_tokens=False,
                to_the_end=False,
                product=self.product,
            )
            return torch.empty_like(stage.scores).scatter_(1, stage.patches, stage.scores)

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
        """The budget for images of that many patches."""
        return fitting_budget(budget, self.budget, num_patches, self._new_budget)

    def _new_budget(self, num_patches: int) -> Budget:
        stage_keep, keep, tokens = self._rates
        if keep is not None or tokens is not None:
            stage_keep = None
        return Budget.of(num_patches, len(self.blocks), self.fuse_tokens, stage_keep, keep, tokens)

    def _forward(self, images: Tensor, to_the_end: bool, budget: Budget | None = None) -> tuple[list[Stage], Tensor]:
        """Every stage's scores, and the last tokens, as `run_stages` has them."""
        tokens, table = embed(self.vit, images)
        stage_tokens = self._budget_of(tokens.shape[1] - self.vit.num_prefix_tokens, budget).stage_tokens
        return run_stages(
            self.vit,
            tokens,
            table,
            self.blocks,
            stage_tokens,
            fuse_tokens=self.fuse_tokens,
            to_the_end=to_the_end,
            product=self.product,
        )


def _ranking(stages: list[Stage]) -> Tensor:
    """All patches, best first: int64 [B, P]. Fused tokens are taken out."""
    groups = [stages[-1].patches, *(stage.patches[:, stage.kept :] for stage in reversed(stages[:-1]))]
    everyone = torch.cat(groups, dim=1)
    num_patches = stages[0].patches.shape[1]
    if everyone.shape[1] == num_patches:
        return everyone
    patches_first = (everyone >= num_patches).to(torch.uint8).sort(dim=1, stable=True).indices
    return everyone.gather(1, patches_first[:, :num_patches])


def _are_numbers(stages: list[Stage]) -> Tensor:
    """Bool [B]: whether every score of every stage is finite (then so is their sum: they are attention, 0 to 1)."""
    return torch.stack([stage.scores.sum(dim=1) for stage in stages]).isfinite().all(dim=0)


def _gap(stages: list[Stage], ranking: Tensor) -> Tensor:
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
