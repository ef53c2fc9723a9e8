"""Images in a stated view: the frame of a ticket file, or the evaluation crop.

The sizes come from the header's `ViewSpec` itself, so that pixels and the recorded `View` cannot disagree.
"""

import torch
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from dlth.tickets.errors import InputError, shown
from dlth.tickets.header import ViewSpec


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
    image = F.resize(image, list(spec.resized(height, width)), interpolation, antialias=spec.antialias)
    top, left = spec.crop(height, width)
    shown_pixels: torch.Tensor = F.crop(image, top, left, spec.height, spec.width)
    return shown_pixels
