"""Images in a stated view: the frame of a ticket file, or the evaluation crop.

The sizes come from the header's `ViewSpec` itself, so that pixels and the recorded `View` cannot disagree. An image
many times longer than wide would be resized to gigabytes of which a centre crop then keeps a thousandth (30,000 x 1
pixels, 8 KB of JPEG, took 5.8 GB at 224 px), so of such an image only what the crop needs is resized.
"""

import math

import torch
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from dlth.tickets.errors import InputError, shown
from dlth.tickets.header import ViewSpec

MAX_RESIZED = 64 * 2**20
"""Pixels of a whole resized image (200 MB); beyond it only what the crop needs is resized."""
_MARGIN = 4
"""Pixels around a crop that its interpolation may use: bicubic's reach is 2."""


def render(image: torch.Tensor, spec: ViewSpec) -> torch.Tensor:
    """`image` uint8 [3, height, width] as the view shows it: uint8 [3, spec.height, spec.width].

    Raises InputError when the view names an interpolation that torchvision does not have.
    """
    try:
        interpolation = InterpolationMode(spec.interpolation)
    except ValueError:
        known = ", ".join(mode.value for mode in InterpolationMode)
        raise InputError(f"the view's interpolation {shown(spec.interpolation)!r} is none of {known}") from None
    height, width = image.shape[-2:]
    resized, (top, left) = spec.resized(height, width), spec.crop(height, width)
    if resized[0] * resized[1] > MAX_RESIZED:
        rows, tall, top = _needed(height, resized[0], top, spec.height)
        cols, wide, left = _needed(width, resized[1], left, spec.width)
        image, resized = image[:, rows, cols], (tall, wide)
    image = F.resize(image, list(resized), interpolation, antialias=spec.antialias)
    shown_pixels: torch.Tensor = F.crop(image, top, left, spec.height, spec.width)
    return shown_pixels


def _needed(side: int, resized: int, start: int, length: int) -> tuple[slice, int, int]:
    """Which pixels of one side the crop [start, start + length) of the resized side is made from.

    Gives those pixels, the size that they alone are resized to, and where the crop begins in that; the scale stays
    that of the whole side to within a pixel over the result. `_MARGIN` result or source pixels around it, whichever are
    more, are what interpolation looks at.
    """
    scale = resized / side
    margin = _MARGIN * max(1.0, 1.0 / scale)
    first = max(0, math.floor(start / scale - margin))
    last = min(side, math.ceil((start + length) / scale + margin))
    size = max(round((last - first) * scale), length)
    return slice(first, last), size, min(max(round(start - first * scale), 0), size - length)
