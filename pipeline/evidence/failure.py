"""The mark of a run that failed by itself: it diverged, or its settings were refused.

    failed.json            in the run's folder: the error's code and message, sealed

Others skip such a run until somebody asks for another try. What the machine does to a run (a full disk, a lock, a kill)
leaves no mark: another process, or the same one later, may well finish it.
"""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from dlth.tickets.errors import DamageError, DlthError, shown
from dlth.training.run_files import write_text
from dlth.training.runs.sealed_json import read_sealed, sealed

FAILED = "failed.json"
MAX_FAILURE_BYTES = 1 << 20


@dataclass(frozen=True)
class Failure:
    """Why a run failed: code and message of the error."""

    code: str
    message: str


def write_failure(folder: Path, failure: Failure) -> None:
    """Leave the mark in a run's folder, which is made if need be."""
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / FAILED, json.dumps(sealed(asdict(failure)), indent=1) + "\n")


def read_failure(folder: Path) -> Failure | None:
    """The mark that a run's folder holds; None without one. One that cannot be read is a mark all the same."""
    if not os.path.lexists(folder / FAILED):
        return None
    try:
        content = read_sealed(folder / FAILED, MAX_FAILURE_BYTES)[0]
        if {name: type(value) for name, value in content.items()} != {"code": str, "message": str}:
            raise DamageError(f"{shown(folder / FAILED)} does not say how the run failed", file=FAILED)
    except DlthError as error:
        return Failure(error.code, str(error))
    return Failure(**content)
