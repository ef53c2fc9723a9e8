"""The student of a smaller image: a ticket's patches, in row-major order, are laid out as a square of their own.

The paper's way to save a Swin's work: 144 of 196 patches are an image of 192 pixels in place of 224. Neighbours in it
need not have been neighbours, and a patch's place says only how many kept ones come before it. The number of patches is
a square: of any other, the best ones that make a square are taken.
"""

import math

import torch
from torch import Tensor, nn

from dlth.training.models.student import ImageStudent, patch_grid


class SmallDense(ImageStudent):
    """Runs a module that takes images of several sizes on smaller images of the ticket's patches."""

    @classmethod
    def takes(cls, model: nn.Module) -> bool:
        """Whatever takes an image; whether it takes a smaller one shows when it is run."""
        return True

    def forward(self, images: Tensor, patches: Tensor | None = None) -> Tensor:
        """As `Student` has it; where k is no square, `patches` come best first and the last ones are left out."""
        logits: Tensor = self.model(images if patches is None else laid_out(images, patches, self.patch_size))
        return logits

    def most_kept(self, k: int) -> int:
        """The largest square that is not above k."""
        return math.isqrt(k) ** 2

    def num_tokens(self, k: int) -> int:
        """As many as there are in the smaller image."""
        return super().num_tokens(self.most_kept(k))


def laid_out(images: Tensor, patches: Tensor, patch_size: int) -> Tensor:
    """The patches int64 [B, k] of images [B, C, height, width] as square images, [B, C, side, side].

    They keep their row-major order. Of a k that is no square the first patches count, as many as make one.
    Raises InputError for images that are not whole patches of `patch_size` pixels.
    """
    grid = patch_grid((images.shape[2], images.shape[3]), patch_size)
    side = math.isqrt(patches.shape[1])
    ordered = patches[:, : side**2].sort(dim=1).values
    cells = images.unflatten(3, (grid.cols, patch_size)).unflatten(2, (grid.rows, patch_size))
    batch = torch.arange(len(images), device=images.device)[:, None]
    kept = cells[batch, :, ordered // grid.cols, :, ordered % grid.cols]  # [B, k, C, patch, patch]
    rows = kept.unflatten(1, (side, side)).permute(0, 3, 1, 4, 2, 5)
    return rows.reshape(len(images), images.shape[1], side * patch_size, side * patch_size)
