"""A row that stands in for the paper's: the same path, with a model of four blocks, 16 patches and 21 images."""

from typing import Any

from dlth.pipeline.reproduction.experiment import Dataset, Experiment
from makers.runs import KWARGS

MODEL = {"model": "vit_tiny_patch16_224", "model_kwargs": KWARGS, "img_size": 32}
PLAIN = {**MODEL, "warmup_epochs": 0, "lr": 1e-3}
SPLITS = {"train": [7, 5, 9], "val": [6, 5]}
"""Rows of the shards of a set of 21 and 11 images."""
TOY = Dataset("toy", 21, 11)


def toy_row(name: str, arm: str, **changes: Any) -> Experiment:
    """An experiment on 16 patches: two epochs in steps of 8 images; `changes` of its fields."""
    values = {"dataset": TOY, "settings": PLAIN, "epochs": 2, "batch": 8, "patches": 16}
    return Experiment(name, arm, **values | changes)
