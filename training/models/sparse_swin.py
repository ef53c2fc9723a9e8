"""Swin on a ticket's patches: only their tokens are computed, from the first operation to the last.

Swin's windows seem to need the whole grid. They need only to know which tokens stand in which window, so kept tokens
are one list and windows are tables of it (`window_plan.py`). It is dense Swin with dropped tokens masked: nobody looks
at them, they count in no mean. That is not the paper's zeroed image, whose dropped patches are looked at as zeros.

A ticket's patch is several tokens, 4x4 of them at 16 px. Merging takes 2x2 tokens, so until whole patches are merged
all four of a cell are kept or none. From there on a cell lives as long as one of its four does, and missing ones are
zero. Swin itself does so where the four reach beyond an odd grid; each token stays at its own weights, as it would not
in a mean of those that are there; and no kept patch is lost, as it would be if only full cells lived. It costs time:
of 138 scattered patches of 196 nearly all 49 cells of the last stage live.

How many windows a group has, and cells the last stage, changes with every batch, and a compiler would start anew each
time: on tickets the student is not compiled, on whole images it is.

Axes: B images, T tokens of all images, C width, k kept patches.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from timm.models import checkpoint
from timm.models.swin_transformer import SwinTransformer
from timm.models.swin_transformer_v2 import SwinTransformerV2, SwinTransformerV2Block
from torch import Tensor, nn

from dlth.tickets.errors import InputError
from dlth.training.models.embedding import embed_patches, image_grid
from dlth.training.models.student import ImageStudent, check_patches
from dlth.training.models.window_attention import attend_in_windows
from dlth.training.models.window_plan import Layout, WindowPlan, cells_of, number, plan_windows

Block = Any
"""timm's block, V1 or V2: a type checker takes what a module holds for `Tensor | Module`."""


class Tokens(NamedTuple):
    """Kept tokens float [T, C], image after image, row-major within one, and where they are: bool [B, rows, cols];
    `at_hand`: the same on the CPU, which knows by it how many there are.
    """

    values: Tensor
    kept: Tensor
    at_hand: Tensor

    @property
    def per_image(self) -> Tensor:
        """How many tokens each image has, int64 [B]."""
        return self.kept.flatten(1).sum(dim=1)


class SparseSwin(ImageStudent):
    """Runs timm's Swin, V1 or V2, on the tokens of kept patches alone.

    `patch_size`: side of the tickets' patches, a multiple of the tokens' (16 if not given). Raises InputError for one
    that is none, and for a head that does not take the mean of tokens.
    """

    def __init__(self, model: nn.Module, patch_size: int | None = None) -> None:
        super().__init__(model, patch_size)
        stem: Any = model.patch_embed
        token, width = stem.patch_size
        if self.patch_size % token or width != token:
            raise InputError(
                f"patches of {self.patch_size} pixels are not whole tokens of {token}: --how sparse needs a"
                f" --patch-size that is a multiple of {token}"
            )
        if model.global_pool != "avg":
            raise InputError(
                f"--how sparse takes the mean of kept tokens, and this {type(model).__name__} pools by"
                f" {model.global_pool!r}: build it with global_pool='avg', or use --how zero"
            )
        self.tokens_per_side: int = self.patch_size // token

    @classmethod
    def takes(cls, model: nn.Module) -> bool:
        """Whether it is timm's Swin, V1 or V2."""
        return type(model) in (SwinTransformer, SwinTransformerV2)

    def forward(self, images: Tensor, patches: Tensor | None = None) -> Tensor:
        """As `Student` has it: None is timm's own forward. Raises InputError for images that are not whole patches."""
        if patches is None:
            return self.model(images)
        check_patches(patches, len(images))
        return self._on_kept(images, patches)

    @torch.compiler.disable
    def _on_kept(self, images: Tensor, patches: Tensor) -> Tensor:
        """Logits of the tokens of the kept patches int64 [B, k] alone."""
        model: Any = self.model
        tokens = self._embed(images, patches)
        for stage in model.layers:
            tokens = _run_stage(stage, tokens)
        return model.forward_head(_mean(tokens._replace(values=model.norm(tokens.values)))[:, None, None])

    def _embed(self, images: Tensor, patches: Tensor) -> Tokens:
        """Tokens of the kept patches int64 [B, k]."""
        model: Any = self.model
        grid, side = image_grid(model, images), self.tokens_per_side
        rows, cols = grid[0] // side, grid[1] // side
        if (rows * side, cols * side) != grid:
            raise InputError(
                f"a grid of {grid[0]}x{grid[1]} tokens is not whole patches of {self.patch_size} pixels: give a"
                " --patch-size, or an --img-size, that fits"
            )

        def kept(patches: Tensor) -> Tensor:
            whole = torch.zeros(len(patches), rows * cols, dtype=torch.bool, device=patches.device)
            whole = whole.scatter_(1, patches, True).view(-1, rows, 1, cols, 1)
            return whole.expand(-1, -1, side, -1, side).reshape(-1, *grid)

        at_hand = read(patches)
        of_images = kept(patches)
        cells = cells_of(of_images.flatten(1), patches.shape[1] * side**2)
        return Tokens(embed_patches(model, images, cells, grid).flatten(0, 1), of_images, kept(at_hand))


