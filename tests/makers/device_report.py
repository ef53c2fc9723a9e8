"""What tests/gpu found on a device: the result of every test, also of those that were not run, and every difference
that was measured, as lines for the terminal and as JSON for the page of benchmarks.
"""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Protocol

PASSED, FAILED, NOT_RUN = "passed", "failed", "not run"
RELATIVE, ABSOLUTE, COUNT = "relative", "absolute", "count"
"""Units of a difference: a share of what it is compared with, that thing's own unit, a number of things."""


@dataclass(frozen=True)
class Result:
    """A test by its name, what it claims, and how it ended; `why` it was not run."""

    test: str
    claim: str
    result: str
    why: str


@dataclass(frozen=True)
class Row:
    """In `what` the device differs at worst by `worst`, and may by `tolerance`; whether that holds. Without a tolerance
    it may by as much as it likes: the number is told alone, and nothing holds.
    """

    what: str
    precision: str
    worst: float
    unit: str
    tolerance: float | None
    holds: bool | None

    @classmethod
    def of(cls, what: str, precision: str, worst: float, tolerance: float | None, unit: str) -> "Row":
        """A row of a difference as it was measured; whole numbers are counts."""
        claims_nothing = tolerance is None and math.isfinite(worst)
        holds = None if claims_nothing else tolerance is not None and worst <= tolerance
        if isinstance(worst, int):
            return cls(what, precision, worst, COUNT, tolerance, holds)
        return cls(what, precision, float(f"{worst:.3g}"), unit, tolerance, holds)


class Compared(Protocol):
    """The fixture of tests/gpu/conftest.py: a row, and a failure where it does not hold."""

    def __call__(
        self, what: str, precision: str, worst: float, tolerance: float | None, unit: str = RELATIVE
    ) -> None: ...


def lines(rows: Sequence[Row]) -> Iterator[str]:
    """The table for a terminal; what does not hold is marked at the end of its line."""
    width = max(len(row.what) for row in rows)
    yield f"{'what':{width}}  {'precision':9}  {'worst':>9}  {'unit':8}  {'tolerance':>9}"
    for row in rows:
        bound = "told" if row.tolerance is None else f"{row.tolerance:9.3g}"
        mark = "  DOES NOT HOLD" if row.holds is False else ""
        yield f"{row.what:{width}}  {row.precision:9}  {row.worst:9.3g}  {row.unit:8}  {bound:>9}{mark}"


def as_json(results: Sequence[Result], rows: Sequence[Row]) -> str:
    """All of it: the tests, and the rows of those that measure."""
    content = {"tests": [asdict(result) for result in results], "rows": [asdict(row) for row in rows]}
    return json.dumps(content, indent=1) + "\n"
