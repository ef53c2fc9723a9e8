"""From JPEGs to weights: what the loader gives, what the step takes, and what `dlth train` makes of both.

The run is `train` itself, on shards of JPEGs with a ticket for each; the first half of its steps is not counted, since
each worker has two batches in hand when the first is used. Of the rest it is told how long the loop waited for a batch,
by the run's own log; of the last few steps, how long the GPU ran no kernel, by torch's profiler.
"""

import gc
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rounds import middle
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from device.bench import Bench
from device.candidates import of_stepper
from device.data import RECIPES, parts_of, settings
from device.timing import Row, timed
from dlth.data.cores import num_cores
from dlth.data.loading.batch import Batch
from dlth.training.reporter import Reporter
from dlth.training.runs.loop import train
from dlth.training.runs.runlog import METRICS
from dlth.training.runs.setup import Parts
from dlth.training.settings.train_config import TrainConfig

GOAL = 0.95
"""Of the step's images per second, at least, where the loader can feed it."""


def jpeg_rows(bench: Bench, recipe: str, batch: int) -> list[Row]:
    """One row: the most important model at the middle keep, under a recipe, not compiled."""
    scope, out = bench.scope, bench.files.folder / f"run-{recipe.split()[0]}"
    workers, name, keep = min(scope.workers, num_cores()), next(iter(scope.models)), scope.keeps[1]
    changes = {**RECIPES[recipe], "keep": keep, "workers": workers, "log_interval": scope.profiled, "out": str(out)}
    config = settings(scope, bench.files, bench.device, batch, name, **changes)
    steps = scope.num_images // batch
    begin, end = (step // scope.profiled * scope.profiled for step in (steps // 2, steps - 1))
    loaded, stepped = _apart(bench, config, begin)
    gc.collect()  # the parts hold each other, and workers
    watch = _Watch(end, bench.device)
    train(config, reporter=watch)
    reached, waited = _run_rates(out, begin, end, batch)
    row: Row = {"recipe": recipe, "model": name, "keep": keep, "batch": batch, "workers": workers}
    row |= {"loader, images/s": round(loaded), "step, images/s": round(stepped), "dlth train, images/s": round(reached)}
    row |= {"loader / step": loaded / stepped, "train / step": reached / stepped} if stepped else {}
    idle = 1 - busy_share(watch.kernels) if watch.kernels else "the profiler saw none"
    row |= {"loop waits for data": waited, "GPU without a kernel": idle}
    return [row | {"goal": _verdict(loaded, reached, stepped)}]


def _apart(bench: Bench, config: TrainConfig, skipped: int) -> tuple[float, float]:
    """Images per second of the loader alone, and of the step alone; 0 where there was no time for it."""
    parts = parts_of(config, bench.device)
    loaded, first = _loader_rate(parts, skipped)
    step = of_stepper(parts.stepper, [first.to(bench.device)], parts.budget(0, 0))
    times = timed({"step": step}, bench.scope, bench.device, bench.deadline, time.perf_counter)
    return loaded, config.batch_size / middle(times["step"]) if times else 0.0


def _loader_rate(parts: Parts, skipped: int) -> tuple[float, Batch]:
    """Images per second of the loader alone, after so many steps; and its first batch."""
    batches = parts.loader.epoch(0)
    first = next(batches)
    for _ in range(skipped - 1):
        next(batches)
    start, images = time.perf_counter(), 0
    for batch in batches:
        images += len(batch.labels)
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
    """Profiles a run from the end of a step on; `kernels`: begin and end of each in microseconds.

    On a CPU operations take the place of kernels.
    """

    def __init__(self, after: int, device: torch.device) -> None:
        self.kernels: list[tuple[float, float]] = []
        self._after, self._on_gpu = after, device.type == "cuda"
        with self._profile():  # what starts slowly starts now
            pass

    def stepped(self, record: Mapping[str, Any]) -> None:
        if record["step"] == self._after:
            self._profiler = self._profile()
            self._profiler.start()
        elif record["step"] == record["num_steps"]:
            self._profiler.stop()
            self.kernels = [
                (event.time_range.start, event.time_range.end)
                for event in self._profiler.events() or ()
                if self._counts(event)
            ]

    def _profile(self) -> profile:
        return profile(activities=[ProfilerActivity.CUDA if self._on_gpu else ProfilerActivity.CPU])

    def _counts(self, event: Any) -> bool:
        kind = DeviceType.CUDA if self._on_gpu else DeviceType.CPU
        return (
            event.device_type == kind
            and not event.is_user_annotation
            and not event.name.startswith(("Memcpy", "Memset"))
        )


def busy_share(intervals: Sequence[tuple[float, float]]) -> float:
    """Share of the time from the first begin to the last end in which at least one of the intervals runs."""
    busy, until = 0.0, -float("inf")
    for start, stop in sorted(intervals):
        busy += max(0.0, stop - max(start, until))
        until = max(until, stop)
    return busy / (until - min(intervals)[0])
