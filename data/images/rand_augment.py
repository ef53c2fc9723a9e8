"""RandAugment after timm's strings (``rand-m9-mstd0.5-inc1``), of torchvision's operations, its geometry on record.

Every operation returns the image and, where it moves pixels, the affine map from output to input pixels, so that a
ticket can follow. Parameters are drawn from torch's generator, which `augment` seeds per sample and puts back.

Differences to timm, all in the pixels alone: warps are bilinear (torchvision warps tensors no other way), contrast and
saturation use torchvision's grey, and posterize keeps at least one bit (at none timm's fails, and the image is black).
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from dlth.tickets.errors import InputError, shown

Affine = NDArray[np.float64]
Fill = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class RandAugment:
    """`layers` operations are chosen at random, each applied with `prob`, at `magnitude` ± `std` within [0, `highest`].

    `increasing`: operations that have a direction grow stronger with the magnitude.
    """

    magnitude: float = 10.0
    std: float = 0.0
    highest: float = 10.0
    layers: int = 2
    prob: float = 0.5
    increasing: bool = False

    @classmethod
    def parse(cls, text: str) -> "RandAugment":
        """timm's string: ``rand``, then ``m``, ``mstd``, ``mmax``, ``n``, ``p``, ``inc`` with a number, by dashes.

        Raises InputError for another policy and for a part that is not among these, naming it.
        """
        policy, *sections = text.split("-")
        if policy != "rand":
            raise InputError(
                f"augmentation policy {shown(policy)!r} is not known here: tickets follow RandAugment strings such as "
                "'rand-m9-mstd0.5-inc1' (augmix blends several warped copies, so no single view is left to follow)"
            )
        values: dict[str, float | int | bool] = {}
        for section in sections:
            match = re.fullmatch(r"(m|mstd|mmax|n|p|inc)([0-9]{1,9}(?:\.[0-9]{1,17})?|inf)", section)
            if not match:
                raise InputError(
                    f"part {shown(section)!r} of {shown(text)!r} is not known: use m, mstd, mmax, n, p and inc, "
                    "each with a number"
                )
            field, kind, most = _SECTIONS[match[1]]
            number = float(match[2])
            if number > most or (kind is not float and number % 1):
                whole = " in whole numbers" if kind is not float else ""
                raise InputError(f"part {shown(section)!r} of {shown(text)!r}: {match[1]} goes from 0 to {most}{whole}")
            values[field] = kind(number)
        return cls(**values)  # type: ignore[arg-type]

    def __call__(self, image: torch.Tensor, fill: Fill) -> tuple[torch.Tensor, list[Affine]]:
        """The augmented image uint8 [3, height, width] and the maps of what moved, in order, output to input pixels."""
        moved = []
        for chosen in torch.randint(len(OPERATIONS), (self.layers,)).tolist():
            if torch.rand(()).item() >= self.prob:
                continue
            level = self._magnitude() / 10.0
            sign = -1.0 if torch.rand(()).item() < 0.5 else 1.0
            image, affine = OPERATIONS[chosen](image, Level(level, sign, self.increasing), fill)
            if affine is not None:
                moved.append(affine)
        return image, moved

    def _magnitude(self) -> float:
        if self.std > 100:  # timm's word for a uniform draw
            return min(torch.rand(()).item() * self.magnitude, self.highest)
        drawn = self.magnitude + (torch.randn(()).item() * self.std if self.std else 0.0)
        return max(0.0, min(drawn, self.highest))


_SECTIONS: dict[str, tuple[str, Callable[[float], float | int | bool], float]] = {
    "m": ("magnitude", float, 100),
    "mstd": ("std", float, math.inf),
    "mmax": ("highest", float, 100),
    "n": ("layers", int, 15),
    "p": ("prob", float, 1),
    "inc": ("increasing", bool, 1),
}
"""A part's field, type and largest value. A strength of 10 is timm's usual most, and ten times that leaves nothing of
an image; more operations than the fifteen that there are, by a slip of the key, take hours for an image."""


@dataclass(frozen=True, slots=True)
class Level:
    """How strong (0 to 1 at timm's usual magnitudes), which way, and whether strength grows with the level."""

    value: float
    sign: float
    increasing: bool

    @property
    def factor(self) -> float:
        """Enhancement factor: 1 changes nothing."""
        if self.increasing:
            return max(0.1, 1.0 + self.sign * self.value * 0.9)
        return self.value * 1.8 + 0.1


Operation = Callable[[torch.Tensor, Level, Fill], tuple[torch.Tensor, Affine | None]]


def _posterize(image: torch.Tensor, level: Level) -> torch.Tensor:
    dropped = int(level.value * 4)
    kept: torch.Tensor = F.posterize(image, max(1, 4 - dropped if level.increasing else dropped))
    return kept


def _solarize(image: torch.Tensor, level: Level) -> torch.Tensor:
    threshold = min(256, int(level.value * 256))
    threshold = 256 - threshold if level.increasing else threshold
    return image if threshold == 256 else F.solarize(image, threshold)


def _solarize_add(image: torch.Tensor, level: Level) -> torch.Tensor:
    return torch.where(image < 128, image + min(127, int(level.value * 110)), image)


def _colour(change: Callable[[torch.Tensor, Level], torch.Tensor]) -> Operation:
    """An operation that leaves every pixel where it is."""

    def apply(image: torch.Tensor, level: Level, fill: Fill) -> tuple[torch.Tensor, None]:
        return change(image, level), None

    return apply


def _shear(axis: int) -> Operation:
    def apply(image: torch.Tensor, level: Level, fill: Fill) -> tuple[torch.Tensor, Affine]:
        factor = level.sign * level.value * 0.3
        degrees = [0.0, 0.0]
        degrees[axis] = math.degrees(math.atan(factor))
        warped = F.affine(
            image, 0.0, [0, 0], 1.0, degrees, InterpolationMode.BILINEAR, fill=list(fill), center=[0.0, 0.0]
        )
        affine = np.eye(2, 3)
        affine[axis, 1 - axis] = factor
        return warped, affine

    return apply


def _translate(axis: int) -> Operation:
    def apply(image: torch.Tensor, level: Level, fill: Fill) -> tuple[torch.Tensor, Affine]:
        pixels = level.sign * level.value * 0.45 * image.shape[2 - axis]
        shift = [0.0, 0.0]
        shift[axis] = -pixels
        warped = F.affine(image, 0.0, shift, 1.0, [0.0, 0.0], InterpolationMode.BILINEAR, fill=list(fill))
        affine = np.eye(2, 3)
        affine[axis, 2] = pixels
        return warped, affine

    return apply


def _rotate(image: torch.Tensor, level: Level, fill: Fill) -> tuple[torch.Tensor, Affine]:
    degrees = level.sign * level.value * 30.0
    warped = F.rotate(image, degrees, InterpolationMode.BILINEAR, fill=list(fill))
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    center = np.array([image.shape[2] / 2, image.shape[1] / 2])
    turn = np.array([[cos, -sin], [sin, cos]])
    return warped, np.column_stack([turn, center - turn @ center])


OPERATIONS: tuple[Operation, ...] = (
    _colour(lambda image, level: F.autocontrast(image)),
    _colour(lambda image, level: F.equalize(image)),
    _colour(lambda image, level: F.invert(image)),
    _rotate,
    _colour(_posterize),
    _colour(_solarize),
    _colour(_solarize_add),
    _colour(lambda image, level: F.adjust_saturation(image, level.factor)),
    _colour(lambda image, level: F.adjust_contrast(image, level.factor)),
    _colour(lambda image, level: F.adjust_brightness(image, level.factor)),
    _colour(lambda image, level: F.adjust_sharpness(image, level.factor)),
    _shear(0),
    _shear(1),
    _translate(0),
    _translate(1),
)
"""timm's fifteen, in timm's order."""
