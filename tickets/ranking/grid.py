"""The grid: how many rows and columns of patches an image is cut into.

Patches are numbered row-major from 0; prefix tokens (class, distillation, registers) are not counted. A value of its
own because a bare number of patches cannot say how a crop or a mirror moves them.
"""

from dataclasses import dataclass

from dlth.tickets.errors import InputError, LimitError

MAX_PATCHES = 65_535
"""Indices are stored as uint16 at most, and 65,535 is the fill value."""


@dataclass(frozen=True, slots=True)
class Grid:
    """Rows by columns of patches; raises InputError below 1 and LimitError above MAX_PATCHES patches."""

    rows: int
    cols: int

    def __post_init__(self) -> None:
        for name, value in (("rows", self.rows), ("cols", self.cols)):
            if type(value) is not int or value < 1:
                raise InputError(f"grid {name} must be a whole number of at least 1, got {value!r}")
        if self.num_patches > MAX_PATCHES:
            raise LimitError(f"a grid of {self.rows}x{self.cols} has more than {MAX_PATCHES} patches")

    @property
    def num_patches(self) -> int:
        """Rows times columns."""
        return self.rows * self.cols

    def __str__(self) -> str:
        return f"{self.rows}x{self.cols}"
