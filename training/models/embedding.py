"""From images to the tokens of kept patches: pixels, projection, positions, prefix tokens.

Kept patches' pixels are gathered before the projection, or come so, and a dropped patch costs nothing at all; positions
are gathered with the same indices. Not timm's `patch_drop` slot, which embeds every patch first, knows only random
indices and, being an attribute, sets per-batch state on a module. What timm's own `_pos_embed` does is written out here
because it adds position embeddings to all patches at once; tests compare the two for every family.

Axes: B images, C channels, P patches of the grid, k kept ones, D token width, n prefix tokens.
"""

from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import PatchEmbed, apply_keep_indices_nlc, resample_abs_pos_embed
from timm.models.eva import Eva
from torch import Tensor, nn

from dlth.tickets.errors import InputError
from dlth.training.models.registry import ViT
from dlth.training.models.rotary_table import kept_table


def embed(
    vit: ViT, images: Tensor, patches: Tensor | None = None, sources: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """Tokens before the first block, and the rotary table that goes with them.

    Args:
        vit: a model that `check_family` knows
        images: normalised, float [B, C, height, width]; or, where `embeds_kept_only`, the pixels of `patches` alone
            [B, k, C, h, w], of images of the model's own size
        patches: kept patches int64 [B, k], numbered row-major, each once; None keeps all
        sources: int64 [B, P], the image of the batch from which each patch's token comes, as `token_sources` has it;
            None: each from its own
    Returns:
        tokens [B, n + k, D], and the rotary table of the kept patches as `take_rotary` shapes it, None without rotary
    """
    grid = image_grid(vit, images) if images.ndim != 5 else _cut_grid(vit, images, patches)
    tokens = embed_patches(vit, images, patches, grid, sources)
    prefix, positions = _prefix_and_positions(vit, grid, tokens)
    if positions is not None:
        tokens = tokens + (positions if patches is None else take(positions.expand(len(images), -1, -1), patches))
    tokens = torch.cat([prefix.expand(len(images), -1, -1), tokens], dim=1)
    tokens = vit.norm_pre(vit.pos_drop(tokens))
    table = _rotary_table(vit, grid)
    if table is not None and patches is not None:
        table = take_rotary(vit, table, tokens, patches)
    return tokens, table


def image_grid(vit: ViT, images: Tensor) -> tuple[int, int]:
    """Rows and columns of patches of images [B, C, height, width]; raises InputError for images that do not fit."""
    stem = vit.patch_embed
    if images.ndim != 4 or not images.is_floating_point():
        raise InputError(
            "images must be normalised floats [batch, channels, height, width], "
            f"got {images.dtype} {list(images.shape)}"
        )
    size = (images.shape[2], images.shape[3])
    if stem.strict_img_size and size != tuple(stem.img_size):
        raise InputError(
            f"images of {size[0]}x{size[1]} pixels do not fit a model of {stem.img_size[0]}x{stem.img_size[1]}; "
            "build it with that img_size, or with dynamic_img_size=True"
        )
    side: Any = stem.feat_ratio(as_scalar=False)
    if not stem.strict_img_size and not stem.dynamic_img_pad and (size[0] % side[0] or size[1] % side[1]):
        raise InputError(f"images of {size[0]}x{size[1]} pixels are not whole patches of {side[0]}x{side[1]}")
    return stem.dynamic_feat_size(size)


def _cut_grid(vit: ViT, pixels: Tensor, patches: Tensor | None) -> tuple[int, int]:
    """Rows and columns of the images from which `pixels` [B, k, C, h, w] were cut; InputError where they do not fit."""
    stem = vit.patch_embed
    found, side = (*pixels.shape[:2], *pixels.shape[3:]), stem.patch_size
    if patches is None or not embeds_kept_only(stem) or found != (*patches.shape, *side):
        raise InputError(
            f"pixels {list(pixels.shape)} of kept patches need a model that embeds those alone, of {side[0]}x{side[1]}"
            " pixels, and say with `patches` which they are"
        )
    rows, cols = stem.grid_size
    return rows, cols


def take(values: Tensor, indices: Tensor) -> Tensor:
    """Rows of `values` [B, P, D] at `indices` int64 [B, k], as [B, k, D]; an index outside the grid is an error."""
    return values.gather(1, indices.unsqueeze(-1).expand(-1, -1, values.shape[-1]))


def take_rotary(vit: ViT, table: Tensor, tokens: Tensor, patches: Tensor) -> Tensor:
    """Each image's rows of the rotary table [P, R] or (one table per block) [depth, heads, P, R].

    Returns [B, 1, k, R], or [depth, B, heads, k, R]: what timm's attention broadcasts over heads.
    """
    kept = apply_keep_indices_nlc(tokens, table, patches)
    return kept.transpose(0, 1) if vit.rope_mixed else kept.unsqueeze(1)


def rotary_of_block(vit: ViT, table: Tensor | None, block: int) -> Tensor | None:
    """The part of the rotary table that block number `block` uses."""
    return table[block] if table is not None and vit.rope_mixed else table


def embeds_kept_only(stem: nn.Module) -> bool:
    """True if patches can be cut out before they are embedded; convolutional and hybrid stems see their neighbours."""
    conv = getattr(stem, "proj", None)
    return (
        type(stem) is PatchEmbed
        and type(conv) is nn.Conv2d
        and conv.kernel_size == conv.stride == stem.patch_size
        and conv.padding == (0, 0)
        and conv.groups == 1
    )


def embed_patches(
    vit: ViT, images: Tensor, patches: Tensor | None, grid: tuple[int, int], sources: Tensor | None = None
) -> Tensor:
    """Projected patches [B, k, D] without positions."""
    stem = vit.patch_embed
    if patches is not None and sources is None and embeds_kept_only(stem):
        pixels = _cut(images, patches, grid, stem.patch_size).flatten(2)  # as the projection's weights lie
        return stem.norm(F.linear(pixels, stem.proj.weight.flatten(1), stem.proj.bias))
    tokens = stem(images)
    tokens = tokens.reshape(len(images), grid[0] * grid[1], tokens.shape[-1])
    if sources is not None:
        tokens = tokens.gather(0, sources.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))
    return tokens if patches is None else take(tokens, patches)


