"""What a model looks at: how many patches of how many pixels, made from an image how."""

from dataclasses import dataclass
from typing import Self

import timm.data
import torch

from dlth.data.images.views import check_view
from dlth.tickets import Grid, ViewSpec
from dlth.tickets.errors import shown
from dlth.training.models.registry import grid_of, patch_size_of


@dataclass(frozen=True)
class Frame:
    """What a model looks at: its grid, its image size (height, width) in pixels, and how its images are made."""

    grid: Grid
    size: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str
    crop_pct: float

    def __post_init__(self) -> None:
        check_view(self.eval_view)

    @classmethod
    def of(
        cls,
        model: torch.nn.Module,
        grid: Grid | None = None,
        patch_size: int | None = None,
        mean: tuple[float, float, float] | None = None,
        std: tuple[float, float, float] | None = None,
        crop_pct: float | None = None,
        interpolation: str | None = None,
    ) -> Self:
        """As was said, otherwise as the model, and timm's configuration of it, have it.

        Raises:
            DlthError: a view that no image could be shown in
        """
        own, grid = timm.data.resolve_model_data_config(model), grid or grid_of(model)
        patch = patch_size or patch_size_of(model)
        return cls(
            grid,
            (grid.rows * patch, grid.cols * patch),
            tuple(mean or own["mean"]),
            tuple(std or own["std"]),
            interpolation or own["interpolation"],
            crop_pct or own["crop_pct"],
        )

    @property
    def patch_size(self) -> int:
        """Side of a patch in pixels."""
        return self.size[0] // self.grid.rows

    @property
    def eval_view(self) -> ViewSpec:
        """The frame of evaluation: timm's crop."""
        return ViewSpec("center", *self.size, str(self.crop_pct), self.interpolation, antialias=True)


def described(view: ViewSpec) -> str:
    """A view in words: ``center 224x224, crop 0.9, bicubic``."""
    crop = f", crop {float(view.crop_pct):g}" if view.kind == "center" else ""
    return f"{view.kind} {view.height}x{view.width}{crop}, {shown(view.interpolation, 20)}"
