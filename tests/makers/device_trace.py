"""What a GPU was asked for while a block ran, as PyTorch's profiler saw it: waits of the host, copies, kernels.

Names and fields are those of the Chrome trace that kineto writes: calls of the CUDA runtime by their C names (category
cuda_runtime), copies as "Memcpy HtoD (Pinned -> Device)" (gpu_memcpy), both with the stream among their arguments. On
a CPU a trace holds none of them.
"""

import json
import re
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

WAITS = {"cudaDeviceSynchronize", "cudaStreamSynchronize", "cudaEventSynchronize", "cudaMemcpy", "cudaMemcpy2D"}
"""Calls in which the host waits for the device. The one that a step makes is cudaEventSynchronize: `read_later`."""
VERSION = re.compile(r"_v\d+(_ptsz)?$")
"""How CUPTI ends the names of some calls."""


@dataclass(frozen=True)
class Span:
    """Something that took from `start` to `end`, in microseconds; `stream`: of the device, None on the host."""

    name: str
    start: float
    end: float
    stream: int | None

    def overlaps(self, other: "Span") -> bool:
        """Whether both ran at some moment."""
        return self.start < other.end and other.start < self.end


@dataclass(frozen=True)
class Trace:
    """Spans by category."""

    spans: dict[str, list[Span]]

    def waits(self, block: str) -> list[Counter[str]]:
        """How often the host waited, by call, in each block `torch.profiler.record_function(block)`, in any thread."""
        calls = [span for span in self._of("cuda_runtime") if span.name in WAITS]
        blocks = [span for span in self._of("user_annotation") if span.name == block]
        return [Counter(call.name for call in calls if one.start <= call.start < one.end) for one in blocks]

    def copies(self, direction: str) -> list[Span]:
        """Copies, "HtoD" or "DtoH"."""
        return [span for span in self._of("gpu_memcpy") if span.name.startswith(f"Memcpy {direction} ")]

    def kernels(self) -> list[Span]:
        """What was computed."""
        return self._of("kernel")

    def lack(self) -> str:
        """What a trace of a GPU does not show, so that no wait could be counted in it; empty if it shows all."""
        calls = {span.name for span in self._of("cuda_runtime")}
        if not calls:
            return "PyTorch's profiler sees nothing of this GPU (CUPTI)"
        unseen = "PyTorch's profiler leaves out cudaEventSynchronize here, as some versions do: waits cannot be counted"
        return "" if "cudaEventSynchronize" in calls else unseen

    def _of(self, category: str) -> list[Span]:
        return self.spans.get(category, [])


def traced(device: torch.device, work: Callable[[], Any]) -> Trace:
    """Run `work`, and what it asked the device for is done."""
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device.type == "cuda")
    with tempfile.TemporaryDirectory() as folder:
        with profile(activities=activities) as profiler:
            work()
            if device.type == "cuda":  # a wait that has to show, after all that is counted
                torch.cuda.current_stream(device).record_event().synchronize()
            torch.get_device_module(device).synchronize()
        file = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(file))
        events = json.loads(file.read_text())["traceEvents"]
    spans: dict[str, list[Span]] = {}
    for event in events:
        if event.get("ph") == "X":
            start, stream = float(event["ts"]), event.get("args", {}).get("stream")
            name = VERSION.sub("", event["name"])
            spans.setdefault(event.get("cat", ""), []).append(Span(name, start, start + float(event["dur"]), stream))
    trace = Trace(spans)
    assert device.type != "cuda" or not trace.lack(), trace.lack()
    return trace
