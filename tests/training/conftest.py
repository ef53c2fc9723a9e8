"""Tiny runs, and the families of models as an argument."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from makers.models import FAMILIES
from makers.runs import train_config
from makers.tickets import select_tickets
from makers.warm import rank_variables, run_warm

from dlth.data.shards.index import open_index
from dlth.tickets import ViewSpec
from dlth.training.settings.toml_text import to_toml
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


TRAIN = """
import os, signal, sys
from dlth.training.settings.layering import layered
from dlth.training.runs.loop import train
from dlth.training.reporter import Reporter
from dlth.training.settings.selector_config import SelectorTrainConfig
from dlth.training.settings.train_config import TrainConfig

class Signals(Reporter):
    def stepped(self, record):
        for number, step in zip(sys.argv[2::2], sys.argv[3::2]):
            if record["step"] == int(step):
                os.kill(os.getpid(), int(number))

kind = SelectorTrainConfig if "stage_keep" in open(sys.argv[1]).read() else TrainConfig
config = layered({"resume": "auto"}, config_file=sys.argv[1], kind=kind)
sys.exit(train(config, reporter=Signals()).exit_code)
"""


@pytest.fixture
def train_process(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """``train_process(config, ranks=1, signals={step: signal})`` -> a process that ran `train`, signalling itself.

    Of several ranks it is the first; a signal goes to each of them. With `torchrun` that starts them, and is given.
    """
    script = tmp_path / "train_once.py"
    script.write_text(TRAIN)

    def run(
        config: TrainConfig, ranks: int = 1, signals: dict[int, int] | None = None, torchrun: bool = False
    ) -> subprocess.CompletedProcess[str]:
        file = tmp_path / "settings.toml"
        file.write_text(to_toml(config))
        sent = [str(part) for step, number in (signals or {}).items() for part in (int(number), step)]
        command = [str(script), str(file), *sent]
        if torchrun:
            launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
            environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
            return subprocess.run([*launch, *command], capture_output=True, text=True, env=environment, timeout=300)
        return run_warm(*[command] * ranks, environments=rank_variables(ranks) if ranks > 1 else ())[0]

    return run
