"""The plan of a study: its grid, what makes a run that run, what is refused, and what it says."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from makers.runs import KWARGS
from makers.tickets import select_tickets

from dlth.data.shards.index import open_index
from dlth.pipeline.evidence.arm_key import ArmKey
from dlth.pipeline.evidence.study_plan import StudyPlan
from dlth.pipeline.studies.planning import plan_study
from dlth.pipeline.studies.study_config import CompareConfig
from dlth.tickets import ViewSpec
from dlth.training.settings.layering import checked

MakeShards = Callable[..., Any]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Settings of train on 21 training and 11 validation images with tickets of 8 of 16 patches."""
    from makers.pictures import write_shards

    folder = tmp_path_factory.mktemp("study-data")
    values: dict[str, Any] = {"recipe": "none"}
    for split, rows, seed in (("train", [7, 5, 9], 0), ("val", [6, 5], 1)):
        index = open_index(write_shards(folder, len(rows), rows, split=split, seed=seed).spec)
        view = ViewSpec("whole", 32, 32) if split == "train" else ViewSpec("center", 32, 32, "0.9")
        tickets = str(select_tickets(index, folder / f"{split}.zarr", view=view, split=split).path)
        values |= (
            {"data": str(folder / "train"), "tickets": tickets}
            if split == "train"
            else {
                "val": str(folder / "val"),
                "val_tickets": tickets,
            }
        )
    model = {"model": "vit_tiny_patch16_224", "model_kwargs": KWARGS | {"depth": 2}, "img_size": 32}
    return (
        values | model | {"epochs": 4, "warmup_epochs": 1, "batch_size": 8, "lr": 1e-3, "workers": 0, "device": "cpu"}
    )


def planned(shared: dict[str, Any], out: Path, train: dict[str, Any] | None = None, **study: Any) -> StudyPlan:
    """A plan without measured steps."""
    config = checked(CompareConfig, {"out": str(out), "measure": 0, **study})
    return plan_study(config, shared | (train or {}))


def test_the_grid_has_every_arm_and_the_dense_one_once(shared: dict[str, Any], tmp_path: Path) -> None:
    """arms x keeps x seeds, dense once per seed; names are readable, end in a digest, and are all different."""
    plan = planned(shared, tmp_path, keep="0.5,0.25", seeds="0,1")
    arms = [ArmKey("ticket", "0.5", "projected"), ArmKey("ticket", "0.25", "projected")]
    arms += [ArmKey("random", "0.5", "projected"), ArmKey("random", "0.25", "projected"), ArmKey("dense")]
    assert [(run.arm, run.seed) for run in plan.runs] == [(arm, seed) for arm in arms for seed in (0, 1)]
    assert len({run.name for run in plan.runs}) == 10
    assert plan.runs[0].name.startswith("ticket-keep0.5-projected-seed0-")
    assert plan.may_differ == ("keep",)
