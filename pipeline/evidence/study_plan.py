"""A study's plan: every run with its settings and what it will cost, written once and read by every process.

    study.json             this plan, sealed; the first process writes it, all others follow it
    study.toml             the same as it was asked for, as `dlth compare` or `dlth prune --config` reads it
    tickets/               control tickets made for the study
    runs/NAME/             a run of `dlth train` each

The plan is a file and not worked out by each process anew: epochs matched by measured hours would differ between them.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from dlth.pipeline.evidence.arm_key import ArmKey
from dlth.tickets.errors import DamageError, InputError, shown
from dlth.tickets.format.jsontext import strict
from dlth.training.pruning.recipe import MASK, REWIND, MaskRecipe
from dlth.training.run_files import write_text
from dlth.training.runs.sealed_json import read_sealed, sealed
from dlth.training.settings.fields import MAX_EPOCHS
from dlth.training.settings.train_config import TrainConfig

STUDY, RUNS = "study.json", "runs"
MAX_STUDY_BYTES = 64 << 20
"""A run of a plan has four kilobytes."""
MAX_RUNS = 10_000
"""Runs of a study, and folders of runs that are looked at: more are no list that a person reads."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._=+-]{0,199}")

Count = Annotated[int, Field(ge=0, le=10**18)]
Operations = Annotated[float, Field(ge=0, le=1e30)]
Seconds = Annotated[float, Field(ge=0, le=5e9)]
"""At most a hundred and sixty years: those of all runs together are still a time that can be written."""


@dataclass(frozen=True)
class RunCost:
    """What a run costs in all.

    steps: that it takes; images: images shown, over all epochs; tokens: tokens of those that the student computes
    flops: operations of training: forward and backward of the student (three forwards), and the selector's forward
        where it is in the loop; charged_flops: its share of what the tickets cost, where the study charges it
    bytes_read, bytes_written: encoded images read, and files that stay in its folder
    seconds: estimated from a measured step; None where nothing was measured
    """

    epochs: Annotated[int, Field(ge=0, le=MAX_EPOCHS)]
    steps: Count
    images: Count
    tokens: Count
    flops: Operations
    charged_flops: Operations = 0.0
    bytes_read: Count = 0
    bytes_written: Count = 0
    seconds: Seconds | None = None


@dataclass(frozen=True)
class MaskPlan:
    """The mask of a planned run, which is made of what other runs of the plan leave.

    of: name of the run whose final weights, and mask if it has one, `recipe` begins with
    rewinds_to: name of the run whose weights at the rewinding point are the first ones; empty for fresh random weights
    """

    recipe: MaskRecipe
    of: str
    rewinds_to: str = ""

    @property
    def needs(self) -> tuple[str, ...]:
        """Names of the runs that must be finished first."""
        return tuple(dict.fromkeys(filter(None, (self.of, self.rewinds_to))))


@dataclass(frozen=True)
class PlannedRun:
    """A run of a study: the name of its folder, what it is, and the settings of `dlth train` but for `out`, `resume`.

    contents: digests of what it was planned to read (images, tickets, weights), as the name's digest holds them; those
        of a control's tickets say what they are made of, those of a mask likewise
    mask: under which its weights are trained; None of an unpruned model

    The name ends in a digest of all that decides its result, so a folder is that of one run and no other. Raises
    ValueError for one that is no plain name of a folder: a plan may come from anywhere.
    """

    name: str
    arm: ArmKey
    seed: int
    settings: Mapping[str, Any]
    cost: RunCost
    contents: Mapping[str, Any] = field(default_factory=dict)
    mask: MaskPlan | None = None

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ValueError(f"{shown(self.name)!r} is no name of a run's folder")

    @property
    def needs(self) -> tuple[str, ...]:
        """Names of the runs that must be finished first."""
        return () if self.mask is None else self.mask.needs


@dataclass(frozen=True)
class StudyPlan:
    """A whole study.

    settings: of `dlth compare` or `dlth prune`, as JSON holds them (margin, match, …)
    may_differ: names of settings in which arms differ because the study says so: epochs where computation is matched,
        and those of single arms
    notes: what a person should know of it, such as combinations that make no sense and were left out

    Raises ValueError for two runs of one name, or one that needs another which does not stand before it.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    runs: Annotated[tuple[PlannedRun, ...], Field(max_length=MAX_RUNS)]
    settings: Mapping[str, Any] = field(default_factory=dict)
    may_differ: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if len({run.name for run in self.runs}) < len(self.runs):
            raise ValueError("two runs have one name")
        before: set[str] = set()
        for run in self.runs:
            if lacking := set(run.needs) - before:
                raise ValueError(f"{run.name} needs {shown(min(lacking))}, which does not stand before it")
            before.add(run.name)

    @property
    def command(self) -> str:
        """The command that plans such a study: only the settings of `dlth prune` have rounds."""
        return "prune" if "rounds" in self.settings else "compare"

    def folder(self, study: Path, run: PlannedRun) -> Path:
        """Where a run lies in the study's folder."""
        return study / RUNS / run.name

    def train_settings(self, study: Path, run: PlannedRun) -> dict[str, Any]:
        """The settings by which a run is trained in the study's folder, which may have been moved since it was planned:
        its mask lies in its own folder, its first weights in that of the run that it is rewound to.
        """
        folder = self.folder(study, run)
        settings = {**run.settings, "out": str(folder)}
        if run.mask is not None:
            settings["mask"] = str(folder / MASK)
            if run.mask.rewinds_to:
                settings["init_from"] = str(study / RUNS / run.mask.rewinds_to / REWIND)
        return settings


@dataclass(frozen=True)
class _Used:
    """The settings of a plan by which something is done; the others are only shown."""

    gpus: Annotated[int, Field(gt=0, le=4_096, strict=True)] = 1
    margin: Annotated[float, Field(gt=0, le=100, strict=True)] = 1.0
    controls: Mapping[Annotated[str, Field(pattern=f"^{_NAME.pattern}$")], str] = field(default_factory=dict)


_CHECK: TypeAdapter[StudyPlan] = TypeAdapter(StudyPlan)
_CHECK_USED: TypeAdapter[_Used] = TypeAdapter(_Used)


def read_study(folder: Path) -> StudyPlan:
    """The plan of a study's folder. Raises MissingFileError where there is none, DamageError for another's bytes."""
    content = read_sealed(folder / STUDY, MAX_STUDY_BYTES)[0]
    try:
        plan = _checked(content)
    except ValidationError as error:
        raise DamageError(f"{shown(folder / STUDY)} is no plan of a study: {shown(error)}", file=STUDY) from error
    for run in plan.runs:
        seed = run.settings.get("seed", TrainConfig.model_fields["seed"].default)
        if seed != run.seed:
            raise DamageError(
                f"{shown(folder / STUDY)}: {run.name} is planned with seed {run.seed}, and its settings say"
                f" {shown(seed)}",
                file=STUDY,
            )
    return plan


def write_study(folder: Path, plan: StudyPlan) -> None:
    """Write the plan; the folder is there and this process owns it. Raises InputError for one that none could read."""
    content = strict(asdict(plan))
    try:
        _checked(content)
    except ValidationError as error:
        raise InputError(f"such a study could be planned and never read again: {shown(error)}") from error
    write_text(folder / STUDY, json.dumps(sealed(content), indent=1, allow_nan=False) + "\n")


def _checked(content: object) -> StudyPlan:
    """The plan that JSON holds. Raises ValidationError."""
    plan = _CHECK.validate_json(json.dumps(content))
    _CHECK_USED.validate_json(json.dumps(plan.settings))
    return plan
