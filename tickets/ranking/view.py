"""The view: the frame in which a ticket's grid lies, as an affine map from view to image coordinates.

Both are unit squares, x to the right and y down, so image sizes never enter: the image square is the undistorted
image scaled to 1x1. A resize without a crop is therefore the identity.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from dlth.tickets.errors import InputError, shown
from dlth.tickets.ranking.grid import Grid

Matrix = NDArray[np.float64]

_MIRROR = np.array([[-1.0, 0.0, 1.0], [0.0, 1.0, 0.0]])


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """An affine map and a grid.

    `matrix` float64 [2, 3] or [batch, 2, 3]: (x, y, 1) in the view to (x, y) in the image, both in unit squares.
    Raises InputError when the shape is another, a value is not finite or the map folds the view flat.
    """

    matrix: Matrix
    grid: Grid

    def __post_init__(self) -> None:
        matrix = np.ascontiguousarray(array_of(self.matrix, "a view's matrix", np.float64))
        if matrix.ndim not in (2, 3) or matrix.shape[-2:] != (2, 3):
            raise InputError(f"a view's matrix has shape [2, 3] or [batch, 2, 3], got {list(matrix.shape)}")
        if not np.isfinite(matrix).all() or (np.abs(determinant(matrix)) < 1e-12).any():
            raise InputError("a view's matrix must be finite and must not fold the view flat")
        object.__setattr__(self, "matrix", matrix)

    @classmethod
    def whole(cls, grid: Grid) -> "View":
        """The whole image, whatever its shape, resized to the grid's square."""
        return cls(np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]), grid)

    @classmethod
    def from_box(
        cls, left: float, top: float, right: float, bottom: float, grid: Grid, mirrored: bool = False
    ) -> "View":
        """A crop; the four sides are fractions of the image's width and height (outside [0, 1] means padding)."""
        view = cls(np.array([[right - left, 0.0, left], [0.0, bottom - top, top]]), grid)
        return view.mirrored() if mirrored else view

    @classmethod
    def stack(cls, views: Sequence["View"]) -> "View":
        """One view [batch, 2, 3] of several single ones on the same grid."""
        if not views or len({view.grid for view in views}) != 1 or any(view.matrix.ndim != 2 for view in views):
            raise InputError("only single views on one grid can be stacked, and at least one is needed")
        return cls(np.stack([view.matrix for view in views]), views[0].grid)

    def mirrored(self) -> "View":
        """This view flipped left to right."""
        return self.warped(_MIRROR)

    def warped(self, affine: ArrayLike) -> "View":
        """This view seen through `affine` [2, 3], which takes a point of the new view to a point of this one."""
        return View(compose(self.matrix, array_of(affine, "an affine map", np.float64)), self.grid)


def array_of(values: ArrayLike, what: str, dtype: DTypeLike | None = None) -> NDArray[Any]:
    """What a caller gives as an array; raises InputError for ragged lists, text, and masked values."""
    if np.ma.is_masked(values):
        raise InputError(f"{what} holds masked values; leave them out")
    try:
        return np.asarray(values, dtype=dtype)
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:  # a tensor that is sparse, or elsewhere
        raise InputError(f"{what} is no table of numbers ({shown(error)})") from error


def compose(outer: Matrix, inner: Matrix) -> Matrix:
    """The map 'first `inner`, then `outer`' of [..., 2, 3] maps; broadcasts over leading axes."""
    linear = outer[..., :2] @ inner[..., :2]
    shift = outer[..., :2] @ inner[..., 2:] + outer[..., 2:]
    return np.concatenate([linear, shift], axis=-1)


def inverse(matrix: Matrix) -> Matrix:
    """The inverse map of [..., 2, 3] maps. By cofactors, so that zeros off the diagonal stay exactly zero."""
    (a, b, c), (d, e, f) = np.moveaxis(matrix, (-2, -1), (0, 1))
    det = a * e - b * d
    rows = [[e / det, -b / det, (b * f - c * e) / det], [-d / det, a / det, (c * d - a * f) / det]]
    return np.moveaxis(np.array(rows), (0, 1), (-2, -1))


def determinant(matrix: Matrix) -> NDArray[np.float64]:
    """Signed area scale of [..., 2, 3] maps."""
    result: NDArray[np.float64] = matrix[..., 0, 0] * matrix[..., 1, 1] - matrix[..., 0, 1] * matrix[..., 1, 0]
    return result
