"""Images in a stated view: the frame of a ticket file, or the evaluation crop.

The sizes come from the header's `ViewSpec` itself, so that pixels and the recorded `View` cannot disagree. An image
many times longer than wide would be resized to gigabytes of which a centre crop then keeps a thousandth (30,000 x 1
pixels, 8 KB of JPEG, took 5.8 GB at 224 px), so of such an image only what the crop needs is resized, first its rows
and then its columns, each cut at once.
"""

import math

import torch
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from dlth.tickets.errors import InputError, shown
from dlth.tickets.format.header import ViewSpec

MAX_SIDE = 8_192
"""Pixels along the longer side of what a view is cut from (a view of 7,168 at 0.875). Views of 224 are thus cut from at
most 36 times their side, where labs take 1.14 times."""
MAX_RESIZED = 64 * 2**20
"""Pixels of an image resized whole, or in its columns alone (200 MB); beyond it only what the crop needs is resized."""
_MARGIN = 4
"""Pixels around a crop that its interpolation may use: bicubic's reach is 2."""


INTERPOLATIONS = ("bicubic", "bilinear", "nearest", "nearest-exact")
"""What torchvision resizes tensors by."""


def check_view(spec: ViewSpec) -> None:
    """Raise InputError, with what can be, for a view that no image could be shown in: too large, or how it resamples.

    Sizes, shares and names come from flags, notes of weights, timm's configurations and headers of ticket files.
    """
    if spec.interpolation not in INTERPOLATIONS:
        known = ", ".join(INTERPOLATIONS)
        raise InputError(f"the view's interpolation {shown(spec.interpolation)!r} is none of {known}")
    share = float(spec.crop_pct) if spec.kind == "center" else 1.0
    if max(spec.height, spec.width) > MAX_SIDE * share:
        cut = f", cut with a crop_pct of {shown(spec.crop_pct)}," if spec.kind == "center" else ""
        raise InputError(
            f"a view of {spec.height} x {spec.width} pixels{cut} is too large: it may be cut from {MAX_SIDE} pixels "
            "along a side; take a smaller img_size or a larger crop_pct"
        )


def render(image: torch.Tensor, spec: ViewSpec) -> torch.Tensor:
    """`image` uint8 [3, height, width] as the view shows it: uint8 [3, spec.height, spec.width].

    Raises InputError when the view is none that an image could be shown in (`check_view`).
    """
    check_view(spec)
    interpolation = InterpolationMode(spec.interpolation)
    height, width = image.shape[-2:]
    resized, (top, left) = spec.resized(height, width), spec.crop(height, width)
    if max(resized[0], height) * resized[1] <= MAX_RESIZED:  # torch resizes columns first
        image = F.resize(image, list(resized), interpolation, antialias=spec.antialias)
        shown_pixels: torch.Tensor = F.crop(image, top, left, spec.height, spec.width)
        return shown_pixels
    rows, tall, top = _needed(height, resized[0], top, spec.height)
    cols, wide, left = _needed(width, resized[1], left, spec.width)
    image = image[:, rows, cols].contiguous()
    image = F.resize(image, [tall, image.shape[2]], interpolation, antialias=spec.antialias)
    image = image[:, top : top + spec.height].contiguous()
    image = F.resize(image, [spec.height, wide], interpolation, antialias=spec.antialias)
    return image[:, :, left : left + spec.width].contiguous()


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
