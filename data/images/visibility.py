"""What augmentation hides: the share of each patch that shows nothing of the image, and what that does to a ticket.

A warp inside a crop fills its corners with the mean colour although the image goes on beyond the crop, and random
erasing paints noise over a box. A view (one affine map) cannot say either, so the hidden share of every patch is
recorded beside it. Where hidden patches are demoted, a patch is worth what it shows: hidden area counts as the worst
rank, as area outside a view does in projection. Demotion is torch's and not numpy's because the online mode ranks on
the device, and all arms and modes are to be treated by the same lines.

Axes: B batch, P patches of the grid.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dlth.tickets.ranking.grid import Grid

Floats = NDArray[np.float64]

_SAMPLES = 4
"""Sample points per patch and axis, as in projection."""
_QUANTUM = float(2**20)


def hidden_by_warps(affines: Sequence[Floats], grid: Grid) -> Floats:
    """Float64 [P]: the share of each patch that successive warps of the unit square filled.

    `affines`: maps [2, 3] from output to input points of the unit square, in the order in which they were applied. A
    point shows the image only if it lies inside the square before every warp.
    """
    x, y = _lattice(grid.cols)[None, :] - 0.5, _lattice(grid.rows)[:, None] - 0.5
    shown = np.ones((len(y), x.shape[1]), dtype=bool)
    for (a, b, c), (d, e, f) in reversed(affines):  # about the middle, where being inside is one comparison
        right, down = c + (a + b - 1) / 2, f + (d + e - 1) / 2
        x, y = a * x + (b * y + right), d * x + (e * y + down)
        shown &= np.maximum(np.abs(x), np.abs(y)) <= 0.5
    blocks = shown.reshape(grid.rows, _SAMPLES, grid.cols, _SAMPLES)
    hidden: Floats = 1.0 - blocks.mean(axis=(1, 3)).reshape(grid.num_patches)
    return hidden


def demote(rankings_BP: Tensor, hidden_BP: Tensor) -> Tensor:
    """Rankings int64 [B, P] (all patches, best first) after the hidden share of each patch fell to the worst rank."""
    num_patches = rankings_BP.shape[1]
    worst_to_best = torch.arange(num_patches, 0, -1, dtype=torch.float64, device=rankings_BP.device)
    lead_BP = torch.empty_like(rankings_BP, dtype=torch.float64)
    lead_BP.scatter_(1, rankings_BP, worst_to_best.expand(rankings_BP.shape))
    scores_BP = (lead_BP * (1.0 - hidden_BP.double()) * _QUANTUM).round_()
    return scores_BP.sort(dim=1, descending=True, stable=True).indices


def hidden_share(hidden_BP: Tensor, patches_Bk: Tensor | None) -> Tensor:
    """Float32 [B]: the mean hidden share of the patches kept, int64 [B, k]; of all patches without them."""
    return (hidden_BP if patches_Bk is None else hidden_BP.gather(1, patches_Bk)).mean(dim=1)


def _lattice(cells: int) -> Floats:
    return (np.arange(cells * _SAMPLES) + 0.5) / (cells * _SAMPLES)
