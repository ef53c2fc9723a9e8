"""A Swin on a smaller image with its own weights: windows divide it, and biases stay those of their distances.

timm sets a Swin to another size for good, and stretches the tables of biases to the new windows. Here the model stays
as it is: a copy without weights is set to the size, which gives its windows, masks and indices, and is run with the
weights of the model. A smaller window uses the middle of its table, and in a larger one distances beyond the table
count as its longest; V2's biases are a function of distance, which is kept in the scale of the model's own windows.
"""

import copy
import math
from typing import Any

import torch
from timm.models.swin_transformer import SwinTransformer
from timm.models.swin_transformer_v2 import SwinTransformerV2
from torch import Tensor, nn
from torch.func import functional_call

Swin = SwinTransformer | SwinTransformerV2
TABLE = "relative_position_bias_table"


@torch.inference_mode(False)
def set_to(swin: Swin, side: int) -> nn.Module:
    """A copy of the model without weights, for square images of `side` pixels, on its device and in its mode."""
    small: Any = copy.deepcopy(swin)
    small.patch_embed.set_input_size(img_size=side)
    size: tuple[int, int] = small.patch_embed.grid_size
    for stage in small.layers:
        merges = not isinstance(stage.downsample, nn.Identity)
        own = stage.blocks[0].attn.window_size
        for block in stage.blocks:
            if not any(getattr(block.attn, "pretrained_window_size", (1,))):
                block.attn.pretrained_window_size = own
        after = (math.ceil(size[0] / 2), math.ceil(size[1] / 2)) if merges else size
        stage.set_input_size(size, (_window(after[0], own[0]), _window(after[1], own[1])))
        size = after
    for weight in small.parameters():
        weight.data = weight.data.new_empty(0)
    return small


def run_as(small: nn.Module, swin: Swin, images: Tensor) -> Tensor:
    """Logits of images [B, C, side, side] by what `set_to` gave for that side, with the weights of the model."""
    windows = {name: module.window_size for name, module in small.named_modules() if hasattr(module, TABLE)}
    weights = {
        name: _cut(weight, windows[name.removesuffix(f".{TABLE}")]) if name.endswith(TABLE) else weight
        for name, weight in swin.named_parameters()
    }
    logits: Tensor = functional_call(small, weights, (images,))
    return logits


def _window(tokens: int, own: int) -> int:
    """The side of windows that divides a side of so many tokens and is nearest, by ratio, to the model's own."""
    divisors = [divisor for divisor in range(1, tokens + 1) if tokens % divisor == 0]
    return min(divisors, key=lambda divisor: abs(math.log(divisor / own)))


def _cut(table: Tensor, window: tuple[int, int]) -> Tensor:
    """Biases [(2 h - 1) (2 w - 1), heads] for windows of h by w of a table of the model's own square windows."""
    reach = (math.isqrt(len(table)) - 1) // 2
    rows, cols = (torch.arange(1 - side, side, device=table.device).clamp(-reach, reach) + reach for side in window)
    return table[(rows[:, None] * (2 * reach + 1) + cols).flatten()]
