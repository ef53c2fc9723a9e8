"""Annotators: what a model's head says of each cell of its map."""

from typing import Any

import pytest
import timm
import torch
from makers.models import tiny_vit
from torch import nn

from dlth.tickets import Grid
from dlth.tickets.errors import InputError
from dlth.training.models.annotator import Annotator
from dlth.training.models.frame import Frame

CONVOLUTIONS: dict[str, dict[str, Any]] = {
    "resnet10t": {},
    "nf_regnet_b0": {},
    "swin_tiny_patch4_window7_224": {"img_size": 64, "embed_dim": 12, "num_heads": (1, 1, 2, 2)},
}


def annotator(model: nn.Module, side: int = 64, **options: Any) -> Annotator:
    half = (0.5, 0.5, 0.5)
    return Annotator(model, Frame(Grid(1, 1), (side, side), half, half, "bicubic", 1.0), **options)


@pytest.mark.parametrize("name", CONVOLUTIONS)
@torch.no_grad()
def test_the_mean_over_cells_is_the_image(name: str) -> None:
    """Heads that pool by the mean are linear after it: the cells' logits have the image's as their mean.

    Convolutional maps, NFNet's among them, and those with channels last.
    """
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=7, **CONVOLUTIONS[name]).eval()
    nn.init.normal_(model.get_classifier().weight, std=0.5)
    made, images = annotator(model), torch.randn(2, 3, 64, 64)
    logits = made.cell_logits(images)
    assert (made.grid, logits.shape) == (Grid(2, 2), (2, 2, 2, 7))
    torch.testing.assert_close(logits.mean(dim=(1, 2)), model(images), atol=1e-5, rtol=1e-4)
    assert (logits.std(dim=(1, 2)) > 0).all()


@torch.no_grad()
def test_patch_tokens_go_through_the_head() -> None:
    """A ViT's patch tokens go through its head, whatever it pools; LV-ViT's through the head that it has for them."""
    images = torch.randn(2, 3, 32, 32)
    for vit in (tiny_vit(), tiny_vit(global_pool="avg"), tiny_vit("registers"), tiny_vit("lvvit")):
        tokens = vit.forward_features(images)[:, vit.num_prefix_tokens :]
        expected = vit.aux_head(tokens) if hasattr(vit, "aux_head") else vit.head(vit.fc_norm(tokens))
        torch.testing.assert_close(annotator(vit, 32).cell_logits(images).flatten(1, 2), expected)


@torch.no_grad()
def test_the_best_classes_fall() -> None:
    """Of each cell the best classes and their scores, best first; a tie goes to the lower class; none is infinite."""
    made = annotator(tiny_vit(), 32, num_best=3)
    made.cell_logits = lambda images: torch.tensor([1.0, 4.0, 1e6, 4.0, -1.0]).expand(1, 2, 2, 5)  # type: ignore[method-assign]
    classes, scores = made.select(torch.zeros(1, 3, 32, 32))
    assert classes[0, :, 1, 1].tolist() == [2, 1, 3]
    assert scores.dtype == torch.float16
    assert scores[0, :, 0, 0].tolist() == [65504, 4, 4]


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (lambda: tiny_vit(num_classes=0), "no head whose classes"),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(12, 3)), "no head whose classes"),
        (lambda: timm.create_model("xcit_nano_12_p16_224", img_size=32, num_classes=3), "how many patches"),
    ],
)
def test_what_cannot_label_is_refused(model: Any, why: str) -> None:
    """A model without classes, or without a map, is refused with the reason."""
    with pytest.raises(InputError, match=why):
        annotator(model().eval(), 32)
