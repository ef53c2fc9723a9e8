"""The online mode's selector sees images as it was trained to see them, whatever the student wants."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from dlth.tickets import Budget
from dlth.tickets.errors import InputError
from dlth.training.distributed.process_group import World
from dlth.training.models.pixels import Pixels
from dlth.training.reporter import Reporter
from dlth.training.runs.loop import train
from dlth.training.runs.setup import Parts, prepare
from dlth.training.selectors.batch_ranker import BatchRanker
from dlth.training.selectors.evit import Selector
from dlth.training.selectors.online import OnlineSelector
from dlth.training.selectors.patch_ranker import Selection
from dlth.training.settings.train_config import TrainConfig

ERASED: dict[str, Any] = {
    "reprob": 1.0,
    "scale": (1.0, 1.0),
    "val": None,
    "val_tickets": None,
    "epochs": 1,
    "warmup_epochs": 0,
}

MakeRun = Callable[..., TrainConfig]


@pytest.fixture
def online(make_run: MakeRun) -> dict[str, Any]:
    """Settings of an online run, with a dense run's weights as selector, whose head has 7 classes."""
    short = {"epochs": 1, "warmup_epochs": 0, "val": None, "val_tickets": None}
    train(make_run("teacher", arm="dense", tickets=None, num_classes=7, **short))
    return {
        "mode": "online",
        "tickets": None,
        "val_tickets": None,
        "keep": "0.5",
        "selector": "vit_tiny_patch16_224",
        "selector_kwargs": make_run().model_kwargs,
        "selector_checkpoint": str(Path(make_run("teacher").out) / "model.safetensors"),
        "selector_blocks": (0, 1),
    }


