"""A model as an annotator: which classes it sees in each cell of its map, as token labelling asks.

A model's head is made for one pooled feature. Each cell is shown to it as if it were a whole image of one cell: pooling
one feature gives that feature, so whatever stands in timm's head (pooling, norms, hidden layers, the classifier) is
applied as it was trained, for convolutional networks, for models of tokens, and for those that keep channels last.
Where the head is linear after its pooling, the mean over cells is the image's own logits. LV-ViT has a head for its
patch tokens, which is asked instead. Rejected: a convolution with the classifier's weights, as LV-ViT's authors
do, which leaves out a norm between pooling and classifier (ConvNeXt, Swin) without a word.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dlth.tickets.errors import InputError
from dlth.tickets.format.label_header import NUM_BEST
from dlth.tickets.ranking.grid import Grid
from dlth.training.models.frame import Frame
from dlth.training.models.registry import ARGUMENTS, flops_of, grid_of, on_black_image

WHAT_CAN = "What can: timm's convolutional networks, Swin and vision transformers, such as dm_nfnet_f6 and resnet50"


class CellScores(NamedTuple):
    """Of a batch: `classes` int32 and raw `scores` float16, both [B, best, rows, columns], best first."""

    classes: Tensor
    scores: Tensor


class Annotator:
    """A model that labels the cells of an image; raises InputError for one that has no map, or no head for it.

    `frame`: what its images must be; `grid`: its cells; `num_classes`; `flops` of labelling an image.
    """

    def __init__(self, model: nn.Module, frame: Frame, num_best: int = NUM_BEST) -> None:
        self.model, self.frame = model.eval(), frame
        self.num_classes = int(getattr(model, "num_classes", 0))
        if self.num_classes < 2:
            raise InputError(f"{type(model).__name__} has no head whose classes could be labels; give --num-classes")
        self.num_best = min(num_best, self.num_classes)
        logits = on_black_image(self.cell_logits, frame.size, self.device, ARGUMENTS)
        self.grid = Grid(int(logits.shape[1]), int(logits.shape[2]))
        self.flops = flops_of(self.select, frame.size, self.device)

    @property
    def device(self) -> torch.device:
        """Where its images must be."""
        return next(self.model.parameters()).device

    @torch.no_grad()
    def select(self, images: Tensor) -> CellScores:
        """The best classes of each cell of normalised float images [B, 3, *frame.size], ties to the lower class."""
        logits = self.cell_logits(images).float()
        scores, classes = (part[..., : self.num_best] for part in logits.sort(dim=-1, descending=True, stable=True))
        largest = torch.finfo(torch.float16).max
        half = scores.clamp(-largest, largest).half()
        return CellScores(classes.int().permute(0, 3, 1, 2), half.permute(0, 3, 1, 2))

    def cell_logits(self, images: Tensor) -> Tensor:
        """Logits [B, rows, columns, classes] of each cell."""
        model: Any = self.model
        if not hasattr(model, "forward_features") or not hasattr(model, "forward_head"):
            raise InputError(f"{type(model).__name__} cannot label cells: it has no features and head. {WHAT_CAN}.")
        features: Tensor = model.forward_features(images)
        if features.ndim == 3:
            return self._of_tokens(features)
        if features.ndim != 4:
            raise InputError(f"{type(model).__name__} cannot label cells: its features are no map. {WHAT_CAN}.")
        last = _channels_last(model)
        cells = features if last else features.permute(0, 2, 3, 1)
        batch, rows, cols, width = cells.shape
        alone = cells.reshape(-1, 1, 1, width) if last else cells.reshape(-1, width, 1, 1)
        return self._head(alone).view(batch, rows, cols, -1)

    def _of_tokens(self, features: Tensor) -> Tensor:
        """Each patch token [B, prefix + P, D] in the place of every token that the head may look at."""
        prefix, grid = int(getattr(self.model, "num_prefix_tokens", 0)), grid_of(self.model)
        tokens = features[:, prefix:]
        if tokens.shape[1] != grid.num_patches:
            raise InputError(
                f"{type(self.model).__name__} cannot label cells: {tokens.shape[1]} tokens are no {grid} map."
                f" {WHAT_CAN}."
            )
        own_head: Callable[[Tensor], Tensor] | None = getattr(self.model, "aux_head", None)
        if own_head is not None:
            logits = own_head(tokens)
        else:
            alone = tokens.reshape(-1, 1, tokens.shape[-1]).expand(-1, prefix + 1, -1)
            logits = self._head(alone).view(len(features), grid.num_patches, -1)
        return logits.unflatten(1, (grid.rows, grid.cols))

    def _head(self, cells: Tensor) -> Tensor:
        model: Any = self.model
        logits: Tensor = model.forward_head(cells)
        if logits.shape != (len(cells), self.num_classes):
            raise InputError(
                f"{type(model).__name__} cannot label cells: its head gives {list(logits.shape[1:])} of one, not"
                f" {self.num_classes} logits. {WHAT_CAN}."
            )
        return logits


def _channels_last(model: nn.Module) -> bool:
    """Whether its feature map is [B, rows, columns, channels]."""
    return getattr(model, "output_fmt", "NCHW") == "NHWC"
