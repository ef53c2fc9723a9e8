"""Stage 1 as a user runs it, on the device: killed and resumed, out of memory, and without waits between batches."""

import gc
import json
import signal
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from makers import TESTS
from makers.device_report import Compared
from makers.device_trace import traced
from makers.pictures import write_shards
from makers.precisions import FLOAT32
from makers.runs import select_config
from makers.scales import SELECTORS, Scale
from makers.tickets import not_in_common
from makers.warm import run_warm
from torch.profiler import record_function

from dlth.data.loading.shard_reader import read_shards
from dlth.pipeline.selection.stage import SelectPlan, plan, select
from dlth.tickets import TicketStore
from dlth.training.selectors.batch_ranker import BatchRanker, ranked_ahead

Settings = Callable[..., dict[str, Any]]
NEARLY_TIES = 2e-3
"""Share of kept patches that may differ where images are ranked in other batches, whose sums differ in their last
bits."""


@pytest.fixture
def settings(shards: dict[str, str], scale: Scale, device: torch.device, tmp_path: Path) -> Settings:
    """``settings(out="tickets.zarr", **changes)`` -> arguments of `select_config` for a selector on the device."""

    def make(out: str = "tickets.zarr", **changes: Any) -> dict[str, Any]:
        sizes = {"model_kwargs": scale.kwargs, "img_size": scale.img_size, "batch_size": scale.batch // 2}
        return {"data": shards["data"], "out": str(tmp_path / out), "device": str(device)} | sizes | changes

    return make


def planned(settings: dict[str, Any]) -> SelectPlan:
    return plan(select_config(**settings))


def rankings(path: str) -> np.ndarray:
    """Of every image, [B, P]."""
    store = TicketStore(path)
    return np.concatenate([store.read(shard).patches for shard in range(len(store.shards))])


def test_killed_and_resumed(settings: Settings, scale: Scale) -> None:
    """SIGKILL in the second shard leaves no file; run again, stage 1 does the rest, and the file is that of a run that
    nothing disturbed, to the last bit.
    """

    def run(kill_after: int) -> "subprocess.CompletedProcess[str]":
        return run_warm([TESTS / "gpu" / "select_once.py", json.dumps(settings("killed.zarr")), kill_after])[0]

    killed = run(kill_after=2 * scale.batch + 1)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not Path(settings("killed.zarr")["out"]).exists()
    resumed = run(kill_after=0)
    assert resumed.returncode == 0, resumed.stderr
    identity = select(planned(settings("whole.zarr"))).identity
    assert json.loads(resumed.stdout) == {"identity": identity, "before": 1}


def test_tf32_that_is_switched_on_elsewhere(settings: Settings) -> None:
    """Tickets in float32 are those of IEEE products, whatever the process around stage 1 has asked of PyTorch."""
    products = torch.backends.cuda.matmul, torch.backends.cudnn.conv
    identities = []
    for kind in ("ieee", "tf32"):
        before = [each.fp32_precision for each in products]
        for each in products:
            each.fp32_precision = kind
        try:
            identities.append(select(planned(settings(f"{kind}.zarr"))).identity)
        finally:
            for each, value in zip(products, before, strict=True):
                each.fp32_precision = value
    assert identities[0] == identities[1] != ""


def test_batches_are_read_once_and_not_waited_for_otherwise(
    settings: Settings, device: torch.device, compared: Compared
) -> None:
    """Over a stream of batches the host waits for the device once a batch, by an event: for its result."""
    asked = planned(settings(amp=True))
    batches = list(read_shards(range(2), asked.index, asked.header.view, asked.config.batch_size, workers=0))
    ranker = BatchRanker(asked.ranker, amp=True)

    def rank() -> None:
        with record_function("rank"):
            assert len(list(ranked_ahead(batches, ranker))) == len(batches)

    rank()
    (waits,) = traced(device, rank).waits("rank")
    compared("waits of stage 1 beyond one a batch", "bfloat16", max(waits.total() - len(batches), 0), 0)
    assert waits == (Counter(cudaEventSynchronize=len(batches)) if device.type == "cuda" else Counter())


def emptied() -> None:
    """Give back what nobody holds any more."""
    gc.collect()
    torch.cuda.empty_cache()


@contextmanager
def memory_of(device: torch.device, limit: int) -> Iterator[None]:
    """PyTorch's allocator gives out at most so many bytes of the device, what it has given out already among them."""
    emptied()
    torch.cuda.set_per_process_memory_fraction(limit / torch.cuda.mem_get_info(device)[1], device)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)


@pytest.mark.gpu
def test_out_of_memory(settings: Settings, device: torch.device, compared: Compared, tmp_path: Path) -> None:
    """A batch that really does not fit is halved until it does, which is said, and the tickets are those of small
    batches but for patches that are nearly ties.
    """
    large, deit_s = 96, SELECTORS["cuda"]
    data = write_shards(tmp_path, 1, large, split="many").spec

    def asked(out: str, batch_size: int) -> SelectPlan:
        sizes = {"model_kwargs": deit_s.kwargs, "img_size": deit_s.img_size, "batch_size": batch_size}
        return planned(settings(out, data=data, **sizes))

    peaks = {}
    for batch_size in (2, large):
        emptied()
        torch.cuda.reset_peak_memory_stats(device)
        assert select(asked(f"{batch_size}.zarr", batch_size)).complete
        peaks[batch_size] = torch.cuda.max_memory_reserved(device), torch.cuda.max_memory_allocated(device)
    enough, too_much = peaks[2][0], peaks[large][1]
    assert too_much > enough, "the large batch must need more than the small one, or nothing is shown"
    notes: list[str] = []
    with memory_of(device, (enough + too_much) // 2):
        plan_of_large = asked("halved.zarr", large)
        assert select(plan_of_large, note=notes.append).complete
    assert any(f"batch of {large} does not fit" in note for note in notes)
    ours, theirs = (rankings(settings(out)["out"]) for out in ("halved.zarr", "2.zarr"))
    lost = not_in_common(ours, theirs, plan_of_large.ranker.budget.k)
    compared("select, out of memory: patches not in common", FLOAT32, float(lost.mean()), NEARLY_TIES)
