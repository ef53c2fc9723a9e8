"""Studies of levels on real shards, as `dlth prune` plans them, of a model that is trained in a moment."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dlth.pipeline.evidence.study_plan import PlannedRun, StudyPlan
from dlth.pipeline.pruning.planning import plan_prune
from dlth.pipeline.pruning.prune_config import PruneConfig
from dlth.training.settings.layering import checked
from makers.pruned import KWARGS

ALL = "lt,rr,random-mask,one-shot,dense"
STEPS, EPOCHS, REWIND = 3, 2, 2
"""Steps of an epoch, epochs of a run, and the step that levels are set back to."""


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
