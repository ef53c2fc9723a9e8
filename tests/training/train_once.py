"""Train as a file of settings says, going on where an earlier process ended, and signal oneself at given steps.

python train_once.py SETTINGS.toml [SIGNAL STEP]...
"""

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dlth.training.reporter import Reporter
from dlth.training.runs.loop import train
from dlth.training.settings.layering import layered
from dlth.training.settings.selector_config import SelectorTrainConfig
from dlth.training.settings.train_config import TrainConfig


class Signals(Reporter):
    """Sends them after the steps that they are asked for."""

    def stepped(self, record: Mapping[str, Any]) -> None:
        for number, step in zip(sys.argv[2::2], sys.argv[3::2], strict=True):
            if record["step"] == int(step):
                os.kill(os.getpid(), int(number))


if __name__ == "__main__":
    kind = SelectorTrainConfig if "stage_keep" in Path(sys.argv[1]).read_text() else TrainConfig
    config = layered({"resume": "auto"}, config_file=sys.argv[1], kind=kind)
    sys.exit(train(config, reporter=Signals()).exit_code)
