"""Plans of tiny studies on real shards with real tickets, as `dlth compare` makes them of what a user asks for."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from dlth.data.shards.index import open_index
from dlth.pipeline.evidence.arm_key import ArmKey
from dlth.pipeline.evidence.study_plan import PlannedRun, RunCost, StudyPlan
from dlth.tickets import ViewSpec
from dlth.training.pruning.recipe import MASK, REWIND
from dlth.training.settings.fields import fixed_settings
from makers.pictures import write_shards
from makers.runs import train_config
from makers.tickets import select_tickets

IMAGES, VAL_IMAGES = 64, 16
MEASURED = re.compile(r"second|memory|throughput|sha256$")
"""Names of what differs between two runs of the same: times, memory; and digests of all that, and of paths."""


def write_inputs(folder: Path) -> dict[str, str]:
    """Shards in `folder/train` and `folder/val`, and their tickets; the ticket files by split."""
    tickets = {}
    for number, (split, rows) in enumerate((("train", [IMAGES // 2] * 2), ("val", [VAL_IMAGES]))):
        index = open_index(write_shards(folder, len(rows), rows, split=split, seed=number).spec)
        view = ViewSpec("whole", 32, 32) if split == "train" else ViewSpec("center", 32, 32, "0.9")
        tickets[split] = str(select_tickets(index, folder / f"{split}.zarr", view=view, split=split).path)
    return tickets


def tiny_study(
    folder: Path,
    arms: Sequence[str] = ("ticket", "dense"),
    seeds: Sequence[int] = (0, 1),
    changes: Mapping[str, Mapping[str, Any]] | None = None,
    **shared: Any,
) -> StudyPlan:
    """A plan of two epochs of 64 images in 8 steps each; `changes`: settings of single arms, `shared`: of all."""
    tickets = write_inputs(folder)
    base = {"val": str(folder / "val"), "tickets": tickets["train"], "val_tickets": tickets["val"], "log_interval": 2}
    runs = [
        planned_run(str(folder / "train"), arm, seed, base | shared | dict((changes or {}).get(arm, {})))
        for seed in seeds
        for arm in arms
    ]
    return StudyPlan(tuple(runs), {"margin": 5.0})


def planned_run(data: str, arm: str, seed: int, settings: Mapping[str, Any]) -> PlannedRun:
    """One run of a plan, its name and cost as a plan has them."""
    config = train_config(data, Path("-"), arm=arm, seed=seed, **settings)
    values = config.model_dump(mode="json")
    digest = hashlib.sha256(repr(fixed_settings(config)).encode()).hexdigest()[:8]
    steps = config.epochs * IMAGES // config.batch_size
    cost = RunCost(config.epochs, steps, config.epochs * IMAGES, steps * 100, steps * 1e6)
    kept = {name: value for name, value in values.items() if name not in ("out", "resume")}
    key = ArmKey("dense") if arm == "dense" else ArmKey(arm, "0.5", "projected")
    return PlannedRun(f"{arm}-seed{seed}-{digest}", key, seed, kept, cost)


def leavings(study: Path, plan: StudyPlan) -> dict[str, object]:
    """All that the runs of a study left, by file, but for what is measured: seconds, memory, and where it was run."""
    left: dict[str, object] = {}
    for run in plan.runs:
        folder = plan.folder(study, run)
        left[run.name] = sorted(path.name for path in folder.iterdir())
        for name in ("model.safetensors", "model_best.safetensors"):
            left[f"{run.name}/{name}"] = _tensors(folder / name)
        for name in (MASK, REWIND):
            if (folder / name).exists():
                left[f"{run.name}/{name}"] = (folder / name).read_bytes()
        left[f"{run.name}/images"] = (folder / "eval.npz").read_bytes()
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        left[f"{run.name}/metrics"] = [_unmeasured(json.loads(line)) for line in lines]
        left[f"{run.name}/result"] = _unmeasured(json.loads((folder / "result.json").read_text()))
    return left


def _unmeasured(record: dict[str, Any]) -> dict[str, Any]:
    kept = {name: value for name, value in record.items() if not MEASURED.search(name)}
    places = dict.fromkeys(("out", "mask", "init_from"), "")
    return kept | ({"config": record["config"] | places} if "config" in record else {})


def _tensors(path: Path) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in load_file(path).items()}
