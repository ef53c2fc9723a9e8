"""Studies of pruned weights with results as one likes them: real masks of a tiny model, and nothing trained."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from dlth.pipeline.evidence.arm_key import ArmKey, fresh_seed, share_remaining
from dlth.pipeline.evidence.study_plan import MaskPlan, PlannedRun, RunCost, StudyPlan, write_study
from dlth.training.pruning.magnitude import pruned
from dlth.training.pruning.mask_file import MaskFile, write_mask
from dlth.training.pruning.mask_header import MaskHeader, layers_of
from dlth.training.pruning.recipe import MASK, MaskRecipe
from makers.results import EPOCHS, STEPS, settings, write_run

RATE, REWIND_STEP = "0.2", 2
INITIAL, FRESH = "e" * 64, "9" * 64
"""Digests of first weights: those of the rewinding point, and those that rr draws."""
DENSE, TICKET = ArmKey("dense"), ArmKey("ticket", "0.5", "projected")


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
    model = {"model": "vit_tiny_patch16_224", "num_classes": 10}
    header = MaskHeader(**model, recipe=recipe, layers=layers_of(masks), final="f" * 64, **rewound)
    return write_mask(folder / MASK, header, masks)
