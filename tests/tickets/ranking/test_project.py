"""Projection: exact where it can be, a permutation always, and never dependent on the batch."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlth.tickets import Grid, View, blend, generator, paste, project
from dlth.tickets.errors import InputError, MismatchError
from dlth.tickets.ranking.projection import best_first

GRID = Grid(6, 5)
WHOLE = View.whole(GRID)


def random_ranking(seed: int, grid: Grid = GRID, batch: int | None = None) -> np.ndarray:
    rows = np.tile(np.arange(grid.num_patches), (batch or 1, 1))
    result = generator("ranking", seed).permuted(rows, axis=1)
    return result if batch else result[0]


grids = st.builds(Grid, st.integers(1, 9), st.integers(1, 9))
seeds = st.integers(0, 10**6)
places = st.floats(-0.5, 1.5).map(lambda value: round(value, 3))


@st.composite
def views(draw: st.DrawFn, warped: bool = True) -> View:
    """Crops (also over the edge), mirrored or not, sheared and rotated or not."""
    left, top = draw(places), draw(places)
    width, height = draw(st.floats(0.05, 1.5)), draw(st.floats(0.05, 1.5))
    view = View.from_box(left, top, left + width, top + height, draw(grids), mirrored=draw(st.booleans()))
    if warped and draw(st.booleans()):
        view = view.warped([[1.0, draw(st.floats(-0.5, 0.5)), 0.1], [draw(st.floats(-0.5, 0.5)), 1.0, -0.1]])
    return view


@given(seeds, views(), views())
@settings(deadline=None)
def test_the_result_ranks_every_patch_once(seed: int, source: View, target: View) -> None:
    """From any view to any view the result is a permutation of the target's patches."""
    result = project(random_ranking(seed, source.grid), source, target)
    assert result.dtype == np.int64
    assert sorted(result) == list(range(target.grid.num_patches))


@given(seeds, views(warped=False))
@settings(deadline=None)
def test_identity_changes_nothing(seed: int, view: View) -> None:
    """A ranking seen from its own view is itself, whatever the view."""
    ranking = random_ranking(seed, view.grid)
    assert (project(ranking, view, view) == ranking).all()


@given(seeds, grids)
def test_mirror_flips_columns_and_undoes_itself(seed: int, grid: Grid) -> None:
    """Mirroring moves patch (r, c) to (r, last - c), keeping the order; twice is nothing."""
    ranking = random_ranking(seed, grid)
    whole, mirrored = View.whole(grid), View.whole(grid).mirrored()
    flipped = project(ranking, whole, mirrored)
    rows, columns = np.divmod(ranking, grid.cols)
    assert (flipped == rows * grid.cols + (grid.cols - 1 - columns)).all()
    assert (project(flipped, mirrored, whole) == ranking).all()
    assert (project(flipped, whole, mirrored) == ranking).all()


