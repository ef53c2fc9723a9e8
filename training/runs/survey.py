"""What a run will take, told before it is begun: opened and checked whole, counted, and a few of its steps measured.

A survey owns no folder and leaves nothing behind; a study asks it of each of its arms before it spends anything. Work
is counted, step by step as a keep schedule has it, so that runs can be made to spend the same; only the rate at which
this machine works is measured.
"""

import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np

from dlth.training.device.numerics import numerics
from dlth.training.distributed.process_group import World, joined
from dlth.training.models.weights import weights_digest
from dlth.training.reporter import Reporter
from dlth.training.runs.keep_schedule import KeepMilestones, Schedule
from dlth.training.runs.setup import Parts, prepare
from dlth.training.settings.train_config import TrainConfig

STEPS_COUNTED = 64
"""In an epoch in which the keep schedule falls, so many evenly placed steps stand for all."""
STEPS_MEASURED = 20
CPU_FLOPS = 2e10
"""Operations per second that any CPU does: a step that would take it longer than may be measured is cut down."""


@dataclass(frozen=True)
class Work:
    """What training does: images shown, tokens and operations of those that it computes, and patches that it keeps."""

    images: int = 0
    tokens: int = 0
    flops: float = 0.0
    patches: float = 0.0

    def __add__(self, other: "Work") -> "Work":
        return Work(
            self.images + other.images,
            self.tokens + other.tokens,
            self.flops + other.flops,
            self.patches + other.patches,
        )

    def __mul__(self, times: int) -> "Work":
        return Work(self.images * times, self.tokens * times, self.flops * times, self.patches * times)


