"""What a run's loop carries from step to step besides weights and optimizer: where it is, and what it has counted.

A checkpoint holds it as JSON; what comes back is checked like anything from outside, and its numbers against each other
and the run, so that a wrong one is refused even where no digest covers it.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Annotated, Any, ClassVar, Self

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from dlth.data.loading.patches import ARMS
from dlth.tickets.errors import DamageError, shown
from dlth.training.evaluation.evalset import DROPPING

_ROUNDING = 1e-3
"""How far sums may go past their bound: they are rounded in float32 before they come here."""
_MAX_LOSS = 3.5e38
"""A loss is a float32."""
_MAX_SECONDS = 3.2e9
"""A century."""
_MAX_FLOPS = 1e18
"""Operations of training on one image: ten thousand times those of models that see a thousand pixels each way."""
Count = Annotated[int, Field(ge=0)]


@dataclass
class Totals:
    """Sums over some steps: seconds of this rank; of all ranks images, tokens, and the loss weighted by images.

    `hidden`: over the images, the share of their kept patches' area that shows fill or noise; `whole`: images trained
    on all patches, as they, or those they mixed with, had no ticket. `flops`: operations of training, as `StepFlops`
    counts them; None where an older version trained a part of it and counted none.
    """

    loss_sum: float = 0.0
    loss_weight: float = 0.0
    images: float = 0.0
    tokens: float = 0.0
    hidden: float = 0.0
    whole: float = 0.0
    flops: float | None = 0.0
    data_seconds: float = 0.0
    compute_seconds: float = 0.0

    def add(self, other: Self) -> None:
        """Add another's sums to these."""
        for one in fields(self):
            ours, theirs = getattr(self, one.name), getattr(other, one.name)
            setattr(self, one.name, None if ours is None or theirs is None else ours + theirs)

    def can_be_of(self, num_images: float, tokens_per_image: int) -> bool:
        """Whether these can be the sums of at most so many images, each of at most so many tokens."""
        most = {
            "images": num_images,
            "loss_weight": self.images,
            "hidden": self.images,
            "whole": self.images,
            "tokens": self.images * tokens_per_image,
            "flops": self.images * _MAX_FLOPS,
            "loss_sum": self.loss_weight * _MAX_LOSS,
            "data_seconds": _MAX_SECONDS,
            "compute_seconds": _MAX_SECONDS,
        }
        sums = {name: getattr(self, name) for name in most if name != "flops" or self.flops is not None}
        return all(-_ROUNDING <= value <= most[name] * (1 + _ROUNDING) for name, value in sums.items())

    @property
    def loss(self) -> float | None:
        """Mean loss per image, or None where no step counted."""
        return self.loss_sum / self.loss_weight if self.loss_weight else None

    @property
    def hidden_share(self) -> float | None:
        """Mean share of the kept patches' area that shows fill or noise, or None where there was no image."""
        return self.hidden / self.images if self.images else None

    def counts(self) -> dict[str, int | float | None]:
        """Images, tokens and operations, as logs name them."""
        return {"images": round(self.images), "tokens": round(self.tokens), "flops": self.flops}

    def rates(self) -> dict[str, float]:
        """Images and tokens per second over all ranks, and the seconds that this rank waited for data and computed."""
        seconds = max(self.data_seconds + self.compute_seconds, 1e-9)
        return {
            "images_per_second": self.images / seconds,
            "tokens_per_second": self.tokens / seconds,
            "data_seconds": self.data_seconds,
            "compute_seconds": self.compute_seconds,
        }


@dataclass(frozen=True)
class RunSize:
    """What a run's progress is held against: epochs, their steps, training images, images of a step, most tokens of an
    image, and the step at which the run began.
    """

    epochs: int
    steps_per_epoch: int
    num_images: int
    global_batch: int
    tokens_per_image: int
    start_step: int = 0


@dataclass
class RunProgress:
    """Where a run is: `batch` steps of `epoch` are done, `step` in all; `bad_steps` in a row had no finite gradient.

    `best`: epoch, arm and top1 of the best weights so far; `bad_images`: ids of the corrupt training images
    that any rank has met, also before a resume, rising; `rewind_weights`: digest of its weights at the rewinding point.
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
    rewind_weights: Annotated[str, Field(pattern="^([0-9a-f]{64})?$")] = ""

    @classmethod
    def beginning(cls, step: int, steps_per_epoch: int) -> "RunProgress":
        """That of a run which begins at `step`, with nothing counted."""
        epoch, batch = divmod(step, steps_per_epoch)
        return cls(epoch, batch, step)

    @classmethod
    def from_json(cls, values: Any, size: RunSize) -> "RunProgress":
        """The progress that `asdict` took apart, of a run of that size.

        Raises:
            DamageError: a field that is missing, foreign or of another type; a place or sums that this run cannot have
        """
        values = _with_uncounted(values)
        try:
            progress = _CHECK.validate_json(json.dumps(values))
        except ValidationError as error:
            wrong = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors()[:3])
            raise DamageError(f"the checkpoint's progress cannot be read: {shown(wrong)}") from error
        if asdict(progress) != values:
            raise DamageError(f"the checkpoint's progress lacks fields: it has {shown(values)}")
        at = f"epoch {progress.epoch}, step {progress.batch} of it, step {progress.step} of the run"
        steps, taken = size.steps_per_epoch, progress.step - size.start_step
        fits = progress.epoch < size.epochs and progress.batch <= steps and progress.bad_steps <= taken
        if not fits or progress.step != progress.epoch * steps + progress.batch:
            begun = f" that begins at step {size.start_step}" if size.start_step else ""
            raise DamageError(
                f"the checkpoint stands at {at}; a run of {size.epochs} x {steps} steps{begun} never does"
            )
        rising = all(low < high for low, high in zip(progress.bad_images, progress.bad_images[1:], strict=False))
        if not rising or (progress.bad_images and progress.bad_images[-1] >= size.num_images):
            raise DamageError(f"the checkpoint's corrupt images are none of the {size.num_images} training images")
        if not _is_best(progress.best, progress.epoch):
            raise DamageError(f"the checkpoint's best epoch cannot be read: {shown(progress.best)}")
        for totals, num_steps in ((progress.in_epoch, min(progress.batch, taken)), (progress.in_run, taken)):
            if not totals.can_be_of(num_steps * size.global_batch, size.tokens_per_image):
                raise DamageError(f"the checkpoint's sums are not of {num_steps} steps: {shown(asdict(totals))}")
        return progress


_CHECK: TypeAdapter[RunProgress] = TypeAdapter(RunProgress)


def _with_uncounted(values: Any) -> Any:
    """An older version's progress with what it did not count or keep."""
    if not isinstance(values, dict):
        return values
    sums = {name: values[name] for name in ("in_epoch", "in_run") if isinstance(values.get(name), dict)}
    return {"rewind_weights": ""} | values | {name: {"flops": None} | counted for name, counted in sums.items()}


def _is_best(best: Mapping[str, Any], epoch: int) -> bool:
    """Whether this is the best epoch of a run that is in `epoch`; a run that was not evaluated has none."""
    if not best:
        return True
    if {name: type(value) for name, value in best.items()} != {"epoch": int, "tokens": str, "top1": float}:
        return False
    return bool(0 <= best["epoch"] <= epoch and best["tokens"] in (*ARMS, DROPPING) and 0 <= best["top1"] <= 100)