@given(seeds, st.data())
def test_crops_on_patch_borders_are_exact(seed: int, data: st.DataObject) -> None:
    """A crop of whole patches keeps exactly their order, at any place of any grid."""
    grid = data.draw(grids)
    top, left = data.draw(st.integers(0, grid.rows - 1)), data.draw(st.integers(0, grid.cols - 1))
    rows, cols = data.draw(st.integers(1, grid.rows - top)), data.draw(st.integers(1, grid.cols - left))
    ranking = random_ranking(seed, grid)
    box = left / grid.cols, top / grid.rows, (left + cols) / grid.cols, (top + rows) / grid.rows
    result = project(ranking, View.whole(grid), View.from_box(*box, Grid(rows, cols)))
    inside = [
        (patch // grid.cols - top) * cols + patch % grid.cols - left
        for patch in ranking
        if top <= patch // grid.cols < top + rows and left <= patch % grid.cols < left + cols
    ]
    assert result.tolist() == inside


@given(seeds, views(warped=False))
@settings(deadline=None)
def test_projection_commutes_with_the_mirror(seed: int, target: View) -> None:
    """Crop then mirror is mirror then crop (equivariance), where no ties are broken by index."""
    ranking = random_ranking(seed)
    scores = mean_ranks(ranking, target)
    if len(np.unique(np.rint(scores * 2**10))) < len(scores):
        return
    straight = project(ranking, WHOLE, target)
    mirrored = project(ranking, WHOLE, target.mirrored())
    rows, columns = np.divmod(straight, target.grid.cols)
    assert (mirrored == rows * target.grid.cols + (target.grid.cols - 1 - columns)).all()


def mean_ranks(ranking: np.ndarray, target: View, samples: int = 1) -> np.ndarray:
    """Area-weighted mean rank of each target patch, patch by patch with plain loops."""
    rank = np.argsort(ranking).reshape(GRID.rows, GRID.cols)
    (a, _, c), (_, e, f) = target.matrix
    result = []
    for row in range(target.grid.rows):
        for col in range(target.grid.cols):
            x = sorted(a * edge / target.grid.cols + c for edge in (col, col + 1))
            y = sorted(e * edge / target.grid.rows + f for edge in (row, row + 1))
            area, total = (x[1] - x[0]) * (y[1] - y[0]), 0.0
            covered = 0.0
            for r in range(GRID.rows):
                for q in range(GRID.cols):
                    wide = min(x[1], (q + 1) / GRID.cols) - max(x[0], q / GRID.cols)
                    high = min(y[1], (r + 1) / GRID.rows) - max(y[0], r / GRID.rows)
                    if wide > 0 and high > 0:
                        total += wide * high / area * rank[r, q]
                        covered += wide * high / area
            result.append(total + (1 - covered) * GRID.num_patches)
    return np.array(result)


@given(seeds, views(warped=False))
@settings(deadline=None)
def test_scores_are_area_weighted_mean_ranks(seed: int, target: View) -> None:
    """Sorting by the plain loops' scores gives the same order up to rounding."""
    ranking = random_ranking(seed)
    scores = mean_ranks(ranking, target)
    assert (np.diff(scores[project(ranking, WHOLE, target)]) > -1e-5).all()


def test_area_outside_the_view_is_worst() -> None:
    """Padding around the image ranks after every patch that shows some of it."""
    result = project(random_ranking(1), WHOLE, View.from_box(-1, 0, 1, 1, Grid(6, 10)))
    assert set(result[:30] % 10) == {5, 6, 7, 8, 9}
    assert (result[30:] == [row * 10 + col for row in range(6) for col in range(5)]).all()


def test_ties_go_to_the_lowest_index() -> None:
    """All target patches within one source patch have one score and stand in index order."""
    target = View.from_box(0, 0, 1 / GRID.cols, 1 / GRID.rows, Grid(3, 3))
    assert project(random_ranking(2), WHOLE, target).tolist() == list(range(9))


def test_a_quarter_turn_moves_patches_as_pixels_move() -> None:
    """Sampling places whole patches exactly: rotated by 90 degrees, patch (r, c) shows source (last - c, r)."""
    grid = Grid(4, 4)
    ranking = random_ranking(3, grid)
    turned = View.whole(grid).warped([[0.0, 1.0, 0.0], [-1.0, 0.0, 1.0]])
    expected = np.argsort(np.argsort(ranking).reshape(4, 4)[::-1].T.ravel())
    assert (project(ranking, View.whole(grid), turned) == expected).all()


@given(seeds, st.lists(views().map(lambda view: View(view.matrix, GRID)), min_size=1, max_size=6))
@settings(deadline=None, max_examples=50)
def test_rows_do_not_depend_on_their_batch(seed: int, targets: list[View]) -> None:
    """One call for a batch gives what one call per row gives; single rankings and views are repeated."""
    rankings = random_ranking(seed, batch=len(targets))
    one_by_one = np.stack([project(row, WHOLE, view) for row, view in zip(rankings, targets, strict=True)])
    assert (project(rankings, WHOLE, View.stack(targets)) == one_by_one).all()
    assert (project(rankings.astype(np.uint8), WHOLE, View.stack(targets)) == one_by_one).all()
    assert (project(rankings, WHOLE, targets[0])[0] == one_by_one[0]).all()
    assert (project(rankings[0], WHOLE, View.stack(targets))[0] == one_by_one[0]).all()


@given(seeds, st.integers(1, 300), st.floats(0, 65_535))
def test_the_order_is_that_of_a_stable_sort_of_rounded_scores(seed: int, num_patches: int, spread: float) -> None:
    """Smallest first in quanta of 2^-20, ties to the lowest index, however large the scores and however many equal."""
    scores = generator("scores", seed).integers(0, 9, (3, num_patches)) / 8 * spread
    scores[2] *= 2**-19  # within a few quanta
    assert (best_first(scores) == np.argsort(np.rint(scores * 2**20), axis=1, kind="stable")).all()


@given(seeds)
def test_paste_of_whole_patches_takes_the_others_ranks(seed: int) -> None:
    """Cutmix: under the box stand the other image's ranks, elsewhere one's own; ties to the lowest index."""
    own, other = random_ranking(seed, batch=2), random_ranking(seed + 1, batch=2)
    result = paste(own, other, (1 / 5, 2 / 6, 3 / 5, 5 / 6), GRID)
    mask = np.zeros((6, 5), bool)
    mask[2:5, 1:3] = True
    mixed = np.where(mask.ravel(), np.argsort(other, axis=1), np.argsort(own, axis=1))
    assert (result == np.argsort(mixed, axis=1, kind="stable")).all()
    assert (paste(own, other, (0, 0, 0, 0), GRID) == own).all()
    assert (paste(own, other, [(0, 0, 1, 1)] * 2, GRID) == other).all()


def test_paste_weighs_partly_covered_patches_by_area() -> None:
    """A box over a quarter of a patch moves its rank a quarter of the way."""
    grid = Grid(1, 2)
    own, other = np.array([[1, 0]]), np.array([[0, 1]])
    assert paste(own, other, (0, 0, 0.24, 1), grid).tolist() == [[1, 0]]  # 0.52 against 0
    assert paste(own, other, (0, 0, 1, 0.49), grid).tolist() == [[1, 0]]
    assert paste(own, other, (0, 0, 1, 0.51), grid).tolist() == [[0, 1]]


@given(seeds, st.floats(0, 1))
def test_blend_orders_by_the_weighted_ranks(seed: int, weight: float) -> None:
    """Mixup: weight 1 is the first ranking, 0 the second, between them the mean of the ranks."""
    own, other = random_ranking(seed, batch=3), random_ranking(seed + 1, batch=3)
    assert (blend(own, other, 1.0) == own).all()
    assert (blend(own, other, [0.0] * 3) == other).all()
    scores = weight * np.argsort(own, axis=1) + (1 - weight) * np.argsort(other, axis=1)
    ordered = np.take_along_axis(scores, blend(own, other, weight), axis=1)
    assert (np.diff(ordered, axis=1) > -1e-5).all()


def test_what_is_no_ranking_is_refused() -> None:
    """A ranking that is short, repeated, out of range or no integer never becomes a ticket."""
    ranking = random_ranking(4)
    repeated, outside = ranking.copy(), ranking.copy()
    repeated[0] = repeated[1]
    outside[3] = 30
    for wrong, message in [
        (ranking[:6], r"lists all 30 patches of the 6x5 grid .* form 'top' holds too few"),
        (repeated, "names a patch twice"),
        (outside, "outside 0 … 29: a skipped image or another grid"),
        (ranking.astype(float), "as integers, got float64"),
    ]:
        with pytest.raises(InputError, match=message):
            project(wrong, WHOLE, WHOLE)
    with pytest.raises(MismatchError, match="2 rankings cannot go through 3 views"):
        project(random_ranking(5, batch=2), WHOLE, View.stack([WHOLE] * 3))
    with pytest.raises(InputError, match="weight of the first image must be from 0 to 1"):
        blend(ranking[None], ranking[None], 1.5)
    with pytest.raises(InputError, match="3 boxes or weights were given for 1 rankings"):
        blend(ranking[None], ranking[None], [0.1, 0.2, 0.3])
    with pytest.raises(InputError, match=r"shape \[batch, patches\]"):
        paste(ranking, ranking, (0, 0, 1, 1), GRID)


def test_what_is_no_view_is_refused() -> None:
    """A view that folds the image flat, or is no affine map, cannot be inverted."""
    with pytest.raises(InputError, match="must not fold the view flat"):
        View.from_box(0.5, 0, 0.5, 1, GRID)
    with pytest.raises(InputError, match="must be finite"):
        View.from_box(0, 0, float("nan"), 1, GRID)
    with pytest.raises(InputError, match=r"shape \[2, 3\] or \[batch, 2, 3\], got \[3, 3\]"):
        View(np.eye(3), GRID)
    with pytest.raises(InputError, match="only single views on one grid"):
        View.stack([WHOLE, View.whole(Grid(2, 2))])
