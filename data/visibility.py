"""What augmentation hides: the share of each patch that shows nothing of the image, and what that does to a ticket.

A warp inside a crop fills its corners with the mean colour although the image goes on beyond the crop, and random
erasing paints noise over a box. A view (one affine map) cannot say either, so the hidden share of every patch is
recorded beside it. A patch is worth what it shows of the image: hidden area counts as the worst rank, as area outside a
view does in projection. Rejected: one projection per step of the augmentation (each blurs the ranking a little more);
warping the whole image instead of the crop, which leaves no corners (then it is no longer the recipe's RandAugment).

Axes: B batch, P patches of the grid.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dlth.tickets.grid import Grid
from dlth.tickets.project import cover

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


def hidden_by_box(left: float, top: float, right: float, bottom: float, grid: Grid) -> Floats:
    """Float64 [P]: the share of each patch under a box, whose sides are fractions of the view."""
    down = cover(np.array([top]), np.array([bottom]), grid.rows)[0]
    across = cover(np.array([left]), np.array([right]), grid.cols)[0]
    return np.outer(down, across).reshape(grid.num_patches)


def demote(rankings_BP: NDArray[np.int64], hidden_BP: Floats) -> NDArray[np.int64]:
    """Rankings int64 [B, P] (all patches, best first) after the hidden share of each patch fell to the worst rank."""
    num_patches = rankings_BP.shape[1]
    ranks_BP = np.empty(rankings_BP.shape)
    np.put_along_axis(ranks_BP, rankings_BP, np.arange(num_patches, dtype=np.float64)[None], axis=1)
    scores_BP = ranks_BP + hidden_BP * (num_patches - ranks_BP)
    return np.argsort(np.rint(scores_BP * _QUANTUM), axis=1, kind="stable").astype(np.int64, copy=False)


def _lattice(cells: int) -> Floats:
    return (np.arange(cells * _SAMPLES) + 0.5) / (cells * _SAMPLES)
