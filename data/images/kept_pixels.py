"""The pixels of kept patches, cut out of their images where an image was augmented, so that no others travel.

A model that embeds kept patches alone cuts them out itself, where it embeds them (`training/models/embedding.py`), and
takes these in place of the images. There nothing of a dropped patch is read; here, on one core, whole patches are
copied instead, which takes a third of the time of an index of every pixel (0.14 ms against 0.4 for 138 of 196 patches
of 224 px), on top of reading and augmenting.
"""

import torch
from torch import Tensor


def kept_pixels(images: Tensor, patches: Tensor, grid: tuple[int, int]) -> Tensor:
    """Pixels [B, k, C, h, w] of patches int64 [B, k], in their order, of images [B, C, height, width].

    `grid`: rows and columns of whole patches, which the image is made of.
    """
    rows, cols = grid
    cells = torch.unflatten(torch.unflatten(images, 2, (rows, -1)), 4, (cols, -1)).permute(0, 2, 4, 1, 3, 5)
    places = patches + torch.arange(len(images))[:, None] * (rows * cols)
    kept = cells.reshape(len(images) * rows * cols, -1).index_select(0, places.flatten())
    return kept.view(*patches.shape, *cells.shape[3:])
