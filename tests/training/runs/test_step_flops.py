"""What logs and results say that training showed and computed."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from makers.models import tiny_vit
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from dlth.training import TicketViT
from dlth.training.distributed.process_group import World
from dlth.training.reporter import Reporter
from dlth.training.runs.loop import train
from dlth.training.runs.run_progress import RunProgress, RunSize, Totals
from dlth.training.runs.runlog import logged_epochs
from dlth.training.runs.setup import prepare
from dlth.training.runs.step_flops import FORWARDS
from dlth.training.runs.survey import survey
from dlth.training.settings.train_config import TrainConfig

NO_VALIDATION: dict[str, Any] = {"val": None, "val_tickets": None}


def test_every_epoch_says_what_it_showed_and_computed(make_run: Callable[..., TrainConfig]) -> None:
    """21 images on 8 patches, then on all 16: three forwards each; the result has the sums of the epochs, and a
    survey knows them before.
    """
    config = make_run(keep_schedule="0:0.5,1:1.0", **NO_VALIDATION)
    result = train(config)
    student = prepare(make_run("other"), World(0, 1, torch.device("cpu")), Reporter()).student
    first, second = logged_epochs(Path(config.out))
    assert (first["images"], first["tokens"], first["flops"]) == (21, 21 * 9, 21 * 3 * student.flops(8))
    assert (second["images"], second["tokens"], second["flops"]) == (21, 21 * 17, 21 * 3 * student.flops())
    assert (result.train_images, result.train_tokens) == (42, 21 * 9 + 21 * 17)
    assert result.train_flops == first["flops"] + second["flops"]
    work = survey(config).work(2)
    assert (work.images, work.tokens, work.flops) == (42, result.train_tokens, result.train_flops)


def test_steps_of_a_falling_schedule_count_by_their_images(make_run: Callable[..., TrainConfig]) -> None:
    """The last steps of an epoch have fewer images, and keep fewer patches of them: a survey knows both."""
    falling = {"keep_schedule": "cosine", "keep_schedule_start": 0, "keep_schedule_epochs": 1}
    config = make_run(epochs=1, warmup_epochs=0, **falling, **NO_VALIDATION)
    result, work = train(config), survey(config).work(1)
    assert (work.images, work.tokens) == (result.train_images, result.train_tokens)
    assert work.flops == pytest.approx(result.train_flops, rel=1e-12)


def test_a_selector_in_the_loop_is_counted(make_run: Callable[..., TrainConfig]) -> None:
    """Online, an image is three forwards of the student and the selector's own; the random arm's has none."""
    selector = train(make_run("selector", arm="dense", epochs=1, warmup_epochs=0)).config["out"]
    common = {"mode": "online", "tickets": None, "val_tickets": None, "keep": "0.5", "epochs": 1, "warmup_epochs": 0}
    flops = {}
    for arm in ("ticket", "random"):
        config = make_run(arm, arm=arm, selector_checkpoint=selector, **common)
        parts = prepare(config, World(0, 1, torch.device("cpu")), Reporter())
        assert parts.online is not None
        ranking, student = parts.online.selector.flops[0], parts.student.flops(8)
        flops[arm] = train(config).train_flops
        assert survey(config).work(1).flops == flops[arm]
    assert flops == {"ticket": 21 * (3 * student + ranking), "random": 21 * 3 * student}


def test_forward_and_backward_are_three_forwards() -> None:
    """Counted through a whole step: only the first layer's gradient of its pixels is missing, which nobody asks for."""
    student = TicketViT(tiny_vit())
    counter = FlopCounterMode(display=False)
    with counter, sdpa_kernel(SDPBackend.MATH):  # torch 2.11 has no count for the CPU's fused attention
        student(torch.zeros(1, 3, 32, 32), torch.arange(8)[None]).sum().backward()
    assert 0.93 < counter.get_total_flops() / (FORWARDS * student.flops(8)) <= 1


@pytest.mark.parametrize("older", ["in_epoch", "in_run"])
def test_a_run_that_an_older_version_began_does_not_know_its_sum(older: str) -> None:
    """Its checkpoint has no sum of operations: it is read, and what comes of it is unknown, not too small."""
    values = asdict(RunProgress())
    del values[older]["flops"]
    progress = RunProgress.from_json(json.loads(json.dumps(values)), RunSize(3, 4, 10, 3, 17))
    sums = getattr(progress, older)
    sums.add(Totals(images=3.0, flops=9.0))
    assert (sums.flops, sums.images) == (None, 3.0)
