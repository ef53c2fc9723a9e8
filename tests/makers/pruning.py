"""Studies of pruned weights: as `dlth prune` plans them, on real shards, of a model that is trained in a moment; and
with results as one likes them: real masks, and nothing trained.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from dlth.pipeline.evidence.arm_key import ArmKey, fresh_seed, share_remaining
from dlth.pipeline.evidence.study_plan import MaskPlan, PlannedRun, RunCost, StudyPlan, write_study
from dlth.pipeline.pruning.planning import plan_prune
from dlth.pipeline.pruning.prune_config import PruneConfig
from dlth.pipeline.studies.worker import StudyState
from dlth.training.pruning.magnitude import pruned
from dlth.training.pruning.mask_file import MaskFile, write_mask
from dlth.training.pruning.recipe import MASK, MaskRecipe
from dlth.training.settings.layering import checked
from makers.masks import KWARGS, header_of
from makers.results import EPOCHS, STEPS, settings, write_run

ALL = "lt,rr,random-mask,one-shot,dense"
CNN = {"model": "resnet20", "model_kwargs": {"depth": 8, "width": 4}}
CNN_PRUNABLE = 36 * (3 + 4 + 4 + 8 + 16 + 32 + 64)
"""Its convolutions of 3x3; it has buffers as well."""
RATE, REWIND_STEP = "0.2", 2
INITIAL, FRESH = "e" * 64, "9" * 64
"""Digests of first weights: those of the rewinding point, and those that rr draws."""
DENSE, TICKET = ArmKey("dense"), ArmKey("ticket", "0.5", "projected")
WAYS = {"lt": 0.8, "rr": 0.6, "random-mask": 0.5, "one-shot": 0.7}
"""Shares of images that are right by each way to prune: lt does as well as the unpruned arm, the others worse."""
LATE = "dense-rr-level2-draw1-seed2"
"""The run that such a study of two levels and two draws lacks."""


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
    return whole | {"model_kwargs": KWARGS, "epochs": 2, "warmup_epochs": 0, "lr": 1e-2} | changes


def prune_config(out: Path, **study: Any) -> PruneConfig:
    """Two rounds of lt and the unpruned model with seed 0, rewound to step 2, unless said otherwise; not measured."""
    said = {"rounds": 2, "arm": "lt,dense", "seeds": "0", "rewind": REWIND_STEP, "measure": 0}
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


def write_pruned(folder: Path, arm: ArmKey, level: int, seed: int, share: float, **of: Any) -> Path:
    """A finished run of a pruned arm at a level: its mask, and its result with a share of right images."""
    mask = _mask(folder, _recipe(arm, level, seed), arm.pruned == "rr")
    counts = {"mask": mask.identity, "prunable_weights": mask.prunable, "remaining_weights": mask.remaining}
    of = {"initial_weights": mask.header.initial or FRESH, **of}
    luck = arm.pruned, level, arm.draw
    return write_run(folder, arm.arm, seed, share=share, luck=luck, changes=_settings(arm, level, seed), **counts | of)


def write_prune_study(
    folder: Path,
    shares: Mapping[str, float],
    *,
    unpruned: float = 0.8,
    levels: int = 3,
    seeds: Sequence[int] = (0, 1, 2),
    draws: int = 1,
    arm: ArmKey = DENSE,
    missing: Sequence[str] = (),
) -> StudyPlan:
    """A study in which each way to prune gets a share of images right at every level, and so does the unpruned arm; as
    ever, one-shot pruning begins with the second.

    draws: of rr and random-mask; missing: names of runs that are not finished
    """
    runs = [_planned(f"{arm.arm}-seed{seed}", arm, 0, seed) for seed in seeds]
    for run in runs:
        write_run(folder / "runs" / run.name, arm.arm, run.seed, share=unpruned, changes={"rewind_step": REWIND_STEP})
    for level in range(1, levels + 1):
        for way, right in ((way, right) for way, right in shares.items() if level > 1 or way != "one-shot"):
            for draw in range(draws if way in ("rr", "random-mask") else 1):
                key = replace(arm, pruned=way, weights=share_remaining(RATE, level), draw=draw)
                for seed in seeds:
                    run = _planned(f"{arm.arm}-{way}-level{level}-draw{draw}-seed{seed}", key, level, seed)
                    runs.append(run)
                    if run.name not in missing:
                        write_pruned(folder / "runs" / run.name, key, level, seed, right)
    said = {"rounds": levels, "rate": RATE, "rewind": str(REWIND_STEP), "margin": 5.0, "arm": ["dense", *shares]}
    plan = StudyPlan(tuple(runs), said)
    write_study(folder, plan)
    return plan


def _planned(name: str, arm: ArmKey, level: int, seed: int) -> PlannedRun:
    cost = RunCost(EPOCHS, EPOCHS * STEPS, 96, 96 * 9, 3e5, seconds=30.0)
    first = f"{arm.arm}-seed{seed}"
    rewinds_to = "" if arm.pruned == "rr" else first
    mask = MaskPlan(_recipe(arm, level, seed), first, rewinds_to) if arm.pruned else None
    changes = _settings(arm, level, seed) if arm.pruned else {"rewind_step": REWIND_STEP}
    kept = {name: value for name, value in changes.items() if name not in ("mask", "init_from")}
    return PlannedRun(name, arm, seed, settings(arm.arm, seed, **kept), cost, mask=mask)


def _recipe(arm: ArmKey, level: int, seed: int) -> MaskRecipe:
    drawn = {"shuffled": True, "draw": arm.draw, "seed": seed} if arm.pruned == "random-mask" else {}
    return MaskRecipe(level, RATE, rounds=level if arm.pruned == "one-shot" else 1, **drawn)


def _settings(arm: ArmKey, level: int, seed: int) -> dict[str, Any]:
    if arm.pruned == "rr":
        return {"mask": MASK, "init_seed": fresh_seed(seed, level, arm.draw)}
    return {"mask": MASK, "init_from": "rewind.safetensors", "start_step": REWIND_STEP}


def _mask(folder: Path, recipe: MaskRecipe, fresh: bool) -> MaskFile:
    """A mask of a hundred weights in two layers, in the run's folder."""
    weights = {"one.weight": torch.arange(1.0, 61.0).view(6, 10), "two.weight": torch.arange(0.5, 40).view(4, 10)}
    masks = pruned(weights, None, replace(recipe, rounds=recipe.level))
    rewound = {} if fresh else {"rewind_step": REWIND_STEP, "initial": INITIAL}
    folder.mkdir(parents=True)
    about = {"model": "vit_tiny_patch16_224", "num_classes": 10, "final": "f" * 64}
    return write_mask(folder / MASK, header_of(masks, recipe, **about, **rewound), masks)