@dataclass(frozen=True)
class Survey:
    """A run that can be begun, in numbers.

    contents: digests of all that it reads, and what they are read as; `record`: as its result will have it
    first_epochs: the work of each epoch until the run has begun and the keep schedule has come to its end: none of
        those before its first step, and what is left of that one's; later ones are as the last
    val_flops: operations of one evaluation; read_bytes, val_bytes: encoded images of an epoch, and of an evaluation
    written_bytes: files that stay in its folder
    flops_per_second: as measured, waiting for data included; None where nothing was measured
    notes: what a person should know of it
    start_step: at which it begins
    """

    contents: dict[str, Any]
    record: dict[str, Any]
    steps_per_epoch: int
    first_epochs: tuple[Work, ...]
    val_flops: float
    read_bytes: int
    val_bytes: int
    written_bytes: int
    flops_per_second: float | None
    notes: tuple[str, ...]
    start_step: int = 0

    def work(self, epochs: int) -> Work:
        """That of a run which ends after so many epochs."""
        first = self.first_epochs[:epochs]
        return sum(first, Work()) + self.first_epochs[-1] * (epochs - len(first))

    def evaluations(self, epochs: int, interval: int) -> int:
        """How often a run of so many epochs is evaluated, each `interval` of them and at its end."""
        return -(-epochs // interval) - self.start_step // self.steps_per_epoch // interval

    def bytes_read(self, epochs: int, evaluations: int) -> int:
        """Encoded images that a run of so many epochs reads."""
        shown = self.read_bytes * self.work(epochs).images // max(self.first_epochs[-1].images, 1)
        return shown + evaluations * self.val_bytes

    def seconds(self, epochs: int, evaluations: int) -> float | None:
        """Estimated from the measured rate, for training and evaluation; None where nothing was measured."""
        if not self.flops_per_second:
            return None
        return (self.work(epochs).flops + evaluations * self.val_flops) / self.flops_per_second


def survey(config: TrainConfig, *, processes: int = 1, seconds: float = 0.0) -> Survey:
    """Open and check a run as `train` would, but for its folder.

    Args:
        config: its settings; `out` and `resume` are not looked at
        processes: by how many it will be trained; `batch_size` is of each
        seconds: how long to measure steps, about; 0: not at all
    Raises:
        DlthError: what does not fit together
    """
    notes = _Notes()
    whole = config.model_copy(update={"grad_accum_steps": config.grad_accum_steps * processes, "resume": None})
    with numerics(config.tf32, config.deterministic), joined(config.device) as world:
        parts = prepare(whole, world, notes)
        inputs, files = parts.inputs, parts.inputs.files
        whole_from = max(_settled_from(parts.schedule), -(-config.start_step // inputs.steps_per_epoch))
        first = tuple(_epoch_work(parts, epoch) for epoch in range(whole_from + 1))
        num_images = first[-1].images
        sizes = files.index.image_size
        return Survey(
            contents=_contents(parts),
            record=parts.record | {"data": inputs.trained_on(())},
            steps_per_epoch=inputs.steps_per_epoch,
            first_epochs=first,
            val_flops=_evaluation_flops(parts),
            read_bytes=round(float(np.mean(sizes)) * num_images) if len(sizes) else 0,
            val_bytes=int(files.val_index.image_size.sum()) if files.val_index is not None else 0,
            written_bytes=_written_bytes(parts),
            flops_per_second=_rate(parts, world, seconds) * processes if seconds else None,
            notes=tuple(notes.said),
            start_step=config.start_step,
        )


def read_now(config: TrainConfig, *, processes: int = 1) -> dict[str, Any]:
    """What a run would read if it began now, as the `contents` of its survey; no GPU is taken for that.

    Args:
        config, processes: as for `survey`
    Raises:
        DlthError: what does not fit together
    """
    steps = config.grad_accum_steps * processes
    whole = config.model_copy(update={"grad_accum_steps": steps, "resume": None, "device": "cpu"})
    with joined(whole.device) as world:
        return _contents(prepare(whole, world, Reporter()))


def _contents(parts: Parts) -> dict[str, Any]:
    if parts.config.init_from is None and parts.config.pretrained:
        return parts.read | {"initial weights": weights_digest(parts.student.model)}
    return parts.read


class _Notes(Reporter):
    """Keeps what is said, once each."""

    def __init__(self) -> None:
        self.said: dict[str, None] = {}

    def note(self, text: str) -> None:
        self.said[text] = None


def _settled_from(schedule: Schedule) -> int:
    """The first epoch from which on every step keeps the same."""
    if isinstance(schedule, KeepMilestones):
        return schedule.milestones[-1][0]
    return schedule.start + schedule.epochs if schedule.epochs else 0


def _epoch_work(parts: Parts, epoch: int) -> Work:
    """The work of an epoch's steps, of those that the run takes; images that have no ticket, and are shown whole, are
    counted as the others are.
    """
    inputs, steps = parts.inputs, parts.inputs.steps_per_epoch
    ordered, begin = inputs.left_out.num_ordered, parts.config.start_step - epoch * steps
    if begin >= steps:
        return Work()
    begin = max(begin, 0)
    before = sum(inputs.batching.step_images(ordered, step) for step in range(begin))
    images = inputs.batching.num_images(ordered) - before
    places = {begin}
    if parts.budget(epoch, begin) != parts.budget(epoch, steps - 1):
        places = {round(place) for place in np.linspace(begin, steps - 1, min(steps - begin, STEPS_COUNTED))}
    budgets = [parts.budget(epoch, step) for step in sorted(places)]
    sizes = [inputs.batching.step_images(ordered, step) for step in sorted(places)]
    return Work(
        images=images,
        tokens=round(images * np.average([parts.student.num_tokens(budget.k) for budget in budgets], weights=sizes)),
        flops=float(np.average([parts.step_flops(budget, images) for budget in budgets], weights=sizes)),
        patches=images * float(np.average([budget.k for budget in budgets], weights=sizes)),
    )


def _evaluation_flops(parts: Parts) -> float:
    """Of a forward of every validation image in every arm that is measured."""
    val, student = parts.inputs.val, parts.student
    if val is None:
        return 0.0
    sparse = [arm for arm in val.arms(parts.select is not None) if arm != "dense"]
    return float(val.index.num_samples * (student.flops() + len(sparse) * (student.flops(val.k) if sparse else 0)))


def _written_bytes(parts: Parts) -> int:
    """Weights, the best ones, the rewinding point's, their mean, and checkpoints, whose optimizer has two numbers for
    each weight.
    """
    config = parts.config
    weights = sum(parameter.numel() * parameter.element_size() for parameter in parts.student.parameters())
    averaged = int(config.model_ema)
    files = 1 + int(parts.inputs.val is not None) + int(config.rewind_step is not None) + averaged
    return weights * (files + config.checkpoint_hist * (3 + averaged))


def _rate(parts: Parts, world: World, seconds: float) -> float:
    """Operations per second of real steps, from loading to the optimizer; the weights are thrown away.

    The first step, which warms up, counts only if there is no other.
    """
    config, image_flops = parts.config, parts.step_flops(parts.budget(0, 0), 1.0)
    affordable = max(2, round(seconds * CPU_FLOPS / image_flops) // 2 * 2)
    if world.device.type == "cpu" and config.batch_size * config.grad_accum_steps > affordable:
        smaller = {"batch_size": min(affordable, config.batch_size), "grad_accum_steps": 1}
        parts = prepare(config.model_copy(update=smaller), world, Reporter())
    begun = warm = time.perf_counter()
    flops = first = 0.0
    with closing(parts.train_steps(0, 0)) as steps:
        for step, done in enumerate(_stepped(parts, steps)):
            flops += done
            now = time.perf_counter()
            if step == 0:
                first, warm = done, now
            if now - begun > seconds or step == STEPS_MEASURED:
                break
    return (flops - first) / (now - warm) if flops > first else flops / (now - begun)


def _stepped(parts: Parts, steps: Iterator[Any]) -> Iterator[float]:
    """Take the steps; gives the operations of each when it is done."""
    for step, batches in enumerate(steps):
        parts.set_rate(0, step)
        budget = parts.budget(0, step)
        result = parts.stepper(batches, step, budget)
        yield parts.step_flops(budget, result.weight)
