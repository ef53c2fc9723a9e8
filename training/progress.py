"""Where a run is: all that its loop carries from step to step besides weights and optimizer.

A checkpoint holds it as JSON; what comes back is checked like anything from outside, and its numbers against each other
and the run, so that a wrong one is refused even where no digest covers it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, ClassVar

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from dlth.data.patches import ARMS
from dlth.tickets.errors import DamageError, shown
from dlth.training.metrics import Totals

Count = Annotated[int, Field(ge=0)]


@dataclass(frozen=True)
class RunSize:
    """What a run's progress is held against: epochs, their steps, training images, images of a step, most tokens of an
    image.
    """

    epochs: int
    steps_per_epoch: int
    num_images: int
    global_batch: int
    tokens_per_image: int


@dataclass
class RunProgress:
    """Where a run is: `batch` steps of `epoch` are done, `step` in all; `bad_steps` in a row had no finite gradient.

    `best`: epoch, arm and top1 of the best weights so far; `bad_images`: ids of the corrupt training images
    that any rank has met, also before a resume, rising.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    epoch: Count = 0
    batch: Count = 0
    step: Count = 0
    bad_steps: Count = 0
    best: dict[str, Any] = field(default_factory=dict)
    bad_images: list[Count] = field(default_factory=list)
    in_epoch: Totals = field(default_factory=Totals)
    in_run: Totals = field(default_factory=Totals)

    @classmethod
    def from_json(cls, values: Any, size: RunSize) -> RunProgress:
        """The progress that `asdict` took apart, of a run of that size.

        Raises:
            DamageError: a field that is missing, foreign or of another type; a place or sums that this run cannot have
        """
        try:
            found: RunProgress = _CHECK.validate_json(json.dumps(values))
        except ValidationError as error:
            wrong = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors()[:3])
            raise DamageError(f"the checkpoint's progress cannot be read: {shown(wrong)}") from error
        if asdict(found) != values:
            raise DamageError(f"the checkpoint's progress lacks fields: it has {shown(values)}")
        at = f"epoch {found.epoch}, step {found.batch} of it, step {found.step} of the run"
        steps = size.steps_per_epoch
        fits = found.epoch < size.epochs and found.batch <= steps and found.bad_steps <= found.step
        if not fits or found.step != found.epoch * steps + found.batch:
            raise DamageError(f"the checkpoint stands at {at}; a run of {size.epochs} x {steps} steps never does")
        rising = all(low < high for low, high in zip(found.bad_images, found.bad_images[1:], strict=False))
        if not rising or (found.bad_images and found.bad_images[-1] >= size.num_images):
            raise DamageError(f"the checkpoint's corrupt images are none of the {size.num_images} training images")
        if not _is_best(found.best, found.epoch):
            raise DamageError(f"the checkpoint's best epoch cannot be read: {shown(found.best)}")
        for totals, num_steps in ((found.in_epoch, found.batch), (found.in_run, found.step)):
            if not totals.can_be_of(num_steps * size.global_batch, size.tokens_per_image):
                raise DamageError(f"the checkpoint's sums are not of {num_steps} steps: {shown(asdict(totals))}")
        return found


_CHECK: TypeAdapter[RunProgress] = TypeAdapter(RunProgress)


def _is_best(best: Mapping[str, Any], epoch: int) -> bool:
    """Whether this is the best epoch of a run that is in `epoch`; a run that was not evaluated has none."""
    if not best:
        return True
    if {name: type(value) for name, value in best.items()} != {"epoch": int, "tokens": str, "top1": float}:
        return False
    return bool(0 <= best["epoch"] <= epoch and best["tokens"] in ARMS and 0 <= best["top1"] <= 100)
