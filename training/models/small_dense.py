"""The student of a smaller image: a ticket's patches, in row-major order, are laid out as a square of their own.

The paper's way to save a Swin's work: 144 of 196 patches are an image of 192 pixels in place of 224. Neighbours in it
need not have been neighbours, and a patch's place says only how many kept ones come before it. The number of patches is
a square: of any other, the best ones that make a square are taken.
"""

import math

import torch
from torch import Tensor, nn

from dlth.tickets.errors import InputError
from dlth.training.models.embedding import take
from dlth.training.models.small_windows import Swin, run_as, set_to
from dlth.training.models.student import ImageStudent, check_patches, patch_grid


class SmallDense(ImageStudent):
    """Runs a module that takes images of several sizes, or a Swin, on smaller images of the ticket's patches.

    Raises InputError for a model of timm's that takes images of one size.
    """

    how = "small-dense"

    def __init__(self, model: nn.Module, patch_size: int | None = None) -> None:
        super().__init__(model, patch_size)
        if getattr(getattr(model, "patch_embed", None), "strict_img_size", False) and not isinstance(model, Swin):
            raise InputError(
                f"{type(model).__name__} takes images of one size, and --how small-dense gives it smaller ones: build"
                " it with dynamic_img_size=True, or leave --how out"
            )
        self._small: dict[tuple[int, torch.device, torch.dtype], nn.Module] = {}  # in no state_dict: without weights

    @classmethod
    def takes(cls, model: nn.Module) -> bool:
        """Whatever takes an image."""
        return True

    def forward(self, images: Tensor, patches: Tensor | None = None) -> Tensor:
        """As `Student` has it; where k is no square, `patches` come best first and the last ones are left out."""
        if patches is not None:
            check_patches(patches, len(images))
            images = laid_out(images, patches, self.patch_size)
        if patches is not None and isinstance(self.model, Swin):
            return self._run_swin(self.model, images)
        logits: Tensor = self.model(images)
        return logits

    def _run_swin(self, swin: Swin, images: Tensor) -> Tensor:
        key = images.shape[-1], images.device, next(swin.parameters()).dtype
        if key not in self._small:
            self._small[key] = set_to(swin, images.shape[-1])
        small = self._small[key]
        if small.training != swin.training:  # whoever set the mode, of the student or of the model itself
            small.train(swin.training)
        return run_as(small, swin, images)

    def most_kept(self, k: int) -> int:
        """The largest square that is not above k."""
        return math.isqrt(k) ** 2

    def labelled(self, patches: Tensor | None) -> Tensor | None:
        """Those that are laid out, in row-major order."""
        return None if patches is None else _ordered(patches)

    def num_tokens(self, k: int) -> int:
        """As many as there are in the smaller image."""
        return super().num_tokens(self.most_kept(k))


def laid_out(images: Tensor, patches: Tensor, patch_size: int) -> Tensor:
    """The patches int64 [B, k] of images [B, C, height, width] as square images, [B, C, side, side].

    They keep their row-major order. Of a k that is no square the first patches count, as many as make one.
    Raises InputError for images that are not whole patches of `patch_size` pixels.
    """
    grid = patch_grid((images.shape[2], images.shape[3]), patch_size)
    ordered = _ordered(patches)
    side = math.isqrt(ordered.shape[1])
    cells = images.unflatten(3, (grid.cols, patch_size)).unflatten(2, (grid.rows, patch_size))
    pixels = cells.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)  # [B, patches, C · patch · patch]
    kept = take(pixels, ordered).unflatten(2, (images.shape[1], patch_size, patch_size))
    rows = kept.unflatten(1, (side, side)).permute(0, 3, 1, 4, 2, 5)
    return rows.reshape(len(images), images.shape[1], side * patch_size, side * patch_size)


def _ordered(patches: Tensor) -> Tensor:
    """The first patches of each image that make a square, in row-major order."""
    return patches[:, : math.isqrt(patches.shape[1]) ** 2].sort(dim=1).values
