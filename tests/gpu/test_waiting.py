"""The host waits for the device once a step and once a batch, and the device waits for no copy: counted, not timed."""

from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from makers.device_report import Compared
from makers.device_runs import MakeRun, prepared
from makers.device_trace import traced
from makers.scales import Scale
from safetensors.torch import save_file
from torch.profiler import record_function

AMP: dict[str, Any] = {"amp": True, "opt": "adamw", "lr": 1e-3}
SETTINGS: dict[str, dict[str, Any]] = {
    "bfloat16": AMP,
    "float16": AMP | {"amp_dtype": "float16"},
    "clipped, averaged, mixed": AMP | {"clip_grad": 1.0, "model_ema": True, "mixup": 0.8, "mix_group": 4},
    "tokens mixed": AMP | {"mix_token": 1.0, "mix_group": 4},
    "online": AMP | {"mode": "online", "tickets": None, "keep": "0.5", "selector_blocks": (0, 1)},
}


@contextmanager
def hidden_waits_refused(device: torch.device) -> Iterator[None]:
    """PyTorch raises at each operation that waits for the GPU without saying so."""
    if device.type == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("what", SETTINGS)
def test_a_step_waits_once(
    make_run: MakeRun, scale: Scale, device: torch.device, compared: Compared, tmp_path: Path, what: str
) -> None:
    """A warmed-up step reads the device once, by an event, and does nothing else that waits for it."""
    settings = SETTINGS[what]
    if "mode" in settings:
        save_file(scale.vit().state_dict(), tmp_path / "selector.safetensors")
        settings = settings | {"selector": scale.model, "selector_kwargs": scale.kwargs}
        settings |= {"selector_checkpoint": str(tmp_path / "selector.safetensors")}
    with prepared(make_run(**settings)) as parts:
        with closing(parts.train_steps(0, 0)) as epoch:
            batches = list(islice(epoch, 4))

        def step(number: int) -> None:
            assert parts.stepper(batches[number], number, parts.budget(0, number)).moved

        def measured() -> None:
            for number in (2, 3):
                with record_function("step"):
                    step(number)

        for number in (0, 1):
            step(number)
        trace = traced(device, measured)
        with hidden_waits_refused(device):
            step(0)
    waits = trace.waits("step")
    compared(f"waits of a step, {what}", "", max(counts.total() for counts in waits), 1)
    assert waits == [Counter(cudaEventSynchronize=1) if device.type == "cuda" else Counter()] * 2


@pytest.mark.gpu
def test_batches_are_sent_from_pinned_memory_beside_what_computes(
    make_run: MakeRun, device: torch.device, compared: Compared
) -> None:
    """Every batch is copied from pinned memory, on a stream on which no kernel runs; how much of that time the device
    computed meanwhile is told.
    """
    with prepared(make_run(**AMP)) as parts, closing(parts.train_steps(0, 0)) as epoch:

        def step(number: int) -> None:
            parts.stepper(next(epoch), number, parts.budget(0, number))

        step(0)
        trace = traced(device, lambda: [step(number) for number in (1, 2, 3)])
    copies, kernels = trace.copies("HtoD"), trace.kernels()
    assert copies
    unpinned = [copy.name for copy in copies if copy.name != "Memcpy HtoD (Pinned -> Device)"]
    compared("copies to the device that are not from pinned memory", "", len(unpinned), 0)
    shared = {copy.stream for copy in copies} & {kernel.stream for kernel in kernels}
    compared("streams on which a batch is copied and something computed", "", len(shared), 0)
    hidden = [copy for copy in copies if any(copy.overlaps(kernel) for kernel in kernels)]
    compared("copies during which nothing was computed, of all", "", 1 - len(hidden) / len(copies), None)