def _cut(images: Tensor, patches: Tensor, grid: tuple[int, int], side: tuple[int, int]) -> Tensor:
    """Pixels of the kept patches [B, k, C, h, w]; what is cut already stays as it is."""
    if images.ndim == 5:
        return images
    rows, cols = grid
    height, width = rows * side[0], cols * side[1]
    if height > images.shape[2] or width > images.shape[3]:  # dynamic_img_pad: timm pads below and to the right
        images = F.pad(images, (0, width - images.shape[3], 0, height - images.shape[2]))
    cells = images[:, :, :height, :width].unflatten(2, (rows, side[0])).unflatten(4, (cols, side[1]))
    batch = torch.arange(len(images), device=images.device).unsqueeze(1)
    return cells[batch, :, patches // cols, :, patches % cols]


def _prefix_and_positions(vit: ViT, grid: tuple[int, int], like: Tensor) -> tuple[Tensor, Tensor | None]:
    """Prefix tokens [1, n, D] with their positions, and the patches' position embeddings [1, P, D] if there are any."""
    tokens = [getattr(vit, name, None) for name in ("cls_token", "dist_token", "reg_token")]
    prefix = torch.cat([token for token in tokens if token is not None] or [like[:1, :0]], dim=1)
    positions: Tensor | None = vit.pos_embed
    if positions is None:
        return prefix, None
    with_position = 0 if vit.no_embed_class else vit.num_prefix_tokens
    if vit.dynamic_img_size:
        old = vit.patch_embed.grid_size
        positions = resample_abs_pos_embed(positions, list(grid), list(old), num_prefix_tokens=with_position)
    if with_position:
        prefix, positions = prefix + positions[:, :with_position], positions[:, with_position:]
    return prefix, positions


def _rotary_table(vit: ViT, grid: tuple[int, int]) -> Tensor | None:
    if not isinstance(vit, Eva) or vit.rope is None:
        return None
    kept = kept_table(vit, grid)
    if kept is not None:
        return kept
    rope: Any = vit.rope
    fixed = not vit.dynamic_img_size and hasattr(rope, "feat_shape")
    return rope.get_embed() if fixed else rope.get_embed(shape=list(grid))
