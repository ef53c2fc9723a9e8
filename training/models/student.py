"""What a student is: a model that can be trained on some patches of its images, and says what that takes.

The loop, the evaluation and what results say ask a `Student`, never the model inside it. So another family (windows,
convolutions), or another way to leave patches out, is one file with one subclass, and one line in `students.py`.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from dlth.tickets import Budget
from dlth.tickets.errors import InputError
from dlth.tickets.ranking.grid import Grid
from dlth.training.models.registry import flops_of, grid_of, image_size_of, one_patch_size_of, patch_size_of
from dlth.training.models.token_logits import TokenLogits

PATCH_SIZE = 16
"""Side of a ticket's patch in pixels for models that have no patches of one size: that of the paper's selectors."""


class Student(nn.Module, ABC):
    """Runs `model`, which is saved under its own names, on the patches of a ticket; `how` is its name in `STUDENTS`.

    Its grid and patches are those that the model embeds; `ImageStudent` is for models that have none of one size.
    `mixes_tokens`: whether its forward takes `sources`, for MixToken. `embeds_kept_only`: whether it takes the pixels
    of kept patches in place of the images that they were cut from.
    Raises InputError for a model whose patches cannot be left out, or whose patches are not of `patch_size` pixels.
    """

    how = "sparse"
    mixes_tokens = False
    embeds_kept_only = False

    def __init__(self, model: nn.Module, patch_size: int | None = None) -> None:
        super().__init__()
        self.model = model
        if patch_size not in (None, self.patch_size):
            raise InputError(
                f"{type(model).__name__} runs on its own patches of {self.patch_size} pixels, not of {patch_size}:"
                " tickets of another grid are moved to it"
            )

    @classmethod
    @abstractmethod
    def takes(cls, model: nn.Module) -> bool:
        """Whether the model is of the families that this kind of student is for; it may be refused all the same."""

    @abstractmethod
    def forward(self, images: Tensor, patches: Tensor | None = None) -> Tensor | TokenLogits:
        """Logits [B, classes] of normalised float images [B, C, height, width]; LV-ViT's `TokenLogits` in training.

        `patches` int64 [B, k]: those that count, numbered row-major from 0, each once, in any order; None is all. Where
        the student `embeds_kept_only`, `images` may be their pixels alone, [B, k, C, h, w].
        """

    @property
    def grid(self) -> Grid:
        """Rows and columns of the patches that a ticket names."""
        return grid_of(self.model)

    @property
    def patch_size(self) -> int:
        """Side of such a patch in pixels."""
        return patch_size_of(self.model)

    @property
    def budget(self) -> Budget | None:
        """What the model drops by itself when it is asked to (`forward(images, budget=…)`); None if it never does."""
        return None

    @property
    def num_classes(self) -> int:
        """Size of the head, 0 where the model does not say."""
        return int(getattr(self.model, "num_classes", 0))

    def most_kept(self, k: int) -> int:
        """How many patches are run where k are kept: all of them, unless a subclass cannot take any number."""
        return k

    def labelled(self, patches: Tensor | None) -> Tensor | None:
        """The patches that the model's `TokenLogits` are of, in their order, where `patches` are kept; None is all."""
        return patches

    def num_tokens(self, k: int) -> int:
        """Tokens in the model's first blocks for an image of which k patches are kept: prefix tokens too."""
        return k + int(getattr(self.model, "num_prefix_tokens", 0))

    def flops(self, k: int | None = None) -> int:
        """Floating-point operations of an image's forward on k patches (None: all); a product and its sum are two.

        They are counted while a black image is run, by torch's counter, so they are what this machine computes.

        Raises:
            InputError: the model cannot see an image of its grid
        """
        return self._counted(lambda image: self.on_first(image, k))

    def step_flops(self, budget: Budget) -> int:
        """As `flops`, of the forward of a training step that keeps what `budget` says."""
        return self.flops(None if budget.keeps_all else budget.k)

    def _counted(self, forward: Callable[[Tensor], object]) -> int:
        size = self.grid.rows * self.patch_size, self.grid.cols * self.patch_size
        training = self.training
        # without autograd the counter fails where a module is given a view of a weight (SigLIP); nothing is kept for it
        with saved_tensors_hooks(lambda kept: None, lambda kept: kept):
            flops = flops_of(torch.enable_grad()(forward), size, next(self.eval().parameters()).device)
        self.train(training)
        return flops

    def on_first(self, images: Tensor, k: int | None) -> Tensor | TokenLogits:
        """What `forward` gives of the first k patches, or of all; a subclass that is given none says what k means."""
        patches = None if k is None else torch.arange(k, device=images.device).expand(len(images), -1)
        output: Tensor | TokenLogits = self(images, patches)
        return output


class ImageStudent(Student):
    """A student whose patches are squares of the image, whatever the model makes of its pixels.

    `patch_size`: their side, that of the tickets; None is the model's own where all its tokens are of one size, else
    16. Patches are counted in the image that is given, `grid` in one of the model's size.
    """

    def __init__(self, model: nn.Module, patch_size: int | None = None) -> None:
        self._patch_size = patch_size or one_patch_size_of(model) or PATCH_SIZE
        super().__init__(model)

    @property
    def grid(self) -> Grid:
        """Rows and columns of patches in an image of the model's size; raises InputError as `patch_grid`."""
        return patch_grid(image_size_of(self.model), self.patch_size)

    @property
    def patch_size(self) -> int:
        """Side of a patch in pixels."""
        return self._patch_size

    def num_tokens(self, k: int) -> int:
        """As `Student` has it: as many as the model embeds of k patches; of a model without tokens, k."""
        stem: Any = getattr(self.model, "patch_embed", None)
        token = stem.feat_ratio(as_scalar=False) if hasattr(stem, "feat_ratio") else (self.patch_size,) * 2
        return super().num_tokens(k * self.patch_size**2 // math.prod(token))


def patch_grid(size: tuple[int, int], patch_size: int) -> Grid:
    """Rows and columns of patches of an image of `size` (height, width) pixels; InputError where they do not fit."""
    if patch_size < 1 or size[0] % patch_size or size[1] % patch_size:
        raise InputError(
            f"images of {size[0]}x{size[1]} pixels are not whole patches of {patch_size}x{patch_size}: give a"
            " --patch-size, or an --img-size, that fits"
        )
    return Grid(size[0] // patch_size, size[1] // patch_size)


def check_patches(patches: Tensor, num_images: int) -> None:
    """Raises InputError for what is no int64 [num_images, k] of at least one patch; torch itself refuses an index
    outside the grid, where it is read: looking at values here would wait for a GPU.
    """
    if not isinstance(patches, Tensor):
        raise InputError(f"patches must be an int64 tensor [batch, k], got a {type(patches).__name__}")
    shape = tuple(patches.shape)
    if patches.dtype != torch.int64 or len(shape) != 2 or shape[0] != num_images or shape[1] == 0:
        raise InputError(
            f"patches must be int64 [batch, k] for a batch of {num_images}, got {patches.dtype} {list(shape)}"
            + (": k is at least 1" if 0 in shape[1:] else "")
        )
