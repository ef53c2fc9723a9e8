"""The compiled student: one graph for each number of patches, none broken, and what the eager one learns."""

from collections.abc import Iterator

import pytest
import torch
from makers.device_report import Compared
from makers.device_runs import MakeRun, Weights, prepared, weights_apart, weights_of
from makers.precisions import BFLOAT16, FLOAT32
from makers.scales import Scale
from torch._dynamo.utils import counters

from dlth.training.runs.setup import Parts

IN_LOSS, IN_MOVE = {FLOAT32: 1e-5, BFLOAT16: 2e-2}, {FLOAT32: 1e-4, BFLOAT16: 1e-1}
"""Relative; in bfloat16 inductor rounds in fewer places than eager kernels."""


@pytest.fixture
def compiler() -> Iterator[None]:
    """Nothing is compiled yet, and nothing counted."""
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def two_epochs(parts: Parts) -> tuple[torch.Tensor, Weights, Weights]:
    """Losses of two steps of each epoch, and the weights before and after."""
    start, losses = weights_of(parts.student.model), []
    for epoch in (0, 1):
        batches = parts.train_steps(epoch, 0)
        for step in (0, 1):
            parts.set_rate(epoch, step)
            losses.append(parts.stepper(next(batches), 4 * epoch + step, parts.budget(epoch, step)).loss)
        batches.close()
    return torch.tensor(losses, dtype=torch.float64), start, weights_of(parts.student.model)


@pytest.mark.compiler
@pytest.mark.usefixtures("compiler")
def test_inductor(make_run: MakeRun, scale: Scale, device: torch.device, compared: Compared) -> None:
    """Over a keep schedule inductor compiles one graph for each number of patches, breaks none, and losses and weights
    are those of the eager steps; channels-last images, as they are sent to it, change nothing. On a CPU, where C++ is
    compiled for seconds, one block and one number of patches, in float32.
    """
    if device.type == "cuda":
        sizes, settings = 2, {"keep": "0.5", "keep_schedule": "0:0.75,1:0.5", "amp": True}
    else:
        sizes, settings = 1, {"model_kwargs": scale.kwargs | {"depth": 1}}
    settings |= {"epochs": 2, "tf32": True}  # of which the compiler asks PyTorch, and is to get an answer
    with prepared(make_run(**settings)) as parts:
        eager, _, expected = two_epochs(parts)
    with prepared(make_run(**settings, torchcompile="inductor", channels_last=True)) as parts:
        losses, start, end = two_epochs(parts)
    breaks = sum(counters["graph_break"].values())
    compared("compiled: graph breaks", "", breaks, 0)
    graphs = counters["stats"]["unique_graphs"]
    compared("compiled: graphs beyond one for each k", "", graphs - sizes, 0)
    assert graphs == sizes
    precision = BFLOAT16 if device.type == "cuda" else FLOAT32
    compared("compiled: loss against eager", precision, float((losses / eager - 1).abs().max()), IN_LOSS[precision])
    compared("compiled: weights against eager", precision, weights_apart(end, expected, start), IN_MOVE[precision])
