"""What a student is: a model that can be trained on some patches of its images, and says what that takes.

The loop, the evaluation and what results say ask a `Student`, never the model inside it. So another family (windows,
convolutions) is one file with one subclass, and one line in `students.py`.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from dlth.tickets.ranking.grid import Grid
from dlth.training.models.registry import flops_of, grid_of, patch_size_of


class Student(nn.Module, ABC):
    """Runs `model`, which is saved under its own names, on the patches of a ticket.

    Its grid and patches are those that the model embeds; a subclass says otherwise where the model has none.
    Raises InputError for a model whose patches cannot be left out.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    @classmethod
    @abstractmethod
    def takes(cls, model: nn.Module) -> bool:
        """Whether the model is of the families that this kind of student is for; it may be refused all the same."""

    @abstractmethod
    def forward(self, images: Tensor, patches: Tensor | None = None) -> Tensor:
        """Logits [B, classes] of normalised float images [B, C, height, width].

        `patches` int64 [B, k]: those that count, numbered row-major from 0, each once, in any order; None is all.
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
    def num_classes(self) -> int:
        """Size of the head, 0 where the model does not say."""
        return int(getattr(self.model, "num_classes", 0))

    def num_tokens(self, k: int) -> int:
        """Tokens that the model computes for an image of which k patches are kept: prefix tokens too."""
        return k + int(getattr(self.model, "num_prefix_tokens", 0))

    def flops(self, k: int | None = None) -> int:
        """Floating-point operations of an image's forward on k patches (None: all); a product and its sum are two.

        They are counted while a black image is run, by torch's counter, so they are what this machine computes.

        Raises:
            InputError: the model cannot see an image of its grid
        """
        device = next(self.parameters()).device
        patches = None if k is None else torch.arange(k, device=device)[None]
        size = self.grid.rows * self.patch_size, self.grid.cols * self.patch_size
        training = self.training
        flops = flops_of(lambda image: self.eval()(image, patches), size, device)
        self.train(training)
        return flops
