"""A finished run, read back from its folder: its result, its epochs, and what became of every validation image."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from dlth.tickets.errors import DamageError, shown
from dlth.training.runs.result import RunResult, read_result
from dlth.training.runs.resume import VAL_RESULTS
from dlth.training.runs.runlog import RESULT, logged_epochs


@dataclass(frozen=True, eq=False)
class FinishedRun:
    """One training of one arm with one seed.

    images: per-image results by column (`EvalResult.save`): keys, labels, dense_top1, ticket_top1, ticket_seen, …;
        empty for a run without validation images
    """

    folder: Path
    result: RunResult
    images: Mapping[str, NDArray[Any]]

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read a run's folder. Raises DamageError for a result or images that are none, or not of each other."""
        result = read_result(folder / RESULT)
        if result is None or result.status != "finished":
            raise DamageError(f"{shown(folder)} holds no finished run", file=RESULT)
        path = folder / VAL_RESULTS
        images = dict(np.load(path, allow_pickle=False)) if path.is_file() else {}
        return cls(folder, result, images)

    @cached_property
    def epochs(self) -> list[dict[str, Any]]:
        """The log's row of every epoch. Raises DamageError."""
        return logged_epochs(self.folder)

    @property
    def seed(self) -> int:
        """The seed of the run."""
        return self.result.seed

    @property
    def judged_on(self) -> str:
        """Tokens that its arm is judged by: all for the dense arm, the selector's for others where there are any."""
        return "ticket" if self.result.arm != "dense" and "ticket_top1" in self.images else "dense"
