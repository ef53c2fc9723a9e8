"""Shards, a ticket file and a selector's weights, made for the occasion, and the parts of real runs on them.

Whatever is measured of training is `dlth train`'s own: settings become `Parts` as they do there, and batches are those
of its loader. Weights are random, and the learning rate is so small that no loss leaves the numbers.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jpegs import CLASSES, write_shards
from makers.tickets import select_tickets

from device.scope import Scope
from dlth.data.shards.index import open_index
from dlth.tickets import Budget, Grid, SelectorInfo, ViewSpec
from dlth.training.distributed.process_group import World
from dlth.training.models.registry import build
from dlth.training.reporter import Reporter
from dlth.training.runs.checkpoint import write_tensors
from dlth.training.runs.setup import Parts, prepare
from dlth.training.settings.layering import layered
from dlth.training.settings.train_config import TrainConfig

RECIPES: dict[str, dict[str, Any]] = {
    "deit": {"recipe": "deit", "model_ema": False, "aug_repeats": 0},
    "crop and mirror": {},
}
"""The paper's recipe, in which images are mixed and so travel whole, and one that mixes none. No weights averaged."""


@dataclass(frozen=True)
class Files:
    """Where everything is made: shards, tickets of all of their images, selectors' weights, runs."""

    folder: Path

    @property
    def shards(self) -> Path:
        """A folder of tars."""
        return self.folder / "shards"

    @property
    def tickets(self) -> Path:
        """A ticket file."""
        return self.folder / "tickets.zarr"


def make_files(scope: Scope, files: Files) -> None:
    """Write shards of JPEGs and a ticket for each, as stage 1 would of a selector with random weights."""
    write_shards(files.shards, scope.num_images, shard_rows=1024, distinct=scope.distinct, size=scope.jpeg)
    side = scope.view // scope.patch
    budget = Budget.from_keep(scope.keeps[-1], side * side, 3)
    view = ViewSpec("whole", scope.view, scope.view)
    about = {"patch_size": scope.patch, "selector": SelectorInfo("deit", "", "random", (3, 6, 9))}
    index = open_index(str(files.shards))
    select_tickets(index, files.tickets, view=view, grid=Grid(side, side), budget=budget, **about)


def settings(scope: Scope, files: Files, device: torch.device, batch: int, name: str, **changes: Any) -> TrainConfig:
    """Settings of a run of the model `name` on tickets; `changes` go before."""
    values: dict[str, Any] = {
        "data": str(files.shards),
        "tickets": str(files.tickets),
        "out": str(files.folder / "run"),
        "num_classes": CLASSES,
        "device": str(device),
        "batch_size": batch,
        "amp": True,
        "epochs": 1,
        "warmup_epochs": 0,
        "lr": 1e-5,
        "workers": 0,
    }
    return layered(values | dict(scope.models[name]) | changes)


def parts_of(config: TrainConfig, device: torch.device) -> Parts:
    """What such a run is made of, on its own on the device."""
    return prepare(config, World(0, 1, device), Reporter())


def selector_weights(scope: Scope, files: Files, name: str) -> str:
    """A file of random weights of the model `name`, for a selector in the loop."""
    path = files.folder / f"{name}.safetensors"
    if not path.is_file():
        options = dict(scope.models[name])
        vit = build(options.pop("model"), num_classes=CLASSES, **options.pop("model_kwargs", {}), **options)
        write_tensors(path, vit.state_dict())
    return str(path)
