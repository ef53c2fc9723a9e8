"""Stage 2 in processes of its own, alone or as ranks, which can be killed at a step."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import torch

from dlth.training.settings.toml_text import to_toml
from dlth.training.settings.train_config import TrainConfig
from makers import TESTS
from makers.warm import rank_variables, run_warm

SCRIPT = TESTS / "training" / "train_once.py"


def train_process(
    folder: Path, config: TrainConfig, ranks: int = 1, signals: Mapping[int, int] | None = None, torchrun: bool = False
) -> "subprocess.CompletedProcess[str]":
    """A process that ran `train`, signalling itself: `signals` by the step after which they are sent.

    Of several ranks it is the first; a signal goes to each of them. With `torchrun` that starts them, and is given.
    The settings are written into `folder`.
    """
    file = folder / "settings.toml"
    file.write_text(to_toml(config))
    sent = [str(part) for step, number in (signals or {}).items() for part in (int(number), step)]
    command = [str(SCRIPT), str(file), *sent]
    if torchrun:
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
        environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
        return subprocess.run([*launch, *command], capture_output=True, text=True, env=environment, timeout=300)
    return run_warm(*[command] * ranks, environments=rank_variables(ranks) if ranks > 1 else ())[0]