def read(patches: Tensor) -> Tensor:
    """The patches on the CPU. On a GPU this waits for the step before; nothing else in a forward waits."""
    return patches.cpu()


def _run_stage(stage: Any, tokens: Tokens) -> Tokens:
    """Merging, where the stage begins with it, and the stage's blocks."""
    if not isinstance(stage.downsample, nn.Identity):
        tokens = _merge(stage.downsample, tokens)
    values, kept, at_hand = tokens
    grid = (kept.shape[1], kept.shape[2])
    layouts = [Layout(grid, tuple(block.window_size), tuple(block.shift_size)) for block in stage.blocks]
    plans = {layout: plan_windows(kept.flatten(1), layout, at_hand.flatten(1)) for layout in set(layouts)}
    per_image = tokens.per_image
    for block, layout in zip(stage.blocks, layouts, strict=True):
        inputs = values, plans[layout], per_image
        values = checkpoint(_run_block, block, *inputs) if stage.grad_checkpointing else _run_block(block, *inputs)
    return Tokens(values, kept, at_hand)


def _merge(merging: Any, tokens: Tokens) -> Tokens:
    """timm's merging of 2x2 tokens, each four of them an image of its own; a missing one is zero."""
    values, kept, at_hand = tokens
    numbers = F.pad(number(kept), (0, kept.shape[2] % 2, 0, kept.shape[1] % 2), value=-1)
    of_cell = numbers.unflatten(2, (-1, 2)).unflatten(1, (-1, 2)).transpose(2, 3)  # [B, rows, cols, 2, 2]
    alive, still = _merged(kept), _merged(at_hand)
    four = of_cell.flatten(0, 2)[cells_of(alive.flatten(), int(still.sum()))]
    return Tokens(merging(_take_or_zero(values, four)).flatten(0, 2), alive, still)


def _merged(kept: Tensor) -> Tensor:
    """Which 2x2 cells of a grid, bool [B, rows, cols], hold any token."""
    padded = F.pad(kept, (0, kept.shape[2] % 2, 0, kept.shape[1] % 2))
    return padded.unflatten(2, (-1, 2)).unflatten(1, (-1, 2)).any(dim=4).any(dim=2)


def _run_block(block: Block, values: Tensor, plan: WindowPlan, per_image: Tensor) -> Tensor:
    """timm's block on tokens [T, C]; V1 has its norms before the branches, V2 behind them."""
    if isinstance(block, SwinTransformerV2Block):
        attended = block.norm1(attend_in_windows(block.attn, values, plan))
        values = values + _drop_path(block.drop_path1, attended, per_image)
        return values + _drop_path(block.drop_path2, block.norm2(block.mlp(values)), per_image)
    attended = attend_in_windows(block.attn, block.norm1(values), plan)
    values = values + _drop_path(block.drop_path1, attended, per_image)
    return values + _drop_path(block.drop_path2, block.mlp(block.norm2(values)), per_image)


def _drop_path(drop: nn.Module, branch: Tensor, per_image: Tensor) -> Tensor:
    """timm's stochastic depth on a branch [T, C]: drawn once for an image, as on a dense batch."""
    if isinstance(drop, nn.Identity) or not drop.training:
        return branch
    factors = drop(branch.new_ones(len(per_image), 1))
    return branch * factors.repeat_interleave(per_image, dim=0, output_size=len(branch))


def _mean(tokens: Tokens) -> Tensor:
    """The mean of each image's tokens, [B, C]."""
    return _take_or_zero(tokens.values, number(tokens.kept).flatten(1)).sum(dim=1) / tokens.per_image[:, None]


def _take_or_zero(values: Tensor, numbers: Tensor) -> Tensor:
    """Rows of `values` [T, C] by number, int64 of any shape; zeros for -1."""
    rows = torch.where(numbers < 0, len(values), numbers)
    return F.pad(values, (0, 0, 0, 1)).index_select(0, rows.flatten()).view(*numbers.shape, -1)
