"""Folders of finished runs with results as one likes them, by the writers that runs use: nothing is trained."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dlth.pipeline.evidence.arm_key import ArmKey
from dlth.pipeline.evidence.study_plan import PlannedRun, RunCost, StudyPlan, write_study
from dlth.tickets import generator
from dlth.training.evaluation.measure import EvalResult, ImageResults
from dlth.training.run_files import write_text
from dlth.training.runs.result import RunResult, write_result
from dlth.training.runs.runlog import RunLog
from dlth.training.settings.toml_text import to_toml
from dlth.training.settings.train_config import TrainConfig
from makers.runs import train_config

NUM_PATCHES, IMAGES, EPOCHS, STEPS, DENSE_FLOPS = 16, 200, 3, 4, 1000
BASE = {"ticket": 0.80, "random": 0.60, "dense": 0.82}
KEPT = {"0.5": 8, "0.25": 4}


def settings(arm: str, seed: int, keep: str = "0.5", **changes: Any) -> dict[str, Any]:
    """Settings of `dlth train` for such a run, without its folder."""
    dropping = {} if arm == "dense" else {"tickets": "t.zarr", "keep": keep}
    config = train_config("train", Path("out"), val="val", arm=arm, seed=seed, epochs=EPOCHS, **dropping, **changes)
    return config.model_dump(mode="json", exclude={"out", "resume"}, exclude_defaults=True) | {"data": "train"}


def write_run(
    folder: Path,
    arm: str,
    seed: int,
    keep: str = "0.5",
    *,
    share: float | None = None,
    control: str = "",
    without: str = "",
    luck: tuple[object, ...] = (),
    changes: Mapping[str, Any] | None = None,
    **of: Any,
) -> Path:
    """A finished run of `IMAGES` validation images, of which a share is right, not evaluated on the tokens `without`;
    `luck` names what else than arm and seed decides which, `changes` are of its settings, `of` is put into its result.
    """
    config = TrainConfig(**settings(arm, seed, keep, **(changes or {})), out=str(folder))
    k, drops = NUM_PATCHES if arm == "dense" else KEPT[keep], arm != "dense"
    share = BASE[arm] if share is None else share
    evaluated = {"dense": NUM_PATCHES, "ticket": KEPT[keep], "random": KEPT[keep]}
    evaluated.pop(without, None)
    results = {
        tokens: _images(share - 0.1 * (drops and tokens != "ticket"), arm, seed, tokens, *luck) for tokens in evaluated
    }
    table = EvalResult(tuple(f"img{i:04d}" for i in range(IMAGES)), np.arange(IMAGES) % 10, results, evaluated)
    values: dict[str, Any] = {
        "status": "finished",
        "arm": arm,
        "mode": "projected" if arm == "ticket" else "",
        "model": "vit_tiny_patch16_224",
        "k": k,
        "keep": keep if drops else "1",
        "num_patches": NUM_PATCHES,
        "tickets": "a" * 64 if arm == "ticket" else "",
        "val_tickets": "b" * 64,
        "seed": seed,
        "epochs": EPOCHS,
        "steps": EPOCHS * STEPS,
        "data": {"data_order": "c" * 64, "val_order": "d" * 64, "images": 32, "validation_images": IMAGES},
        "device": "cpu",
        "world_size": 1,
        "parameters": 12345,
        "peak_memory_bytes": 1 << 20,
        "throughput": {
            "images_per_second": 10.0,
            "tokens_per_second": 90.0,
            "compute_seconds": 9.0,
            "data_seconds": 1.0,
        },
        "evaluation": {"model": table.table()},
        "tokens": k + 1,
        "flops": DENSE_FLOPS * k // NUM_PATCHES,
        "train_loss": 1.5,
        "tickets_are": f"control: {control}; made from tickets of vit" if control else "selector vit" * drops,
        "val_tickets_are": "selector vit",
        "val_view": "center 32x32",
        "config": config.model_dump(mode="json"),
        "versions": {"dlth": "1", "torch": "2", "python": "3.11"},
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "config.toml", to_toml(config))
    table.save(folder / "eval.npz")
    result = RunResult(**(values | of))
    _write_log(folder, result)
    write_result(folder, result)
    return folder


def _write_log(folder: Path, result: RunResult) -> None:
    """A log in which accuracy grows to the last epoch's."""
    log = RunLog(folder)
    top1 = {tokens: row["top1"] for tokens, row in result.evaluation.get("model", {}).items()}
    flops, steps = result.flops or 0, result.steps // result.epochs
    for epoch in range(result.epochs):
        grown = {f"eval_{tokens}_top1": last * (epoch + 1) / result.epochs for tokens, last in top1.items()}
        cost = {"images": 32, "tokens": 32 * (result.tokens or 0), "flops": 3 * 32 * flops}
        seconds = {"data_seconds": 1.0, "compute_seconds": 9.0}
        loss = 3 - epoch / result.epochs
        log.add("epoch", (epoch + 1) * steps, epoch=epoch, lr=1e-3, train_loss=loss, **grown, **cost, **seconds)
    log.close()


def _images(share: float, *seeds: object) -> ImageResults:
    """Results of which about a share is right, some images harder than others for every run."""
    hard = generator("hardness").random(IMAGES)
    luck = generator(*map(str, seeds)).random(IMAGES)
    top1 = 0.7 * hard + 0.3 * luck < 0.3 * share + 0.7 * share
    return ImageResults(top1, top1 | (luck < 0.5), luck.astype(np.float32), np.ones(IMAGES, dtype=bool))


def write_study_of(
    folder: Path,
    arms: tuple[ArmKey, ...],
    seeds: tuple[int, ...] = (0, 1, 2),
    unfinished: tuple[str, ...] = (),
    **of: Any,
) -> StudyPlan:
    """A study of these arms, its plan and its runs, but for those whose names are `unfinished`."""
    runs = []
    for arm in arms:
        for seed in seeds:
            base, _, control = arm.arm.partition("-")
            base, keep = "ticket" if control else base, arm.keep or "0.5"
            name = f"{arm.arm}{'-keep' + arm.keep if arm.keep else ''}-seed{seed}"
            cost = RunCost(EPOCHS, EPOCHS * STEPS, 96, 96 * 9, 3e5, seconds=30.0)
            runs.append(PlannedRun(name, arm, seed, settings(base, seed, keep), cost))
            if name not in unfinished:
                share = 0.5 if control else None
                write_run(folder / "runs" / name, base, seed, keep, share=share, control=control, **of)
    plan = StudyPlan(tuple(runs), {"margin": 5.0}, (), ())
    write_study(folder, plan)
    return plan
