"""A study's plan: every run with its settings and what it will cost, written once and read by every process.

    study.json             this plan, sealed; the first process writes it, all others follow it
    study.toml             the same as it was asked for, as `dlth compare --config` reads it
    tickets/               control tickets made for the study
    runs/NAME/             a run of `dlth train` each

The plan is a file and not worked out by each process anew: epochs matched by measured hours would differ between them.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from dlth.pipeline.evidence.arm_key import ArmKey
from dlth.tickets.errors import DamageError, shown
from dlth.tickets.format.jsontext import strict
from dlth.training.run_files import write_text
from dlth.training.runs.sealed_json import read_sealed, sealed

STUDY, RUNS = "study.json", "runs"
MAX_STUDY_BYTES = 64 << 20
"""A run of a plan has four kilobytes."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._=+-]{0,199}")


@dataclass(frozen=True)
class RunCost:
    """What a run costs in all.

    images: images shown, over all epochs; tokens: tokens of those that the student computes
    flops: operations of training: forward and backward of the student (three forwards), and the selector's forward
        where it is in the loop; charged_flops: its share of what the tickets cost, where the study charges it
    bytes_read, bytes_written: encoded images read, and files that stay in its folder
    seconds: estimated from a measured step; None where nothing was measured
    """

    epochs: int
    steps: int
    images: int
    tokens: int
    flops: float
    charged_flops: float = 0.0
    bytes_read: int = 0
    bytes_written: int = 0
    seconds: float | None = None


@dataclass(frozen=True)
class PlannedRun:
    """A run of a study: the name of its folder, what it is, and the settings of `dlth train` but for `out`, `resume`.

    The name ends in a digest of all that decides its result, so a folder is that of one run and no other. Raises
    ValueError for one that is no plain name of a folder: a plan may come from anywhere.
    """

    name: str
    arm: ArmKey
    seed: int
    settings: Mapping[str, Any]
    cost: RunCost

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ValueError(f"{shown(self.name)!r} is no name of a run's folder")


@dataclass(frozen=True)
class StudyPlan:
    """A whole study.

    settings: of `dlth compare`, as JSON holds them (margin, match, …)
    may_differ: names of settings in which arms differ because the study says so: epochs where computation is matched,
        and those of single arms
    notes: what a person should know of it, such as combinations that make no sense and were left out
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    runs: tuple[PlannedRun, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    may_differ: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def folder(self, study: Path, run: PlannedRun) -> Path:
        """Where a run lies in the study's folder."""
        return study / RUNS / run.name


_CHECK: TypeAdapter[StudyPlan] = TypeAdapter(StudyPlan)


def read_study(folder: Path) -> StudyPlan:
    """The plan of a study's folder. Raises MissingFileError where there is none, DamageError for another's bytes."""
    content = read_sealed(folder / STUDY, MAX_STUDY_BYTES)[0]
    try:
        return _CHECK.validate_json(json.dumps(content))
    except ValidationError as error:
        raise DamageError(f"{shown(folder / STUDY)} is no plan of a study: {shown(error)}", file=STUDY) from error


def write_study(folder: Path, plan: StudyPlan) -> None:
    """Write the plan; the folder is there and this process owns it."""
    write_text(folder / STUDY, json.dumps(sealed(strict(asdict(plan))), indent=1, allow_nan=False) + "\n")
