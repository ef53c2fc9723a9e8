"""Settings of tiny runs of both stages, on a CPU, and who listens to one."""

from pathlib import Path
from typing import Any

from dlth.pipeline.selection.config import SelectConfig
from dlth.training.distributed.signals import StopRequest
from dlth.training.reporter import Reporter
from dlth.training.runs.loop import train
from dlth.training.settings.layering import TrainT, checked, layered
from dlth.training.settings.train_config import TrainConfig

KWARGS = {"patch_size": 8, "embed_dim": 32, "depth": 4, "num_heads": 2}
MODEL = ("--model", "vit_tiny_patch16_224", "--model-kwargs", "patch_size=8,embed_dim=32,depth=2,num_heads=2")
SMALL = (*MODEL, "--img-size", "32")
"""A model of two blocks and 16 patches, as words of the command line."""


class Listener(Reporter):
    """Remembers what a run says."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.steps: list[dict[str, Any]] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def stepped(self, record: Any) -> None:
        self.steps.append(dict(record))


def stopped_after(config: TrainConfig, step: int) -> None:
    """Train, and stop as a signal would have it after a step."""
    stop = StopRequest()

    class StopAt(Reporter):
        def stepped(self, record: Any) -> None:
            stop.requested = record["step"] == step

    assert train(config, reporter=StopAt(), stop=stop).status == "stopped"


def select_config(data: str, out: Path, **changes: Any) -> SelectConfig:
    """A tiny selector: 16 patches of 8 px, seeded random weights unless a checkpoint is given."""
    values: dict[str, Any] = {
        "model": "vit_tiny_patch16_224",
        "model_kwargs": KWARGS,
        "data": data,
        "out": str(out),
        "img_size": 32,
        "keep": "0.5",
        "random_weights": "checkpoint" not in changes,
        "workers": 0,
        "threads": 1,
        "batch_size": 4,
        "num_classes": 4,
    }
    return checked(SelectConfig, values | changes)


def train_config(data: str, out: Path, kind: type[TrainT] = TrainConfig, **changes: Any) -> TrainT:  # type: ignore
    """Two epochs in batches of 8 of a student, or selector, of two blocks and 16 patches."""
    values: dict[str, Any] = {
        "data": data,
        "val": data,
        "out": str(out),
        "model": "vit_tiny_patch16_224",
        "model_kwargs": KWARGS | {"depth": 2},
        "img_size": 32,
        "epochs": 2,
        "warmup_epochs": 0,
        "batch_size": 8,
        "lr": 1e-3,
        "workers": 0,
        "log_interval": 1,
        "device": "cpu",
    }
    return layered(values | changes, kind=kind)
