"""Timing that survives a noisy machine: candidates take turns, a ratio is taken within a round, the median is told.

On a CPU one thread is timed by the processor time it used: on a machine shared with others wall time of two threads
scattered by a factor of two, processor time of one by a few hundredths. More threads, and GPUs, are timed by the wall.
"""

import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from torch.utils.flop_counter import FlopCounterMode

Step = Callable[[], object]
Clock = Callable[[], float]


def time_rounds(
    candidates: Mapping[str, Step], rounds: int, device: torch.device, clock: Clock | None = None
) -> dict[str, list[float]]:
    """Seconds of each candidate in each round, after one round that is not counted; by the device's clock if None."""
    clock = clock or _clock(device)
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for number in range(rounds + 1):
        for name, run in candidates.items():
            synchronize(device)
            start = clock()
            run()
            synchronize(device)
            if number:
                times[name].append(clock() - start)
    return times


def spread(times: dict[str, list[float]], name: str, base: str) -> dict[str, float]:
    """Median, lowest and highest ratio of `name` to `base` within a round."""
    ratios = [mine / theirs for mine, theirs in zip(times[name], times[base], strict=True)]
    return {"median": statistics.median(ratios), "low": min(ratios), "high": max(ratios)}


def gflop(run: Step) -> float:
    """Counted floating point operations of matrix products and convolutions, two per multiply-add, in billions."""
    # of the kernels that run, so torch 2.11 leaves the CPU's fused attention out; plain products, as in `flops_of`,
    # would count it there, but have four in the backward where fused kernels, and the tables in docs/, have five
    counter = FlopCounterMode(display=False)
    with counter:
        run()
    return counter.get_total_flops() / 1e9


def report(title: str, rows: list[dict[str, Any]], device: torch.device, path: Path | None, **facts: object) -> None:
    """Print the rows as a Markdown table under the facts of the run, and store both as JSON if asked to."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    facts |= {"device": f"{device} ({name}, {torch.get_num_threads()} threads)", "torch": torch.__version__}
    facts |= {"timm": timm.__version__, "clock": _clock(device).__name__}
    print(f"\n{title}\n" + ", ".join(f"{key} {value}" for key, value in facts.items()) + "\n")
    print(markdown(rows))
    if path is not None:
        path.write_text(json.dumps({"title": title, **facts, "rows": rows}, indent=1))


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as a Markdown table; its columns are those of any row, and empty where a row has none of it."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    lines = [" | ".join(columns), *(" | ".join(_cell(row.get(column, "")) for column in columns) for row in rows)]
    head, *body = (f"| {line} |" for line in lines)
    return "\n".join([head, "|" + " --- |" * len(columns), *body])


def _clock(device: torch.device) -> Clock:
    return time.process_time if device.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter


def _cell(value: object) -> str:
    if isinstance(value, dict):
        return f"{value['median']:.3f} ({value['low']:.3f} to {value['high']:.3f})"
    if isinstance(value, float):
        return f"{value:.2g}" if 0 < abs(value) < 0.01 else f"{value:.3f}"
    return "" if value is None else str(value)


def synchronize(device: torch.device) -> None:
    """Wait for what was queued on a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
