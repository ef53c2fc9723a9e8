"""A finished run, read back from its folder: its result, its epochs, what became of every validation image, its mask.

Accuracies are counted from the images, and must be those of result.json: a result says nothing that its images do not.
Nor does it of its weights what the mask beside it does not.
"""

import os
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from dlth.pipeline.evidence.arm_key import judged_on
from dlth.pipeline.evidence.image_results import ImageColumns, evaluated_on, read_image_results
from dlth.tickets.errors import DamageError, shown
from dlth.training.pruning.mask_file import read_mask
from dlth.training.pruning.mask_header import MaskHeader
from dlth.training.pruning.recipe import MASK
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
    mask: what the mask in its folder says of itself; None of an unpruned run, and where a pruned one's is not there
    """

    folder: Path
    result: RunResult
    images: ImageColumns
    mask: MaskHeader | None = None

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read a run's folder.

        Raises:
            DamageError: a result, log, images or mask that are none, or not of each other
            UnsafeError, LimitError: links, devices and sizes that no run leaves
        """
        result = read_result(folder / RESULT)
        if result is None or result.status != "finished":
            raise DamageError(f"{shown(folder)} holds no finished run", file=RESULT)
        orders = [result.data.get(name, "") for name in ("data_order", "val_order")]
        if not all(isinstance(order, str) for order in orders) or not 0 < result.epochs <= MAX_EPOCHS:
            raise DamageError(f"{shown(folder / RESULT)} says of its images or epochs what no run does", file=RESULT)
        images = read_image_results(folder / VAL_RESULTS) if result.evaluation else {}
        run = cls(folder, result, images, _mask_beside(folder, result))
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
    def facts(self) -> dict[str, Any]:
        """The result as JSON holds it, and under "recipe" how the mask was made, where that is known."""
        known = {} if self.mask is None else {"recipe": asdict(self.mask.recipe)}
        return self.result.to_json() | known

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


def _mask_beside(folder: Path, result: RunResult) -> MaskHeader | None:
    """The header of the mask in a run's folder. Raises DamageError for one that the run was not trained under."""
    if not result.mask or not os.path.lexists(folder / MASK):
        return None
    mask = read_mask(folder / MASK)
    told = result.mask, result.prunable_weights, result.remaining_weights
    if told != (mask.identity, mask.prunable, mask.remaining):
        raise DamageError(
            f"{shown(folder)}: {RESULT} is of a mask {shown(result.mask[:12])} that leaves {told[2]} of {told[1]}"
            f" weights, {MASK} is {mask.identity[:12]} and leaves {mask.remaining} of {mask.prunable}",
            file=MASK,
        )
    return mask.header
