"""Optimizers that step in few launches on a GPU, and checkpoints that go from one kind of device to the other."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from makers.runs import KWARGS, stopped_after
from safetensors.torch import load_file
from timm.optim import create_optimizer_v2, list_optimizers

from dlth.training.distributed.process_group import World
from dlth.training.distributed.signals import StopRequest
from dlth.training.reporter import Reporter
from dlth.training.runs import optim
from dlth.training.runs.loop import Training, train
from dlth.training.runs.optim import fused
from dlth.training.settings.train_config import TrainConfig

CPU = torch.device("cpu")
NAMES = [str(name) for name in list_optimizers() if not str(name).startswith(("bnb", "fused"))]


def test_pytorchs_own_are_fused_on_a_gpu_and_none_on_a_cpu() -> None:
    """Those that are have such a kernel, in groups of timm's making; on a CPU every optimizer rounds as it did."""
    on_a_gpu = [name for name in NAMES if fused(name, torch.device("cuda"))]
    assert on_a_gpu == ["adam", "adamw", "momentum", "nesterov", "sgd"]
    assert not any(fused(name, CPU) for name in NAMES)
    for name in on_a_gpu:
        layer = torch.nn.Linear(3, 2)
        optimizer = create_optimizer_v2(layer, opt=name, lr=0.1, momentum=0.9, fused=True)
        layer(torch.ones(1, 3)).sum().backward()
        optimizer.step()
        assert {group["fused"] for group in optimizer.param_groups} == {True}


@pytest.mark.parametrize("first", ["fused", "plain"])
def test_a_checkpoint_of_one_kind_of_device_goes_on_on_the_other(
    make_run: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch, first: str
) -> None:
    """Fused here and not there, or the reverse: the run goes on in its own way, with the moments and counts of steps
    that it finds, and ends on the weights of a run that was never stopped, but for rounding.
    """
    options = {"epochs": 1, "warmup_epochs": 0, "val": None, "val_tickets": None}
    options["model_kwargs"] = KWARGS | {"depth": 2, "qkv_bias": False}  # a key's bias has rounding as its gradient
    whole, parted = make_run("whole", **options), make_run("parted", **options)
    train(whole)
    ways = {"fused": ("cuda", "cpu"), "plain": ("cuda",)}
    monkeypatch.setattr(optim, "FUSED_ON", ways.pop(first))
    stopped_after(parted, 2)
    monkeypatch.setattr(optim, "FUSED_ON", *ways.values())
    resumed = Training(parted.model_copy(update={"resume": "auto"}), World(0, 1, CPU), Reporter())
    assert resumed.run(StopRequest()).steps == 3
    assert {bool(group["fused"]) for group in resumed.parts.optimizer.param_groups} == {first == "plain"}
    one, other = (load_file(Path(config.out) / "model.safetensors") for config in (whole, parted))
    for name, weight in one.items():
        torch.testing.assert_close(other[name], weight, rtol=1e-4, atol=1e-5)
