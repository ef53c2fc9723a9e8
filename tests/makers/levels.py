"""Studies of levels on real shards, as `dlth prune` plans them, of a model that is trained in a moment."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dlth.pipeline.evidence.study_plan import PlannedRun, StudyPlan
from dlth.pipeline.pruning.planning import plan_prune
from dlth.pipeline.pruning.prune_config import PruneConfig
from dlth.pipeline.studies.worker import StudyState
from dlth.training.settings.layering import checked
from makers.pruned import KWARGS

ALL = "lt,rr,random-mask,one-shot,dense"
EPOCHS, REWIND = 2, 2
"""Of a run of three steps an epoch, and the step that levels are set back to."""
CNN = {"model": "resnet20", "model_kwargs": {"depth": 8, "width": 4}}
CNN_PRUNABLE = 36 * (3 + 4 + 4 + 8 + 16 + 32 + 64)
"""Its convolutions of 3x3; it has buffers as well."""


@dataclass(frozen=True)
class Study:
    """A study's folder, its plan, and how its worker left it."""

    folder: Path
    plan: StudyPlan
    state: StudyState

    def run(self, run: PlannedRun) -> Path:
        """The folder of a run."""
        return self.plan.folder(self.folder, run)


def tiny_runs(shared: Mapping[str, Any], **changes: Any) -> dict[str, Any]:
    """Settings of train without tickets: two epochs of 8, 8 and 5 images, of a model with 768 prunable weights."""
    whole = {name: value for name, value in shared.items() if "tickets" not in name}
    return whole | {"model_kwargs": KWARGS, "epochs": EPOCHS, "warmup_epochs": 0, "lr": 1e-2} | changes


def prune_config(out: Path, **study: Any) -> PruneConfig:
    """Two rounds of lt and the unpruned model with seed 0, rewound to step 2, unless said otherwise; not measured."""
    said = {"rounds": 2, "arm": "lt,dense", "seeds": "0", "rewind": REWIND, "measure": 0}
    return checked(PruneConfig, {"out": str(out), **said, **study})


def planned_levels(train: Mapping[str, Any], out: Path, **study: Any) -> StudyPlan:
    """The plan of such a study."""
    return plan_prune(prune_config(out, **study), train)


def the_run(plan: StudyPlan, arm: str, level: int = 0, seed: int = 0, draw: int = 0) -> PlannedRun:
    """A run of a plan; `arm`: "" for the unpruned one."""
    (found,) = [
        run
        for run in plan.runs
        if (run.arm.pruned, run.arm.draw, run.seed) == (arm, draw, seed)
        and (run.mask.recipe.level if run.mask else 0) == level
    ]
    return found


def flags(settings: dict[str, Any]) -> list[str]:
    """Settings as words of a command line."""
    given = {name: value for name, value in settings.items() if value is not None}
    texts = {
        name: ",".join(f"{key}={each}" for key, each in value.items()) if isinstance(value, dict) else str(value)
        for name, value in given.items()
    }
    return [word for name, text in texts.items() for word in (f"--{name.replace('_', '-')}", text)]
