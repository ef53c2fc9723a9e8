"""A finished run, read back from its folder: its result, its epochs, and what became of every validation image.

Accuracies are counted from the images, and must be those of result.json: a result says nothing that its images do not.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from dlth.pipeline.evidence.arm_key import judged_on
from dlth.pipeline.evidence.image_results import ImageColumns, evaluated_on, read_image_results
from dlth.tickets.errors import DamageError, shown
from dlth.training.runs.result import RunResult, read_result
from dlth.training.runs.resume import VAL_RESULTS
from dlth.training.runs.runlog import RESULT, logged_epochs
from dlth.training.settings.fields import MAX_EPOCHS

_ROUNDING = 1e-6
"""Percentage points by which two sums over the same images may differ."""


@dataclass(frozen=True, eq=False)
class FinishedRun:
    """One training of one arm with one seed.

    images: per-image results by column (`EvalResult.save`): keys, labels, dense_top1, ticket_top1, ticket_seen, …;
        empty for a run without validation images
    """

    folder: Path
    result: RunResult
    images: ImageColumns

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read a run's folder.

        Raises:
            DamageError: a result, log or images that are none, or not of each other
            UnsafeError, LimitError: links, devices and sizes that no run leaves
        """
        result = read_result(folder / RESULT)
        if result is None or result.status != "finished":
            raise DamageError(f"{shown(folder)} holds no finished run", file=RESULT)
        orders = [result.data.get(name, "") for name in ("data_order", "val_order")]
        if not all(isinstance(order, str) for order in orders) or not 0 < result.epochs <= MAX_EPOCHS:
            raise DamageError(f"{shown(folder / RESULT)} says of its images or epochs what no run does", file=RESULT)
        images = read_image_results(folder / VAL_RESULTS) if result.evaluation else {}
        run = cls(folder, result, images)
        for tokens in evaluated_on(images):
            told = result.evaluation.get("model", {}).get(tokens, {}).get("top1")
            if not isinstance(told, int | float) or abs(told - run.top1(tokens)) > _ROUNDING:
                raise DamageError(
                    f"{shown(folder)}: {RESULT} says {shown(told)} % on {tokens} tokens, {VAL_RESULTS}"
                    f" {run.top1(tokens)} %: they are of different runs",
                    file=VAL_RESULTS,
                )
        run.epochs  # noqa: B018 - a log that is none is told here
        return run

    @cached_property
    def epochs(self) -> list[dict[str, Any]]:
        """The log's row of every epoch; none where there is no log. Raises DamageError."""
        return logged_epochs(self.folder, self.result.epochs)

    @property
    def seed(self) -> int:
        """The seed of the run."""
        return self.result.seed

    @property
    def judged_on(self) -> str:
        """Tokens that its arm is judged by."""
        return judged_on(self.result.arm, evaluated_on(self.images))

    def hits(self, tokens: str) -> NDArray[np.bool_]:
        """bool [images seen]: whether the model was right on these tokens."""
        hits: NDArray[np.bool_] = self.images[f"{tokens}_top1"][self.images[f"{tokens}_seen"]]
        return hits

    def top1(self, tokens: str) -> float:
        """Accuracy in percent on these tokens, over the images that were seen."""
        return 100 * float(self.hits(tokens).mean())
