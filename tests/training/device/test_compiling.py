"""What a compiler makes of students and selectors: whole graphs, one for each number of patches.

Graph breaks and graphs are the tracer's; which backend compiles them changes neither.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from makers.models import tiny_vit
from makers.runs import KWARGS
from torch import Tensor
from torch._dynamo.utils import counters

from dlth.tickets import Budget
from dlth.training import Selector
from dlth.training.device.compiled import compiled
from dlth.training.models.registry import build
from dlth.training.models.students import make_student
from dlth.training.runs.loop import train
from dlth.training.selectors.batch_ranker import BatchRanker
from dlth.training.selectors.selector_student import SelectorStudent
from dlth.training.selectors.trainable import EViT
from dlth.training.settings.train_config import TrainConfig

SWIN = {"patch_size": 2, "window_size": 4, "embed_dim": 12, "depths": [2, 1], "num_heads": (2, 2)}
DYNAMIC = KWARGS | {"depth": 2, "dynamic_img_size": True}
STUDENTS: dict[str, Callable[[], Any]] = {
    "plain": lambda: make_student(tiny_vit("plain", depth=2), "sparse", None),
    "rotary": lambda: make_student(tiny_vit("rope mixed", depth=2), "sparse", None),
    "LV-ViT": lambda: make_student(tiny_vit("lvvit", depth=2), "sparse", None),
    "small-dense": lambda: make_student(built("vit_tiny_patch16_224", DYNAMIC), "small-dense", None),
    "zero": lambda: make_student(built("swin_tiny_patch4_window7_224", SWIN), "zero", 8),
}
BUDGETS = [Budget.from_stage_keep(rate, 16, 2, True) for rate in ("0.6", "0.8")]
"""Of a model with two stages that fuses what falls."""


def built(name: str, options: dict[str, Any]) -> torch.nn.Module:
    return build(name, num_classes=5, img_size=32, **options)


def images(seed: int = 0) -> Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def graphs() -> tuple[dict[str, int], int]:
    """Graph breaks by their cause, and the number of graphs, since the compiler was reset."""
    return dict(counters["graph_break"]), counters["stats"]["unique_graphs"]


@pytest.fixture(autouse=True)
def fresh() -> None:
    """Each test begins with nothing compiled."""
    torch.compiler.reset()
    counters.clear()


@pytest.mark.parametrize("name", STUDENTS)
def test_a_student_is_one_whole_graph_for_each_number_of_patches(name: str) -> None:
    """Two numbers, twice each, forward and backward: two graphs and not one break."""
    forward = compiled(STUDENTS[name]().train(), "eager")
    for k in (4, 1, 4, 1):
        patches = torch.rand(2, 16).argsort(dim=1)[:, :k]
        output = forward(images(), patches)
        (output if isinstance(output, Tensor) else output.cls).sum().backward()
    assert graphs() == ({}, 2)


def test_a_selector_is_one_whole_graph_for_each_budget() -> None:
    """In training, where a keep schedule changes it, and in the loop alike."""
    vit = tiny_vit("plain", depth=3)
    student = SelectorStudent(EViT(vit, "0.6", (0, 1), True)).train()
    forward = compiled(student, "eager")
    for budget in BUDGETS * 2:
        forward(images(), budget=budget).sum().backward()
    assert graphs() == ({}, 2)
    torch.compiler.reset()
    counters.clear()
    select = compiled(Selector(vit, "0.6", (0, 1), True).select, "eager")
    for budget in BUDGETS * 2:
        select(images(), budget)
    assert graphs() == ({}, 2)


def test_stage_1_compiles_its_ranker_once() -> None:
    """A short batch is filled up, under autocast as without: one graph."""
    ranker = BatchRanker(
        Selector(tiny_vit("plain", depth=3), "0.6", (0, 1)), amp=True, torchcompile="eager", batch_size=2
    )
    pixels = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    for batch in (pixels, pixels, pixels[:1]):
        ranker(batch)
    assert graphs() == ({}, 1)


def test_a_run_compiles_each_number_of_patches_once(make_run: Callable[..., TrainConfig]) -> None:
    """Through milestones of the keep schedule, accumulation, autocast, channels-last; short batches go uncompiled."""
    options = {"keep_schedule": "0:0.25,1:1.0", "grad_accum_steps": 2, "batch_size": 4, "mix_group": 2}
    options |= {"amp": True, "channels_last": True, "torchcompile": "eager", "val": None, "val_tickets": None}
    train(make_run(**options))
    assert graphs() == ({}, 2)
