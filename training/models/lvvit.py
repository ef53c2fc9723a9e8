"""LV-ViT (Jiang et al., 2021, arXiv 2104.10858): a ViT with a convolutional stem, shrunk residuals and two heads.

It is timm's VisionTransformer but for three things, so a selector, a student and a recipe take it as they take that:
the stem (`ConvStem`), a factor on both residual branches (which stands where timm has layer scale), and a second head
that classifies each patch token. Parameters bear the names of the published checkpoints. timm has no LV-ViT;
`timm.create_model("lvvit_s")` works once dlth.training is imported (`training/timm_models.py`).

The stem's convolutions see a patch's neighbours, so all patches are embedded and dropped after. Computing only kept
patches and their surroundings was not tried: batch norm's means would be over other pixels, another model.

Axes: B images, P patches of the grid, k patches kept, N tokens (class token first), D width.
"""

from functools import partial
from typing import Any

import torch
from timm.layers import PatchEmbed
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from dlth.tickets.errors import InputError, shown
from dlth.training.models.token_logits import TokenLogits

PATCHES_SHARE = 0.5
"""What the best patch token adds to the logits of a class in evaluation; the authors' number."""


class ConvStem(PatchEmbed):
    """Three convolutions of `width` channels, of which the first halves the image, then one of a patch's size.

    A class for each width, as timm asks for a class: `partial(ConvStem, width)`.
    """

    def __init__(self, width: int, *, patch_size: int, in_chans: int, embed_dim: int, **options: Any) -> None:
        if not isinstance(patch_size, int) or patch_size < 2 or patch_size % 2:
            raise InputError(f"LV-ViT's stem halves the image first: patch_size must be even, got {shown(patch_size)}")
        super().__init__(patch_size=patch_size, in_chans=in_chans, embed_dim=embed_dim, **options)
        for number, (channels, side, stride) in enumerate(((in_chans, 7, 2), (width, 3, 1), (width, 3, 1)), start=1):
            conv = nn.Conv2d(channels, width, side, stride, padding=side // 2, bias=False)
            self.add_module(f"conv{number}", conv)
            self.add_module(f"bn{number}", nn.BatchNorm2d(width))
        self.proj = nn.Conv2d(width, embed_dim, patch_size // 2, patch_size // 2)

    def forward(self, x: Tensor) -> Tensor:
        """Embedded patches [B, P, D] of images [B, C, height, width]; [B, rows, cols, D] with dynamic_img_size."""
        height, width = x.shape[2:]
        if self.strict_img_size and (height, width) != self.img_size:
            raise InputError(f"images of {height}x{width} pixels do not fit a model of {self.img_size}")
        for number in (1, 2, 3):
            x = torch.relu(getattr(self, f"bn{number}")(getattr(self, f"conv{number}")(x)))
        tokens = self.proj(x).permute(0, 2, 3, 1)
        return tokens.flatten(1, 2) if self.flatten else tokens


class Shrunk(nn.Module):
    """A residual branch divided by a factor; it stands in the place of a block's layer scale, and has no weights."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, branch: Tensor) -> Tensor:
        """The branch, divided."""
        return branch / self.factor

    def extra_repr(self) -> str:
        """The factor, where the model is printed."""
        return f"{self.factor:g}"


class LVViT(VisionTransformer):
    """LV-ViT: in evaluation mode logits [B, classes], in training mode `TokenLogits`.

    Args:
        img_size, patch_size: in pixels; patch_size must be even
        skip: both residual branches of a block are divided by it
        stem_width: channels of the stem's first three convolutions
        num_classes: of both heads; 0 leaves them out, and gives the class token
        drop_path_rate: stochastic depth rate of the last block
        dynamic_img_size: take images of other sizes, with positions resampled, as timm does
    Raises:
        InputError: an odd patch size
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        embed_dim: int = 384,
        depth: int = 16,
        num_heads: int = 6,
        mlp_ratio: float = 3.0,
        skip: float = 2.0,
        stem_width: int = 64,
        num_classes: int = 1000,
        in_chans: int = 3,
        drop_path_rate: float = 0.0,
        dynamic_img_size: bool = False,
    ) -> None:
        super().__init__(
            img_size=img_size,
            patch_size=patch_size,
            in_chans=in_chans,
            num_classes=num_classes,
            embed_dim=embed_dim,
            depth=depth,
            num_heads=num_heads,
            mlp_ratio=mlp_ratio,
            qkv_bias=False,
            drop_path_rate=drop_path_rate,
            dynamic_img_size=dynamic_img_size,
            embed_layer=partial(ConvStem, stem_width),
            norm_layer=partial(nn.LayerNorm, eps=1e-5),
        )
        for block in self.blocks:
            block.ls1, block.ls2 = Shrunk(skip), Shrunk(skip)
        self.aux_head = self._new_head(num_classes)
        nn.init.trunc_normal_(self.get_parameter("cls_token"), std=0.02)

    def _new_head(self, num_classes: int) -> nn.Module:
        if num_classes == 0:
            return nn.Identity()
        weight = next(self.parameters())
        head = nn.Linear(self.embed_dim, num_classes, device=weight.device, dtype=weight.dtype)
        nn.init.trunc_normal_(head.weight, std=0.02)
        nn.init.zeros_(head.bias)
        return head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """As timm's models have it, for both heads."""
        super().reset_classifier(num_classes, global_pool)
        self.aux_head = self._new_head(num_classes)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor | TokenLogits:  # type: ignore[override]
        """What the heads make of normed tokens [B, N, D]; the class token [B, D] if `pre_logits` or without heads."""
        if pre_logits or self.num_classes == 0:
            return x[:, 0]
        logits = TokenLogits(self.head(x[:, 0]), self.aux_head(x[:, 1:]))
        return logits if self.training else logits.cls + PATCHES_SHARE * logits.patches.amax(dim=1)


_CFG: dict[str, Any] = {
    "num_classes": 1000,
    "input_size": (3, 224, 224),
    "fixed_input_size": True,
    "crop_pct": 0.9,
    "interpolation": "bicubic",
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
    "first_conv": "patch_embed.conv1",
    "classifier": ("head", "aux_head"),
}
_WHOLE = _CFG | {"crop_pct": 1.0}
default_cfgs = generate_default_cfgs({"lvvit_t": _CFG, "lvvit_s": _CFG, "lvvit_m": _WHOLE, "lvvit_l": _WHOLE})
"""What timm knows of the published models; it has no weights of them."""


def _create(name: str, pretrained: bool, **options: Any) -> LVViT:
    model: LVViT = build_model_with_cfg(LVViT, name, pretrained, **options)
    return model


@register_model
def lvvit_t(pretrained: bool = False, **options: Any) -> LVViT:
    """LV-ViT-T: 12 blocks of width 240, 8.5 M parameters."""
    size = {"embed_dim": 240, "depth": 12, "num_heads": 4, "skip": 1.0}
    return _create("lvvit_t", pretrained, **size | options)


@register_model
def lvvit_s(pretrained: bool = False, **options: Any) -> LVViT:
    """LV-ViT-S: 16 blocks of width 384, 26.2 M parameters."""
    size = {"embed_dim": 384, "depth": 16, "num_heads": 6, "skip": 2.0}
    return _create("lvvit_s", pretrained, **size | options)


@register_model
def lvvit_m(pretrained: bool = False, **options: Any) -> LVViT:
    """LV-ViT-M: 20 blocks of width 512, 55.8 M parameters."""
    size = {"embed_dim": 512, "depth": 20, "num_heads": 8, "skip": 2.0}
    return _create("lvvit_m", pretrained, **size | options)


@register_model
def lvvit_l(pretrained: bool = False, **options: Any) -> LVViT:
    """LV-ViT-L: 24 blocks of width 768, 150 M parameters, and a stem twice as wide."""
    size = {"embed_dim": 768, "depth": 24, "num_heads": 12, "skip": 3.0, "stem_width": 128}
    return _create("lvvit_l", pretrained, **size | options)
