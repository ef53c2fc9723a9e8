"""From JPEGs to weights: what the loader gives, what the step takes, and what `dlth train` makes of both.

The run is `train` itself, on shards of JPEGs with a ticket for each; its first steps are not counted, since each worker
has two batches in hand when the first is used. Of the steps after them it is told how long the loop waited for a batch,
by the run's own log; of the steps after those, how long the GPU ran no kernel, by torch's profiler. Workers start
together, so their batches arrive together: each part is of as many steps for one worker as for another, or it would
have the wait between two arrivals, or not, by chance.
"""

import gc
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rounds import synchronize
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from device.bench import Bench
from device.candidates import of_stepper
from device.data import RECIPES, parts_of, settings
from device.timing import NO_TIME, Row, timed
from dlth.data.cores import num_cores
from dlth.data.loading.batch import Batch
from dlth.training.reporter import Reporter
from dlth.training.runs.loop import train
from dlth.training.runs.runlog import METRICS
from dlth.training.runs.setup import Parts

GOAL = 0.95
"""Of the step's images per second, at least, where the loader can feed it."""
SHARES = ("loop waits for data", "GPU without a kernel")


def jpeg_rows(bench: Bench, recipe: str, batch: int) -> list[Row]:
    """One row: the most important model at the middle keep, under a recipe, not compiled."""
    scope, out = bench.scope, bench.files.folder / f"run-{recipe.split()[0]}"
    workers, name, keep = min(scope.workers, num_cores()), next(iter(scope.models)), scope.keeps[1]
    begin, end, last = windows(scope.num_images // batch, workers)
    changes = {**RECIPES[recipe], "keep": keep, "workers": workers, "log_interval": (last - end) // 2, "out": str(out)}
    config = settings(scope, bench.files, bench.device, batch, name, **changes)
    parts = parts_of(config, bench.device)
    loaded, first = _loader_rate(parts, begin, last)
    stepped = _step_rate(bench, parts, first)
    del parts
    gc.collect()  # the parts hold each other, and workers
    watch = _Watch(end, last, bench.device)
    train(config, reporter=watch)
    reached, waited = _run_rates(out, begin, end, batch)
    row: Row = {"recipe": recipe, "model": name, "keep": keep, "batch": batch, "workers": workers}
    row |= {"loader, images/s": round(loaded), "step, images/s": round(stepped) or NO_TIME}
    row |= {"dlth train, images/s": round(reached)}
    if stepped:
        row |= {"loader / step": loaded / stepped, "train / step": reached / stepped}
        row |= {"train / slower of both": reached / min(loaded, stepped)}
    idle = "the profiler saw none" if watch.idle is None else watch.idle
    row |= dict(zip(SHARES, (waited, idle), strict=True))
    row |= {"goal": _verdict(loaded, reached, stepped)} | bench.limits.images(bench.costs.get((name, f"ticket {keep}")))
    return [row | bench.limits.sent(sum(tensor.nbytes for tensor in first.tensors()) / batch)]


def windows(steps: int, workers: int) -> tuple[int, int, int]:
    """Steps after which a run's rate is counted, after which it is profiled, and after which neither is.

    The last two thirds, as far as both windows have as many steps of every worker.
    """
    unit = workers * (steps // (6 * workers))
    last = steps // unit * unit
    return last - 4 * unit, last - 2 * unit, last


def _step_rate(bench: Bench, parts: Parts, batch: Batch) -> float:
    """Images per second of the step alone; 0 where there was no time for it."""
    step = of_stepper(parts.stepper, [batch.to(bench.device)], parts.budget(0, 0))
    times = timed({"step": step}, bench.scope, bench.device, bench.deadline, time.perf_counter)
    return parts.config.batch_size / median(times["step"]) if times else 0.0


def _loader_rate(parts: Parts, begin: int, last: int) -> tuple[float, Batch]:
    """Images per second of the loader alone, after `begin` steps up to `last`; and its first batch."""
    batches = parts.loader.epoch(0)
    first = next(batches)
    for _ in range(begin - 1):
        next(batches)
    start, images = time.perf_counter(), 0
    for _ in range(last - begin):
        images += len(next(batches).labels)
    return images / (time.perf_counter() - start), first


def _run_rates(out: Path, start: int, stop: int, batch: int) -> tuple[float, float]:
    """Of the steps after `start` up to `stop`, by the run's log: images per second, and the share of time waited."""
    lines = [json.loads(line) for line in (out / METRICS).read_text().splitlines()]
    steps = {line["step"]: line for line in lines if line["kind"] == "train"}
    data, compute = (steps[stop][name] - steps[start][name] for name in ("data_seconds", "compute_seconds"))
    return (stop - start) * batch / (data + compute), data / (data + compute)


def _verdict(loaded: float, reached: float, stepped: float) -> str:
    if not stepped:
        return ""
    if loaded < stepped:
        return "the loader cannot feed it"
    return f"{'met' if reached >= GOAL * stepped else 'missed'} (train / step ≥ {GOAL})"


class _Watch(Reporter):
    """Profiles a run from the end of a step to that of another; `idle`: for which share of it no kernel ran, None if
    the profiler saw none.

    On a CPU operations take the place of kernels.
    """

    idle: float | None = None

    def __init__(self, begin: int, end: int, device: torch.device) -> None:
        self._begin, self._end, self._device = begin, end, device
        with self._profile():  # what starts slowly starts now
            pass

    def stepped(self, record: Mapping[str, Any]) -> None:
        if record["step"] == self._begin:
            self._profiler = self._profile()
            synchronize(self._device)  # so that between the two calls lie these steps' kernels, all of them
            self._profiler.start()
            self._clock = time.perf_counter()
        elif record["step"] == self._end:
            synchronize(self._device)
            seconds = time.perf_counter() - self._clock
            self._profiler.stop()
            kernels = [
                (event.time_range.start, event.time_range.end)
                for event in self._profiler.events() or ()
                if self._counts(event)
            ]
            self.idle = idle_share(kernels, 1e6 * seconds) if kernels else None

    def _profile(self) -> profile:
        on_gpu = self._device.type == "cuda"
        return profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU])

    def _counts(self, event: Any) -> bool:
        kind = DeviceType.CUDA if self._device.type == "cuda" else DeviceType.CPU
        return (
            event.device_type == kind
            and not event.is_user_annotation
            and not event.name.startswith(("Memcpy", "Memset"))
        )


def idle_share(intervals: Sequence[tuple[float, float]], length: float) -> float:
    """Share of so long a time in which none of the intervals runs, which all lie in it."""
    busy, until = 0.0, -float("inf")
    for start, stop in sorted(intervals):
        busy += max(0.0, stop - max(start, until))
        until = max(until, stop)
    return 1 - busy / length
