"""The pixels of kept patches, cut out of their images.

A model that embeds kept patches alone needs no other pixel. So they are cut out where it embeds them, or already where
an image was augmented, if nothing else is to be done to the whole of it: then a ticket's share of its bytes travels.
"""

import torch
from torch import Tensor


def kept_pixels(images: Tensor, patches: Tensor, grid: tuple[int, int]) -> Tensor:
    """Pixels [B, k, C, h, w] of patches int64 [B, k], in their order, of images [B, C, height, width].

    `grid`: rows and columns of whole patches, which the image is made of. An index outside it is an error of torch's.
    """
    rows, cols = grid
    cells = images.unflatten(2, (rows, -1)).unflatten(4, (cols, -1))
    batch = torch.arange(len(images), device=images.device).unsqueeze(1)
    return cells[batch, :, patches // cols, :, patches % cols]
