"""Candidates timed in turns until a deadline, at a batch that fits into the device's memory."""

import gc
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from rounds import Clock, Step, synchronize, time_rounds

from device.scope import Scope

NO_TIME = "not measured (time)"
Row = dict[str, Any]
Seconds = dict[str, list[float]]
"""Seconds of one call of each candidate, round by round."""


@dataclass(frozen=True)
class Deadline:
    """A moment of a clock, in seconds, after which nothing is begun."""

    at: float
    clock: Clock = time.monotonic

    @classmethod
    def after(cls, minutes: float, since: float | None = None) -> "Deadline":
        """That many minutes after `since`, in seconds of the Unix epoch; None: from now."""
        gone = 0.0 if since is None else time.time() - since
        return cls(time.monotonic() + 60 * minutes - gone)

    @property
    def left(self) -> float:
        """Seconds until then; below 0 after it."""
        return self.at - self.clock()

    @property
    def passed(self) -> bool:
        """Whether it is over."""
        return self.left <= 0


def timed(
    candidates: Mapping[str, Step], scope: Scope, device: torch.device, deadline: Deadline, clock: Clock | None = None
) -> Seconds:
    """Times of the candidates, which warm up one after the other and then take turns.

    Those are left out that would not be done by the deadline, rounds included, if the first calls of each, which may
    compile, take as long as the slowest before it. `clock` as `time_rounds` has it.
    """
    ready: dict[str, Step] = {}
    repeats: dict[str, int] = {}
    slowest = turns = 0.0  # seconds: of a candidate's first calls, and of the turns of all that are ready
    for name, run in candidates.items():
        if deadline.left <= slowest + turns:
            break
        begun = deadline.clock()
        run()
        synchronize(device)
        start = deadline.clock()
        run()
        synchronize(device)
        end = deadline.clock()
        repeats[name] = max(1, math.ceil(scope.least / (end - start)))
        ready[name] = _repeated(run, repeats[name])
        slowest = max(slowest, end - begun)
        turns += (scope.rounds + 1) * repeats[name] * (end - start)
    times = time_rounds(ready, scope.rounds, device, clock)
    return {name: [seconds / repeats[name] for seconds in each] for name, each in times.items()}


def _repeated(run: Step, times: int) -> Step:
    def runs() -> None:
        for _ in range(times):
            run()

    return runs


def free() -> None:
    """Let go of what nobody holds any more: tensors, the allocator's memory, compiled code."""
    torch.compiler.reset()
    gc.collect()
    torch.cuda.empty_cache()


def that_fits(measure: Callable[[int], list[Row]], batch: int, about: Row) -> list[Row]:
    """What `measure` gives at the largest of batch, batch / 2, … that fits; a row tells of each that does not."""
    try:
        return measure(batch)
    except torch.OutOfMemoryError:
        pass  # told below, where the tensors that the error's frames hold are gone
    free()
    told = about | {"batch": batch, "images/s": "out of memory"}
    return [told] if batch <= 2 else [told, *that_fits(measure, batch // 2, about)]
