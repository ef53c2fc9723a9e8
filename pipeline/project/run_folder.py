"""The folder of a run that nobody named: ``runs/ARM-MODEL-MODE-kK-seedS``, and never that of another run.

A folder that holds a run of the same settings is the run's own: ``--resume auto`` goes on in it. One that holds any
other run is left alone, and the next free number is taken. A name holds no date: a
command given again after a kill must find its run.
"""

import itertools
import re
from pathlib import Path
from typing import Any

from dlth.tickets import TicketHeader, num_kept
from dlth.tickets.errors import InputError
from dlth.training.settings.fields import is_free, panel_of, path_kind
from dlth.training.settings.layering import checked
from dlth.training.settings.selector_config import SelectorTrainConfig
from dlth.training.settings.toml_text import CONFIG, read_toml
from dlth.training.settings.train_config import WHAT, TrainConfig

RUNS = Path("runs")
_OWN_TO_A_START = ("out", "resume", "recipe")


def run_name(config: TrainConfig, header: TicketHeader | None) -> str:
    """What a run is called: arm, model, mode and patches kept unless all are, seed; `header` is its ticket file's."""
    known = config.student if config.init_from is None else Path(config.init_from).stem  # whose model its file records
    words = [config.arm, re.sub(r"[^A-Za-z0-9._]+", "_", config.model or known)]
    if isinstance(config, SelectorTrainConfig):
        words += [f"stage{config.stage_keep}"] if config.stage_keep is not None else []
    elif config.arm != "dense":
        words += [config.mode, _kept(config.share, header)]
    return "-".join([*filter(None, words), f"seed{config.seed}"])


def run_folder(config: TrainConfig, header: TicketHeader | None, runs: Path = RUNS) -> Path:
    """The folder of a run of these settings, if there is one; otherwise a free one."""
    name = run_name(config, header)
    numbered = (runs / (name if number == 1 else f"{name}-{number}") for number in itertools.count(1))
    return next(folder for folder in numbered if not (folder / CONFIG).is_file() or holds(folder, config))


def holds(folder: Path, config: TrainConfig) -> bool:
    """Whether a folder's run has the same settings and inputs: all that decides its result, whatever its batches."""
    try:
        its = checked(type(config), read_toml(folder / CONFIG))
    except InputError:  # settings of another version, or no run of dlth: another run in any case
        return False
    return _decisive(its) == _decisive(config)


def _decisive(config: TrainConfig) -> dict[str, Any]:
    return {
        name: value
        for name, value in config.model_dump(exclude=set(_OWN_TO_A_START)).items()
        if not is_free(field := type(config).model_fields[name]) or path_kind(field) or panel_of(field) == WHAT
    }


def _kept(keep: str | None, header: TicketHeader | None) -> str:
    if header is None:
        return f"keep{keep}" if keep else ""
    return f"k{header.k if keep is None else num_kept(keep, header.grid.num_patches)}"
