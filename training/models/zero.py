"""The student of any model: patches outside the ticket are zero in the image that it is given.

The paper's way for Swin and for a CNN, which need every place of the image filled. The image is normalised and mixed
already, so zero is the mean colour. Nothing is saved: the model computes what it would on all patches.
"""

import torch
from torch import Tensor, nn

from dlth.training.models.student import ImageStudent, check_patches, patch_grid


class ZeroStudent(ImageStudent):
    """Runs any module that takes images on images that show the ticket's patches alone."""

    how = "zero"

    @classmethod
    def takes(cls, model: nn.Module) -> bool:
        """Whatever takes an image."""
        return True

    def forward(self, images: Tensor, patches: Tensor | None = None) -> Tensor:
        """As `Student` has it."""
        if patches is not None:
            check_patches(patches, len(images))
            images = zeroed(images, patches, self.patch_size)
        logits: Tensor = self.model(images)
        return logits

    def labelled(self, patches: Tensor | None) -> None:
        """All of them: a patch that is zero has its token all the same."""

    def num_tokens(self, k: int) -> int:
        """All of them, whatever is kept."""
        return super().num_tokens(self.grid.num_patches)


def zeroed(images: Tensor, patches: Tensor, patch_size: int) -> Tensor:
    """Images [B, C, height, width] that are zero outside of `patches` int64 [B, k], numbered row-major.

    Chosen, not multiplied, so that not even a NaN comes through from a patch that is left out.
    Raises InputError for images that are not whole patches of `patch_size` pixels.
    """
    grid = patch_grid((images.shape[2], images.shape[3]), patch_size)
    kept = torch.zeros(len(images), grid.num_patches, dtype=torch.bool, device=images.device)
    kept = kept.scatter(1, patches, True).reshape(-1, 1, grid.rows, 1, grid.cols, 1)
    cells = images.unflatten(3, (grid.cols, patch_size)).unflatten(2, (grid.rows, patch_size))
    return torch.where(kept, cells, cells.new_zeros(())).reshape(images.shape)
