"""A student of any family goes through the real code: what is asked of it is what `Student` says, and no more."""

from collections.abc import Callable
from typing import Any

import pytest
import torch.nn.functional as F
from makers.models import WITHOUT_CLASS_TOKEN, tiny_vit
from timm.models import register_model
from torch import Tensor, nn

from dlth.tickets import Grid
from dlth.training import TicketViT
from dlth.training.evaluation.evaluate import evaluate
from dlth.training.models.registry import build
from dlth.training.models.student import Student
from dlth.training.models.students import STUDENTS, make_student
from dlth.training.runs.loop import train
from dlth.training.settings.eval_config import EvalConfig
from dlth.training.settings.train_config import TrainConfig


class Colours(nn.Module):
    """No transformer and no patches: the mean colour of an image, and a head."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes, self.head = num_classes, nn.Linear(3, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(images.mean(dim=(2, 3)))


@register_model
def colours(pretrained: bool = False, num_classes: int = 5, **others: Any) -> Colours:
    return Colours(num_classes)


class ColourStudent(Student):
    """The mean over the kept of 16 patches."""

    grid, patch_size = Grid(4, 4), 8

    @classmethod
    def takes(cls, model: nn.Module) -> bool:
        return isinstance(model, Colours)

    def forward(self, images: Tensor, patches: Tensor | None = None) -> Tensor:
        cells = F.avg_pool2d(images, self.patch_size).flatten(2)
        if patches is not None:
            cells = cells.gather(2, patches[:, None].expand(-1, 3, -1))
        return self.model(cells[..., None])


def test_a_student_of_another_family_trains_and_is_measured(
    make_run: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that timm learned of elsewhere and a class of a few lines: trained, saved, evaluated in all arms."""
    monkeypatch.setitem(STUDENTS, "sparse", (ColourStudent, *STUDENTS["sparse"]))
    config = make_run(model="colours", model_kwargs={}, img_size=None, model_ema=True)
    result = train(config)
    assert (result.model, result.k, result.parameters) == ("colours", 8, 3 * 4 + 4)
    assert result.evaluation["model"].keys() == result.evaluation["ema"].keys() == {"dense", "ticket", "random"}
    val = {"val": config.val, "val_tickets": config.val_tickets, "workers": 0, "device": "cpu"}
    table = evaluate(EvalConfig(checkpoint=config.out, **val)).table()
    assert {arm: row["top1"] for arm, row in table.items()} == {
        arm: row["top1"] for arm, row in result.evaluation["model"].items()
    }
    assert train(config.model_copy(update={"resume": "auto"})).weights_sha256 == result.weights_sha256


def test_flops_are_those_of_the_kept_patches() -> None:
    """Of a ViT: the embedding of k patches, twelve products of width² a token and block, attention of all with all."""
    width, depth, pixels, classes = 32, 2, 3 * 8 * 8, 5
    vit = build(
        "vit_tiny_patch16_224",
        num_classes=classes,
        img_size=32,
        patch_size=8,
        embed_dim=width,
        depth=depth,
        num_heads=2,
    )
    student = make_student(vit).train()
    assert isinstance(student, TicketViT)
    for k in (16, 8, 1):
        tokens = k + 1
        blocks = depth * (12 * tokens * width**2 + 2 * tokens**2 * width)
        assert student.flops(k) == 2 * (k * pixels * width + blocks + width * classes)
    assert student.flops() == student.flops(16)
    assert student.training


@pytest.mark.parametrize("kind", WITHOUT_CLASS_TOKEN)
def test_flops_are_counted_whatever_pools_the_patches(kind: str) -> None:
    """A head that pools by attention hands on a view of a weight, which torch's counter takes with autograd alone."""
    student = make_student(tiny_vit(kind))
    assert student.flops(16) > 1.7 * student.flops(8)
