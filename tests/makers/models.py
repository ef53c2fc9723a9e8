"""Tiny timm models of every family, with weights large enough that attention differs from patch to patch."""

import timm
import torch
from timm.layers import HybridEmbed
from timm.models.eva import Eva
from torch import nn

SIZE = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 4, "num_heads": 2, "num_classes": 5}
"""16 patches of a 4x4 grid."""


class OverlappingStem(HybridEmbed):
    """A convolutional stem whose patches see their neighbours."""

    def __init__(self, **kwargs: object) -> None:
        backbone = nn.Sequential(nn.Conv2d(3, 8, 3, 4, 1), nn.GELU(), nn.Conv2d(8, 8, 3, 2, 1))
        kwargs |= {"backbone": backbone, "patch_size": 1}
        super().__init__(**kwargs)


FAMILIES: dict[str, tuple[str, dict[str, object]]] = {
    "plain": ("vit_tiny_patch16_224", {}),
    "distilled": ("deit_tiny_distilled_patch16_224", {}),
    "registers": ("vit_small_patch14_reg4_dinov2", {}),
    "deit3": ("deit3_small_patch16_224", {"no_embed_class": True}),
    "dynamic": ("vit_tiny_patch16_224", {"dynamic_img_size": True}),
    "padded": ("vit_tiny_patch16_224", {"dynamic_img_size": True, "dynamic_img_pad": True}),
    "rectangle": ("vit_tiny_patch16_224", {"img_size": (32, 48)}),
    "no positions": ("vit_tiny_patch16_224", {"pos_embed": "none"}),
    "clip": ("vit_base_patch16_clip_224", {"qk_norm": True}),
    "overlapping": ("vit_tiny_patch16_224", {"embed_layer": OverlappingStem}),
    "eva02": ("eva02_tiny_patch14_224", {}),
    "eva02 clip": ("eva02_base_patch16_clip_224", {}),
    "dinov3": ("vit_small_patch16_dinov3", {}),
    "dinov3 dynamic": ("vit_small_patch16_dinov3", {"dynamic_img_size": True}),
    "rope mixed": ("vit_small_patch16_rope_mixed_ape_224", {}),
    "lvvit": ("lvvit_t", {"skip": 2.0, "stem_width": 8}),
    "lvvit dynamic": ("lvvit_t", {"stem_width": 8, "dynamic_img_size": True}),
    "sapiens2": ("vit_base_patch16_sapiens2", {"num_kv_heads": 1}),
}

WITHOUT_CLASS_TOKEN: dict[str, tuple[str, dict[str, object]]] = {
    "siglip": ("vit_base_patch16_siglip_224", {}),
    "mean": ("vit_base_patch16_reg4_gap_256", {}),
    "rotary mean": ("vit_medium_patch16_rope_reg1_gap_256", {}),
    "pooling with class token": ("vit_tiny_patch16_224", {"global_pool": "map", "pool_include_prefix": True}),
}
"""Families that EViT's rule cannot rank with, as the last never trained its class token by itself."""


def tiny_vit(family: str = "plain", seed: int = 0, **options: object) -> nn.Module:
    """A model of a family in evaluation mode; `options` go to timm."""
    name, changes = (FAMILIES | WITHOUT_CLASS_TOKEN)[family]
    torch.manual_seed(seed)
    vit = timm.create_model(name, **SIZE | changes | options)
    for key, weight in vit.named_parameters():
        if weight.ndim > 1 and not key.startswith("rope"):
            nn.init.normal_(weight, std=0.15)
    if isinstance(vit, Eva):
        for block in vit.blocks:  # layer scale starts at 1e-5 in some
            for gamma in (block.gamma_1, block.gamma_2):
                if gamma is not None:
                    nn.init.constant_(gamma, 0.5)
    return vit.eval()
