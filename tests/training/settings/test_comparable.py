"""Results that may be compared, and what is named where they may not."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from makers.pictures import make_tar
from makers.tickets import select_tickets

from dlth.data.shards.index import open_index
from dlth.tickets.errors import MismatchError
from dlth.training.runs.loop import train
from dlth.training.settings.comparable import comparable
from dlth.training.settings.train_config import TrainConfig

SHORT: dict[str, Any] = {"epochs": 1, "warmup_epochs": 0, "val": None, "val_tickets": None, "bad_images": "skip"}


def test_arms_with_and_without_tickets_see_the_same_images(
    make_run: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    """A corrupt image that stage 1 listed, or that training met: one digest of what was visited, one count, one order.

    Leaving out images without a ticket is a difference that is named, and one that a resumed run must not have.
    """
    config = make_run()
    train_folder = Path(config.data)
    make_tar(train_folder / "train-000009.tar", [("broken.jpg", b"\xff\xd8 no image"), ("broken.cls", b"0")])
    index = open_index(config.data)
    tickets = select_tickets(index, tmp_path / "listed.zarr", bad=["broken"]).path
    runs = {
        "ticket": make_run("ticket", tickets=str(tickets), **SHORT),
        "dense": make_run("dense", arm="dense", tickets=None, **SHORT),
        "random": make_run("random", arm="random", tickets=None, keep="0.5", **SHORT),
        "fewer": make_run("fewer", arm="dense", missing="skip", **SHORT),
        "seed": make_run("seed", arm="dense", tickets=None, seed=7, **SHORT),
    }
    results = {name: json.loads(json.dumps(train(run).to_json())) for name, run in runs.items()}
    ticket, dense, random, fewer, seed = results.values()
    assert comparable([ticket, dense, random, seed]) == []
    assert ticket["data"]["visited_sha256"] == dense["data"]["visited_sha256"] != seed["data"]["visited_sha256"]
    assert [result["data"]["images"] for result in results.values()] == [21] * 5
    assert dense["data"]["left_out"] == {"bad": 1, "missing": 0}
    assert [text.split(":")[0] for text in comparable([dense, fewer])] == [
        "how many training images were left out",
        "which images an epoch visits, and in which order",
    ]
    other = {**dense, "data": dense["data"] | {"data_labels": "f" * 64, "val_tickets": "e" * 64}}
    assert comparable([dense, other]) == [
        f"the training images' labels: {dense['data']['data_labels'][:12]} (arm dense, seed 42), ffffffffffff"
        " (arm dense, seed 42)",
        "the validation images' tickets: none (arm dense, seed 42), eeeeeeeeeeee (arm dense, seed 42)",
    ]
    repacked = {**dense, "data": dense["data"] | {"data_order": "a" * 64, "data_content": "b" * 64}}
    assert [text.split(":")[0] for text in comparable([dense, repacked])] == [
        "the order of the training images in their shards"
    ], "the sample of bytes follows the packing above 1,000 images, so another digest is no other bytes"
    started = {**dense, "config": dense["config"] | {"init_from": "w.pth"}}
    assert [text.split(":")[0] for text in comparable([dense, started])] == ["the setting init_from"]
    assert comparable([dense, {**started, "mask": "a" * 64}]) == [], "a pruned arm begins with weights of its own"
    config = dense["config"]
    longer = {**dense, "steps": 99, "val_view": "center 32x32, crop 1", "config": config | {"lr": 0.5, "workers": 9}}
    assert comparable([dense, longer]) == [
        f"how many steps were taken: {dense['steps']} (arm dense, seed 42), 99 (arm dense, seed 42)",
        "how validation images are seen: none (arm dense, seed 42), center 32x32, crop 1 (arm dense, seed 42)",
        f"the setting lr: {config['lr'] or 'none'} (arm dense, seed 42), 0.5 (arm dense, seed 42)",
    ]
    assert comparable([dense, longer], besides=["lr", "val_view", "epochs"]) == [], "steps follow from epochs"
    rounded = {**dense, "config": config | {"tf32": True, "deterministic": True}}
    assert [text.split(":")[0] for text in comparable([dense, rounded])] == ["the setting tf32"]
    assert comparable([ticket, {**ticket, "k": 3}], besides=["keep"]) == []
    kept = {**random, "k": 3, "config": random["config"] | {"hidden": "keep", "mode": "online"}}
    assert comparable([dense, kept]) == [], "all patches are kept there"
    assert [text.split(":")[0] for text in comparable([ticket, kept])] == [
        "how many patches are kept",
        "the setting mode",
        "the setting hidden",
    ]
    with pytest.raises(MismatchError, match=r"left out: the checkpoint has \{'bad': 0, 'missing': 1, "):
        train(runs["fewer"].model_copy(update={"resume": "auto", "missing": "random"}))


def test_a_run_goes_on_with_the_evaluation_view_it_had(make_run: Callable[..., TrainConfig]) -> None:
    """A recipe's crop gave way to the tickets' 0.9; the same number without the recipe would not: refused."""
    config = make_run(crop_pct=0.875, epochs=1, warmup_epochs=0)
    assert train(config.model_copy(update={"recipe": "deit"})).val_view == "center 32x32, crop 0.9, bicubic"
    told = "evaluation view: the checkpoint has center 32x32, crop 0.9, bicubic, this run center 32x32, crop 0.875"
    with pytest.raises(MismatchError, match=told):
        train(config.model_copy(update={"resume": "auto"}))
