"""A student of any family goes through the real code: what is asked of it is what `Student` says, and no more."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from timm.layers import PatchEmbed
from timm.models import register_model
from torch import Tensor, nn

from dlth.training import TicketViT
from dlth.training.config import TrainConfig
from dlth.training.eval_config import EvalConfig
from dlth.training.evaluate import evaluate
from dlth.training.loop import train
from dlth.training.models import build
from dlth.training.student import Student
from dlth.training.students import STUDENTS, make_student


class BagOfPatches(nn.Module):
    """No transformer: the mean of embedded patches, and a head."""

    def __init__(self, img_size: int, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.patch_embed = PatchEmbed(img_size, 8, 3, 16)
        self.head = nn.Linear(16, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.patch_embed(images).mean(dim=1))


@register_model
def bag_of_patches(pretrained: bool = False, **options: Any) -> BagOfPatches:
    options = {name: value for name, value in options.items() if name in ("img_size", "num_classes")}
    return BagOfPatches(**{"img_size": 32, "num_classes": 5} | options)


class BagStudent(Student):
    """The mean over the kept patches alone."""

    @classmethod
    def takes(cls, model: nn.Module) -> bool:
        return isinstance(model, BagOfPatches)

    def forward(self, images: Tensor, patches: Tensor | None = None) -> Tensor:
        if patches is None:
            return self.model(images)
        tokens = self.model.patch_embed(images)
        return self.model.head(tokens.gather(1, patches[..., None].expand(-1, -1, tokens.shape[-1])).mean(dim=1))


def test_a_student_of_another_family_trains_and_is_measured(
    make_run: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that timm learned of elsewhere and a class of a few lines: trained, saved, evaluated in all arms."""
    monkeypatch.setattr("dlth.training.students.STUDENTS", [BagStudent, *STUDENTS])
    config = make_run(model="bag_of_patches", model_kwargs={}, img_size=None, model_ema=True)
    result = train(config)
    assert (result.model, result.k, result.parameters) == ("bag_of_patches", 8, 3 * 64 * 16 + 16 + 16 * 4 + 4)
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
    vit = build("vit_tiny_patch16_224", classes, 32, patch_size=8, embed_dim=width, depth=depth, num_heads=2)
    student = make_student(vit).train()
    assert isinstance(student, TicketViT)
    for k in (16, 8, 1):
        tokens = k + 1
        blocks = depth * (12 * tokens * width**2 + 2 * tokens**2 * width)
        assert student.flops(k) == 2 * (k * pixels * width + blocks + width * classes)
    assert student.flops() == student.flops(16)
    assert student.training
