"""One run on several GPUs: `dlth train` under torchrun, as a user would start it, watched from outside.

The ranks are processes of their own, so the worker stays one process whatever becomes of them, and the next run begins
on clean devices. What went wrong is told by the lines ``error[CODE]: message`` that every command ends with.
"""

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

from dlth.tickets.errors import DlthError, InputError, shown
from dlth.training.distributed.signals import StopRequest
from dlth.training.machine_errors import RankError
from dlth.training.runs.result import read_result
from dlth.training.runs.runlog import RESULT
from dlth.training.settings.selector_config import SelectorTrainConfig
from dlth.training.settings.toml_text import to_toml
from dlth.training.settings.train_config import TrainConfig

_ERROR = re.compile(rb"^error\[(E_[A-Z_]{1,40})\]: (.*)$", re.MULTILINE)
_OF_ANOTHER = b"another rank of this run"
"""How a rank's error begins that only says that some other has one."""
_MAX_SAID = 1 << 20
"""Bytes of what the ranks said that are looked through, from the end."""
INTERVAL = 0.2


def batch_shared_by(config: TrainConfig, planned: int, gpus: int) -> TrainConfig:
    """The settings whose steps have as many images on `gpus` processes as the given ones on `planned`.

    Each forward stays as large as the given one or becomes smaller. Raises InputError where images do not divide.
    """
    images = config.batch_size * config.grad_accum_steps * planned
    if gpus < 1 or images % gpus:
        raise InputError(f"--gpus {gpus}: a step of this study has {images} images, which do not divide among them")
    share = images // gpus
    batch = max(size for size in range(1, min(config.batch_size, share) + 1) if share % size == 0)
    return config.model_copy(update={"batch_size": batch, "grad_accum_steps": share // batch})


def train_on_gpus(config: TrainConfig, gpus: int, stop: StopRequest, waiting: Callable[[], None]) -> None:
    """Train on `gpus` processes; returns once the run is finished, or saved because a stop was asked for.

    Args:
        config: the settings; `batch_size` is each process's
        waiting: called while the ranks work
    Raises:
        DlthError: what a rank ended with, of the same kind and with the same message
        RankError: the ranks ended without a word
    """
    with tempfile.TemporaryDirectory(prefix="dlth-run-") as folder, tempfile.TemporaryFile() as said:
        file = Path(folder) / "settings.toml"
        file.write_text(to_toml(config), encoding="utf-8")
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={gpus}"]
        trained = "train-selector" if isinstance(config, SelectorTrainConfig) else "train"
        command = [*launch, "-m", "dlth.pipeline.cli", trained, "--config", str(file), "--json"]
        # a session of its own: Ctrl-C reaches this process alone, which asks the ranks to save
        ranks = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=said, start_new_session=True)
        try:
            _wait(ranks, stop, waiting)
        finally:
            if ranks.poll() is None:
                ranks.terminate()
                ranks.wait()
        result = read_result(Path(config.out) / RESULT)
        if stop.requested or (result is not None and result.status == "finished"):
            return
        raise _problem(said, ranks.returncode)


def _wait(ranks: subprocess.Popen[bytes], stop: StopRequest, waiting: Callable[[], None]) -> None:
    """Return once the launcher has ended; a stop is passed on once, and the ranks save as they would alone."""
    passed_on = False
    while ranks.poll() is None:
        if stop.requested and not passed_on:
            ranks.terminate()
            passed_on = True
        waiting()
        time.sleep(INTERVAL)


def _problem(said: IO[bytes], returncode: int) -> DlthError:
    """The first error that a rank had of its own; RankError where none says one."""
    said.seek(max(0, said.seek(0, os.SEEK_END) - _MAX_SAID))
    text = said.read(_MAX_SAID)
    for code, told in _ERROR.findall(text):
        kind = _kinds(DlthError).get(code.decode(), DlthError)
        if kind is not RankError and not told.startswith(_OF_ANOTHER):
            return kind(told.decode("utf-8", "replace"))
    return RankError(f"the ranks ended with exit code {returncode}; the last they said: {shown(text[-500:])}")


def _kinds(base: type[DlthError]) -> dict[str, type[DlthError]]:
    """The family of errors, by code."""
    below = [_kinds(kind) for kind in base.__subclasses__()]
    return {base.code: base} | {code: kind for kinds in below for code, kind in kinds.items()}
