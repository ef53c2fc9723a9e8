"""How large the models are that a device is compared with the CPU on: real ones on a GPU, tiny ones on a CPU."""

from dataclasses import dataclass
from typing import Any

import timm
import torch
from torch import nn

from dlth.tickets import Grid


@dataclass(frozen=True)
class Scale:
    """A vision transformer and its images: sides in pixels, and how many images a batch has."""

    img_size: int
    patch_size: int
    width: int
    depth: int
    heads: int
    batch: int

    model = "vit_tiny_patch16_224"

    @property
    def kwargs(self) -> dict[str, Any]:
        """What timm is asked for besides the image's side."""
        named = {"patch_size": self.patch_size, "embed_dim": self.width}
        return named | {"depth": self.depth, "num_heads": self.heads}

    @property
    def grid(self) -> Grid:
        """Its patches."""
        side = self.img_size // self.patch_size
        return Grid(side, side)

    def vit(self, num_classes: int = 4, **options: Any) -> nn.Module:
        """The model in evaluation mode on the CPU, of seeded weights by which attention differs from patch to patch, by
        a quarter of its mean: with less, all scores are nearly ties, and with much more they are 0 or 1. `options` go
        to timm.
        """
        torch.manual_seed(0)
        vit = timm.create_model(self.model, img_size=self.img_size, num_classes=num_classes, **self.kwargs, **options)
        for weight in vit.parameters():
            if weight.ndim > 1:
                nn.init.normal_(weight, std=0.15 * (32 / self.width) ** 0.5)
        return vit.eval()


SELECTORS = {"cuda": Scale(224, 16, 384, 12, 6, batch=12), "cpu": Scale(32, 8, 32, 4, 2, batch=24)}
"""DeiT-S on a GPU."""
STUDENTS = {"cuda": Scale(224, 16, 192, 4, 3, batch=8), "cpu": Scale(32, 8, 32, 2, 2, batch=8)}
"""A third of DeiT-T on a GPU."""
