"""Tiny runs, and the families of models as an argument."""

import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from makers import processes
from makers.models import FAMILIES
from makers.runs import train_config
from makers.tickets import select_tickets

from dlth.data.shards.index import open_index
from dlth.tickets import ViewSpec
from dlth.training.settings.train_config import TrainConfig


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test with a `family` argument runs for each of them."""
    if "family" in metafunc.fixturenames:
        metafunc.parametrize("family", FAMILIES)


@pytest.fixture
def make_run(make_shards: Callable[..., Any], tmp_path: Path) -> Callable[..., TrainConfig]:
    """``make_run(out="run", **overrides)`` -> the settings of a tiny ticket run on real shards with real tickets.

    21 training images (batches of 8: the last of an epoch has 5), 11 validation images, 16 patches of which 8 are kept.
    """
    made: dict[str, Any] = {}

    def make(out: str = "run", **overrides: Any) -> TrainConfig:
        if not made:
            for split, rows, seed in (("train", [7, 5, 9], 0), ("val", [6, 5], 1)):
                index = open_index(make_shards(len(rows), rows, split=split, seed=seed).spec)
                view = ViewSpec("whole", 32, 32) if split == "train" else ViewSpec("center", 32, 32, "0.9")
                made[split] = index, str(select_tickets(index, tmp_path / f"{split}.zarr", view=view, split=split).path)
        tickets = {"tickets": made["train"][1], "val_tickets": made["val"][1]}
        settings = {"val": str(tmp_path / "val"), **tickets, "warmup_epochs": 1} | overrides
        return train_config(settings.pop("data", str(tmp_path / "train")), tmp_path / out, **settings)

    return make


@pytest.fixture
def train_process(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """``train_process(config, ranks=1, signals={step: signal}, torchrun=False)``: see `makers.processes`."""
    return partial(processes.train_process, tmp_path)
