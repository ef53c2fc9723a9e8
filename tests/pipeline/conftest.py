"""Images to pack, settings that tiny runs of a study share, a study of pruned weights, and workers that look often."""

from pathlib import Path
from typing import Any

import pytest
from makers.pictures import make_image, make_picture, write_shards
from makers.pruning import LATE, WAYS, write_prune_study
from makers.runs import KWARGS
from makers.tickets import select_tickets

from dlth.data.shards.index import open_index
from dlth.tickets import ViewSpec


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder of 3 class folders with 8 JPEGs each."""
    root = tmp_path / "images"
    for number in range(24):
        folder = root / f"n{number % 3:08d}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"n{number % 3:08d}_{number}.JPEG").write_bytes(make_image(make_picture(number)))
    return root


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Settings of train: 21 training images in batches of 8, 11 validation images, tickets of 8 of 16 patches."""
    folder = tmp_path_factory.mktemp("study-data")
    tickets = {}
    for split, rows, seed in (("train", [7, 5, 9], 0), ("val", [6, 5], 1)):
        index = open_index(write_shards(folder, len(rows), rows, split=split, seed=seed).spec)
        view = ViewSpec("whole", 32, 32) if split == "train" else ViewSpec("center", 32, 32, "0.9")
        tickets[split] = str(select_tickets(index, folder / f"{split}.zarr", view=view, split=split).path)
    return {
        **{"recipe": "none", "data": str(folder / "train"), "val": str(folder / "val")},
        **{"tickets": tickets["train"], "val_tickets": tickets["val"]},
        **{"model": "vit_tiny_patch16_224", "model_kwargs": KWARGS | {"depth": 2}, "img_size": 32},
        **{"epochs": 4, "warmup_epochs": 1, "batch_size": 8, "lr": 1e-3, "workers": 0, "device": "cpu"},
    }


@pytest.fixture(scope="session")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of two levels of all ways to prune, in two draws, one run of which is missing; to be read alone."""
    folder = tmp_path_factory.mktemp("studies") / "pruned"
    write_prune_study(folder, WAYS, levels=2, draws=2, missing=(LATE,))
    return folder


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers look after every step, and wait for a moment only."""
    monkeypatch.setattr("dlth.pipeline.studies.worker.BETWEEN_LOOKS", 0.0)
    monkeypatch.setattr("dlth.pipeline.studies.worker.SHARE_OF_LOOKS", 1e9)
    monkeypatch.setattr("dlth.pipeline.studies.worker.POLL", 0.05)