@pytest.mark.parametrize("mean", [(0.5, 0.5, 0.5), (0.2, 0.4, 0.6)], ids=["alike", "different"])
def test_the_selector_ranks_images_of_its_own_normalisation(
    make_run: MakeRun, online: dict[str, Any], mean: tuple[float, float, float]
) -> None:
    """Images that the student's mean and deviation made are ranked as if the selector's own (0.5) had made them."""
    config = make_run("online", mean=mean, std=(0.5, 0.25, 0.125) if mean[0] < 0.5 else None, **online)
    parts = prepare(config, World(0, 1, torch.device("cpu")), Reporter())
    assert parts.online is not None
    assert parts.select is not None
    assert parts.stepper.select is parts.select
    selector = parts.online.selector
    assert selector.vit.num_classes == 7
    images = torch.randint(0, 256, (6, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    own = Pixels((0.5,) * 3, (0.5,) * 3)
    students = parts.pixels(images)
    before = students.clone()
    assert torch.allclose(own.renormalised(students, parts.pixels), own(images), atol=1e-5)
    assert torch.equal(parts.select(students).patches, selector.rank(own(images)))
    assert torch.equal(students, before)


def test_stage_1_and_the_selector_in_the_loop_rank_the_same_pixels_alike(
    make_run: MakeRun, online: dict[str, Any]
) -> None:
    """To the last bit: the same patches, and the same gaps."""
    parts = prepare(make_run("online", **online), World(0, 1, torch.device("cpu")), Reporter())
    assert parts.online is not None
    pixels = Pixels((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    frame = replace(parts.online.selector.frame, mean=pixels.mean, std=pixels.std)
    selector = Selector(parts.online.selector.vit, blocks=(0, 1), frame=frame)
    images = torch.randint(0, 256, (256, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    in_loop = OnlineSelector(selector).ranking(pixels)(pixels(images))
    patches, gap = BatchRanker(selector)(images)
    assert np.array_equal(in_loop.patches.numpy(), patches)
    assert np.array_equal(in_loop.gap.numpy(), gap)


def test_another_ranker_ranks_in_the_loop(make_run: MakeRun, online: dict[str, Any]) -> None:
    """What stage 1 would rank by it is trained on, without a gradient for the selector, and the result names it; one
    stage of a keep schedule is one step of its budget."""
    options = online | {"selector_ranker": "gradient", "selector_blocks": None, "keep_schedule": "cosine"}
    config = make_run("online", keep_schedule_start=0, keep_schedule_epochs=2, epochs=2, **options)
    parts = prepare(config, World(0, 1, torch.device("cpu")), Reporter())
    assert parts.online is not None
    assert parts.select is not None
    made = parts.online.selector
    images = torch.randint(0, 256, (6, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    in_loop = parts.select(parts.pixels(images))
    assert np.array_equal(in_loop.patches.numpy(), BatchRanker(made)(images)[0])
    assert made.budget == Budget.from_keep("0.5", 16, 1)
    assert parts.schedule.budget(0, 0).k == 16
    result = train(config)
    assert (result.selector["ranker"], result.selector["blocks"], result.k) == ("gradient", [1], 8)
    assert "ranked by gradient, in the loop" in result.tickets_are
    assert all(weight.grad is None for weight in made.vit.parameters())


def test_every_arm_and_mode_says_how_much_of_what_it_trained_on_was_hidden(
    make_run: MakeRun, online: dict[str, Any]
) -> None:
    """A box erased in each image: demoted, every arm and mode sees less of it; log and result have the share."""
    shares = {}
    arms = {"dense": {"arm": "dense"}, "random": {"arm": "random"}, "ticket": {}, "online": online}
    for name, options in arms.items():
        for hidden in ("keep", "demote")[name == "dense" :]:
            config = make_run(f"{name}-{hidden}", hidden=hidden, **{**ERASED, **options})
            result = train(config)
            rows = [json.loads(line) for line in (Path(config.out) / "metrics.jsonl").read_text().splitlines()]
            assert [row["hidden_share"] for row in rows[-2:]] == [result.hidden_share] * 2
            shares[name, hidden] = result.hidden_share
    for name in ("random", "ticket", "online"):
        assert shares[name, "demote"] < 0.5 * shares[name, "keep"]
        assert shares[name, "keep"] == pytest.approx(shares["dense", "demote"], abs=0.07)


def test_the_selector_in_the_loop_ranks_at_the_rate_of_the_step(make_run: MakeRun, online: dict[str, Any]) -> None:
    """Under a keep schedule it is asked for each step's own budget, and ranks as one made for that rate does.

    A step that keeps all does not ask it. It ranks the mixed images that the student is shown, its patches are trained
    on, and it gets no gradient.
    """
    schedule = {"keep_schedule": "cosine", "keep_schedule_start": 0, "keep_schedule_epochs": 1}
    config = make_run("online", epochs=2, mixup=0.8, **online | schedule)
    parts = prepare(config, World(0, 1, torch.device("cpu")), Reporter())
    assert parts.online is not None
    assert parts.select is not None
    asked: list[tuple[Budget, torch.Tensor, Selection]] = []

    def listening(images: torch.Tensor, budget: Budget | None = None) -> Selection:
        assert budget is not None
        assert parts.select is not None
        asked.append((budget, images, parts.select(images, budget)))
        return asked[-1][2]

    parts.stepper.select = listening
    trained: list[tuple[torch.Tensor, torch.Tensor]] = []
    parts.student.register_forward_pre_hook(lambda _, shown: trained.append(shown))
    for epoch in (0, 1):
        for step, batches in enumerate(parts.train_steps(epoch, 0)):
            parts.stepper(batches, 3 * epoch + step, parts.schedule.budget(epoch, step))
    rates = [0.926776, 0.780331, *[0.707107] * 3]
    assert [float(budget.stage_keep) for budget, _, _ in asked] == pytest.approx(rates, abs=1e-6)
    assert [budget.k for budget, _, _ in asked] == [14, 11, 8, 8, 8]
    assert trained.pop(0)[1] is None
    for budget, images, ranked in asked:
        made = Selector(parts.online.selector.vit, budget.stage_keep, (0, 1))
        assert torch.equal(ranked.patches, made.rank(images))
    for (budget, images, ranked), (seen, patches) in zip(asked, trained, strict=True):
        assert torch.equal(seen, images)
        assert torch.equal(patches, ranked.patches[:, : budget.k])
    assert all(weight.grad is None for weight in parts.online.selector.vit.parameters())
    assert any(not torch.equal(ranked.patches, parts.select(images).patches) for _, images, ranked in asked)


def test_arms_of_one_share_keep_as_many_at_each_step_with_and_without_a_selector(
    make_run: MakeRun, online: dict[str, Any]
) -> None:
    """0.52 of 16 are 9, but its root over two stages is not that of 9/16: the schedule falls to the former."""
    schedule = {"keep_schedule": "cosine", "keep_schedule_start": 0, "keep_schedule_epochs": 100, "epochs": 101}
    options = {**online, **schedule, "keep": "0.52", "val": None}
    parts = prepare(make_run("share", **options), World(0, 1, torch.device("cpu")), Reporter())
    assert parts.schedule.final == Budget.from_keep("0.52", 16, 2)


def test_milestones_are_the_selectors_budgets(make_run: MakeRun, online: dict[str, Any]) -> None:
    """Each share by the selector's own two stages; on all patches, in the dense finish, it is not asked at all."""
    options = {**online, "keep": None, "keep_schedule": "0:0.52,1:0.25,2:1.0", "epochs": 3, "val": None}
    parts = prepare(make_run("finish", **options), World(0, 1, torch.device("cpu")), Reporter())
    wanted = [Budget.from_keep(share, 16, 2) for share in ("0.52", "0.25", "1.0")]
    assert [parts.schedule.budget(epoch) for epoch in range(3)] == wanted
    assert parts.online is not None
    assert parts.online.selector.budget == wanted[0]
    trained: list[torch.Tensor | None] = []
    parts.student.register_forward_pre_hook(lambda _, shown: trained.append(shown[1]))
    for epoch in range(3):
        parts.stepper(next(iter(parts.train_steps(epoch, 0))), 3 * epoch, parts.schedule.budget(epoch))
    assert [None if patches is None else patches.shape[1] for patches in trained] == [9, 4, None]


def test_a_selector_that_cannot_score_an_image_gives_it_no_ticket(
    make_run: MakeRun, online: dict[str, Any], tmp_path: Path
) -> None:
    """Weights that are no numbers are refused; where finite ones overflow, the step's loss is no number, so nothing is
    learnt from patches in their own order, and the evaluation counts such images as wrong.
    """

    def parts(name: str, factor: float) -> Parts:
        weights = load_file(online["selector_checkpoint"])
        weights[name] = weights[name] * factor
        save_file(weights, tmp_path / "spoilt.safetensors")
        config = make_run("spoilt", **online | {"selector_checkpoint": str(tmp_path / "spoilt.safetensors")})
        return prepare(config, World(0, 1, torch.device("cpu")), Reporter())

    with pytest.raises(InputError, match=r"hold values that are no numbers: norm\.weight"):
        parts("norm.weight", math.nan)
    made = parts("blocks.0.mlp.fc1.weight", 1e38)
    before = [weight.clone() for weight in made.student.model.parameters()]
    result = made.stepper(next(iter(made.train_steps(0, 0))), 0, made.schedule.budget(0, 0))
    assert (math.isnan(result.loss), result.moved) == (True, False)
    assert all(map(torch.equal, before, made.student.model.parameters()))
    assert made.inputs.val is not None
    measured = made.inputs.val.evaluate(made.student, made.world, made.pixels, made.stepper.precision, made.select)
    assert measured.table()["ticket"]["top1"] == 0
    assert any("images on ticket tokens got no numbers" in text for text in measured.notes())
