"""Rankings of several views as one: what each view shows of a patch counts, and nothing else."""

import numpy as np
import pytest

from dlth.tickets import Grid, View, generator
from dlth.tickets.errors import InputError
from dlth.tickets.ranking.averaging import average

GRID = Grid(4, 5)
P = GRID.num_patches


def rankings(seed: int, *shape: int) -> np.ndarray:
    return generator("rankings", seed).permuted(np.broadcast_to(np.arange(P), (*shape, P)), axis=-1)


def crop(rng: np.random.Generator) -> View:
    """A crop within the image or over its edge, mirrored or not."""
    left, top, width, height = rng.uniform(-0.3, 0.6, 2).tolist() + rng.uniform(0.2, 0.9, 2).tolist()
    return View.from_box(left, top, left + width, top + height, GRID, mirrored=bool(rng.integers(2)))


def cells(view: View) -> np.ndarray:
    """(left, top, right, bottom) in the image of each patch: [P, 4]."""
    across = view.matrix[0, 0] * np.linspace(0, 1, GRID.cols + 1) + view.matrix[0, 2]
    down = view.matrix[1, 1] * np.linspace(0, 1, GRID.rows + 1) + view.matrix[1, 2]
    boxes = [
        (min(across[c : c + 2]), down[r], max(across[c : c + 2]), down[r + 1])
        for r in range(GRID.rows)
        for c in range(GRID.cols)
    ]
    return np.array(boxes)


def test_places_are_weighted_by_the_area_that_views_share() -> None:
    """Against loops over every pair of patches: the sum of shared area times log2(1 + rank), over that of area."""
    rng = generator("averaged crops")
    views = [[crop(rng) for _ in range(4)] for _ in range(3)]
    ranking = rankings(1, 3, 4)
    _, mean = average(ranking, np.stack([View.stack(row).matrix for row in views]), GRID)
    for image, row in enumerate(views):
        for patch, (left, top, right, bottom) in enumerate(cells(row[0])):
            total = weight = 0.0
            for view, order in zip(row, ranking[image], strict=True):
                for rank, other in enumerate(order):
                    x0, y0, x1, y1 = cells(view)[other]
                    area = max(0, min(right, x1) - max(left, x0)) * max(0, min(bottom, y1) - max(top, y0))
                    total, weight = total + area * np.log2(1 + rank), weight + area
            assert mean[image, patch] == pytest.approx(total / weight, abs=2e-6)


def test_views_that_say_the_same_change_nothing() -> None:
    """A ranking alone, and with that of its mirror image, stays as it is."""
    ranking, whole = rankings(2, 5, 1), View.whole(GRID)
    rows, columns = np.divmod(ranking, GRID.cols)
    mirrored = rows * GRID.cols + GRID.cols - 1 - columns
    maps = np.broadcast_to(np.stack([whole.matrix, whole.mirrored().matrix]), (5, 2, 2, 3))
    assert (average(ranking, maps[:, :1], GRID)[0] == ranking[:, 0]).all()
    assert (average(np.concatenate([ranking, mirrored], axis=1), maps, GRID)[0] == ranking[:, 0]).all()


def test_what_a_crop_does_not_show_it_says_nothing_of() -> None:
    """Under a crop of the left columns the others keep their places on average, whatever the crop's ranking."""
    whole, left = View.whole(GRID), View.from_box(0, 0, 2 / 5, 1, GRID)
    maps = np.stack([whole.matrix, left.matrix])[None]
    first = rankings(3, 1, 1)
    means = [average(np.concatenate([first, rankings(seed, 1, 1)], axis=1), maps, GRID)[1][0] for seed in (4, 5)]
    outside = np.arange(P) % GRID.cols >= 2
    alone = average(first, maps[:, :1], GRID)[1][0]
    for mean in means:
        np.testing.assert_array_equal(mean[outside], alone[outside])
    assert (means[0] != means[1])[~outside].any()


@pytest.mark.parametrize(
    ("views", "matrix", "match"),
    [
        (2, [[1.0, 0.2, 0.0], [0.0, 1.0, 0.0]], "turn or shear"),
        (3, [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], "a map each"),
    ],
)
def test_maps_that_cannot_be_averaged_are_refused(views: int, matrix: list[list[float]], match: str) -> None:
    """Sheared views, and another number of maps than rankings."""
    with pytest.raises(InputError, match=match):
        average(rankings(6, 1, 2), np.broadcast_to(matrix, (1, views, 2, 3)), GRID)
