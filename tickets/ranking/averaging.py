"""One ranking of an image out of its rankings in several views: the mean of what they say of each patch.

A view says of a patch the mean place of its own patches there, by area and on a logarithmic scale, as in a geometric
mean. What it does not show it says nothing of, where a projection takes the worst rank: a patch's score is the mean
over views, weighted by the share of the patch that each shows.

Places are what every ranker gives, and what EViT's stages have in common: attention at a first stage and at a last is
shared among different tokens. On a logarithmic scale the first places, between which a ticket is cut, weigh most:
docs/method.md has the agreement with the selector's own rankings of crops by this mean, by that of plain ranks and by
that of attention.

Axes: B images, V views, P patches of the grid, Q those of the first view.
"""

import numpy as np
from numpy.typing import ArrayLike

from dlth.tickets.errors import InputError
from dlth.tickets.ranking.grid import Grid
from dlth.tickets.ranking.projection import QUANTUM, Floats, Ranking, best_first, overlap, ranks_of
from dlth.tickets.ranking.view import Matrix, array_of, compose, inverse


def average(ranking_BVP: ArrayLike, maps_BV23: Matrix, grid: Grid) -> tuple[Ranking, Floats]:
    """Rankings int64 [B, P] in the first view of each image, and the mean of each of its patches, float64 [B, P]: that
    of log2(1 + rank), from 0 to log2(P), in whole quanta (`best_first`), so that equal ones are ties.

    `ranking_BVP` integers [B, V, P]: all patches best first, by view; `maps_BV23` and `grid` as `mean_over_views` has
    them. Raises InputError for rankings that are no permutations, and maps that turn or shear.
    """
    ranking = array_of(ranking_BVP, "rankings of several views")
    if ranking.ndim != 3:
        raise InputError(f"rankings are [images, views, patches], got {list(ranking.shape)}")
    ranks = ranks_of(ranking.reshape(-1, ranking.shape[2]), grid).reshape(ranking.shape)
    mean = np.rint(mean_over_views(np.log2(1.0 + ranks), maps_BV23, grid) * QUANTUM) / QUANTUM
    return best_first(mean), mean


def mean_over_views(score_BVP: Floats, maps_BV23: Matrix, grid: Grid) -> Floats:
    """Float64 [B, P]: the mean score of each patch of an image's first view, over what its views show of the patch.

    `score_BVP` float64 [B, V, P]: of each patch of each view; `maps_BV23` [B, V, 2, 3]: each view's map to the image as
    in `View`, crops and mirrors alone; `grid` is every view's. Raises InputError for maps that turn or shear.
    """
    if maps_BV23.shape != (*score_BVP.shape[:2], 2, 3):
        raise InputError(f"scores of views {score_BVP.shape[:2]} need a map each, got {list(maps_BV23.shape)}")
    if maps_BV23[:, :, [0, 1], [1, 0]].any():
        raise InputError("views that are averaged are crops and mirrors: their maps must not turn or shear")
    moved = compose(inverse(maps_BV23), maps_BV23[:, :1]).reshape(-1, 2, 3)
    across_QP = overlap(moved[:, 0, 0], moved[:, 0, 2], grid.cols, grid.cols)
    down_QP = overlap(moved[:, 1, 1], moved[:, 1, 2], grid.rows, grid.rows)
    sums = down_QP @ score_BVP.reshape(-1, grid.rows, grid.cols) @ across_QP.transpose(0, 2, 1)
    shares = down_QP.sum(axis=2)[:, :, None] * across_QP.sum(axis=2)[:, None, :]
    total, weight = (part.reshape(score_BVP.shape).sum(axis=1) for part in (sums, shares))
    mean: Floats = total / weight
    return mean
