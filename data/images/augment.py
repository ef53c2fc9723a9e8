"""Training augmentation with its geometry on record: an image goes in, pixels and the `View` they show come out.

Crop, mirror and RandAugment's shears, rotations and translations are composed into one affine view, so that a ticket
follows the pixels exactly; colours and erasing move nothing. Everything is torchvision's `transforms.v2`; its
parameters come from torch's generator, which is seeded here from the sample's own name (seed, epoch, key) and put back
afterwards: what a sample looks like depends on nothing else, and nobody else's random numbers change.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from dlth.data.images.rand_augment import RandAugment
from dlth.data.images.visibility import hidden_by_warps
from dlth.tickets.errors import InputError
from dlth.tickets.ranking.grid import Grid
from dlth.tickets.ranking.projection import covered
from dlth.tickets.ranking.view import View
from dlth.tickets.seeding import Part, derive

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """What a training image undergoes, in this order. Raises InputError for values that make no sense.

    `mean` and `std` (of [0, 1] pixels) are the normalisation that the model will apply: warps fill with the mean, and
    the noise of erasing is normal after it.
    """

    size: tuple[int, int] = (224, 224)
    """Height and width of the result, pixels."""
    scale: tuple[float, float] = (0.08, 1.0)
    """Share of the image's area that the crop takes."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Width over height of the crop."""
    interpolation: str = "bicubic"
    """Of the resize, antialiased: bicubic or bilinear."""
    hflip: float = 0.5
    """Probability of a mirror."""
    rand_augment: str = ""
    """timm's string, such as rand-m9-mstd0.5-inc1; empty for none."""
    color_jitter: float = 0.0
    """Brightness, contrast and saturation change by up to this factor. (timm switches it off beside RandAugment.)"""
    reprob: float = 0.0
    """Probability of random erasing (timm's mode 'pixel': one box of noise, 2 to 33 % of the area)."""
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    def __post_init__(self) -> None:
        if min(self.size) < 1:
            raise InputError(f"augmented images have a size of at least 1x1, got {self.size}")
        for name, (low, high), least, top in (("scale", self.scale, 0.0, 1.0), ("ratio", self.ratio, 0.001, 1000.0)):
            if not (0 < low <= high <= top and low >= least):  # a crop 1,000 times as wide as high shows nothing
                least_text = f"from {least}" if least else "above 0"
                raise InputError(f"{name} must be two rising numbers {least_text} up to {top}, got ({low}, {high})")
        for name, value, top in (
            ("hflip", self.hflip, 1),
            ("reprob", self.reprob, 1),
            ("color_jitter", self.color_jitter, 10),
        ):
            if not 0 <= value <= top:
                raise InputError(f"{name} must lie between 0 and {top}, got {value}")
        if self.interpolation not in ("bicubic", "bilinear"):
            raise InputError(f"interpolation must be bicubic or bilinear, got {self.interpolation!r}")
        if self.rand_augment:
            RandAugment.parse(self.rand_augment)


@dataclass(frozen=True, slots=True)
class Augmented:
    """One sample's training image and where it came from.

    `image` uint8 [3, height, width]; `view`: from the result's unit square to the image's; `hidden` float64 [patches]:
    the share of each patch that shows fill or noise instead of the image, None where nothing does.
    """

    image: torch.Tensor
    view: View
    hidden: NDArray[np.float64] | None


def augment(image: torch.Tensor, config: Augmentation, grid: Grid, *key: Part) -> Augmented:
    """Augment `image` uint8 [3, height, width] as `key` (seed, epoch, sample key) says; `grid` is the model's."""
    with _drawing(derive("augment", *key)):
        return _Pipeline.of(config)(image, grid)


@dataclass(frozen=True)
class _Pipeline:
    """A config's transforms, built once."""

    config: Augmentation
    crop: v2.RandomResizedCrop
    rand_augment: RandAugment | None
    jitter: v2.ColorJitter | None
    erasing: v2.RandomErasing
    fill: tuple[float, float, float]

    @staticmethod
    @lru_cache(maxsize=8)
    def of(config: Augmentation) -> "_Pipeline":
        jitter = config.color_jitter
        return _Pipeline(
            config,
            v2.RandomResizedCrop(config.size, config.scale, config.ratio),
            RandAugment.parse(config.rand_augment) if config.rand_augment else None,
            v2.ColorJitter(jitter, jitter, jitter) if jitter else None,
            v2.RandomErasing(scale=(0.02, 1 / 3), ratio=(0.3, 1 / 0.3), value="random"),
            tuple(float(round(255 * value)) for value in config.mean),  # type: ignore[arg-type]
        )

    def __call__(self, image: torch.Tensor, grid: Grid) -> Augmented:
        image, view = self._crop(image, grid)
        hidden = None
        if torch.rand(()).item() < self.config.hflip:
            image, view = F.horizontal_flip(image), view.mirrored()
        if self.rand_augment:
            image, moved = self.rand_augment(image, self.fill)
            warps = [_in_unit_square(affine, self.config.size) for affine in moved]
            for warp in warps:
                view = view.warped(warp)
            hidden = hidden_by_warps(warps, grid) if warps else None
        if self.jitter:
            image = self.jitter(image)
        if torch.rand(()).item() < self.config.reprob:
            image, erased = self._erase(image, grid)
            hidden = erased if hidden is None else 1.0 - (1.0 - hidden) * (1.0 - erased)
        return Augmented(image, view, hidden)

    def _crop(self, image: torch.Tensor, grid: Grid) -> tuple[torch.Tensor, View]:
        (height, width), box = image.shape[-2:], self.crop.make_params([image])
        top, left, bottom, right = box["top"], box["left"], box["top"] + box["height"], box["left"] + box["width"]
        view = View.from_box(left / width, top / height, right / width, bottom / height, grid)
        interpolation = v2.InterpolationMode(self.config.interpolation)
        size = list(self.config.size)
        return F.resized_crop(image, **box, size=size, interpolation=interpolation, antialias=True), view

    def _erase(self, image: torch.Tensor, grid: Grid) -> tuple[torch.Tensor, NDArray[np.float64]]:
        """Paint one box with noise, normal after normalisation, as uint8 (so cut off at 0, 255); and what it hides."""
        params = self.erasing.make_params([image])
        if params["v"] is None:  # no box of that area and shape fits
            return image, np.zeros(grid.num_patches)
        mean, std = (torch.tensor(values)[:, None, None] for values in (self.config.mean, self.config.std))
        params["v"] = ((params["v"] * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)
        (height, width), top, left = self.config.size, params["i"], params["j"]
        right, bottom = (left + params["w"]) / width, (top + params["h"]) / height
        return F.erase(image, **params), covered(np.array([[left / width, top / height, right, bottom]]), grid)[0]


def _in_unit_square(affine: NDArray[np.float64], size: tuple[int, int]) -> NDArray[np.float64]:
    """A map of pixels [2, 3] as a map of the unit square."""
    height, width = size
    scale = np.array([width, height], dtype=np.float64)
    result: NDArray[np.float64] = affine * np.array([width, height, 1.0]) / scale[:, None]
    return result


@contextmanager
def _drawing(seed: int) -> Iterator[None]:
    """Seed torch's CPU generator for the block; its state is as it was afterwards, also when the block fails."""
    state = torch.random.get_rng_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.random.set_rng_state(state)
