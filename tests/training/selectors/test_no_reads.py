"""Nothing that ranks or labels waits for its device, or sends it anything: shown on the meta device."""

from typing import Any

import pytest
import timm
import torch
from makers.host import OnTheHost
from makers.models import tiny_vit
from torch import nn

from dlth.tickets import Grid
from dlth.training.models.annotator import Annotator
from dlth.training.models.frame import Frame
from dlth.training.models.pixels import Pixels
from dlth.training.models.rotary_table import keep_table
from dlth.training.selectors.batch_ranker import BatchRanker, Sees
from dlth.training.selectors.chosen import choose
from dlth.training.selectors.online import OnlineSelector
from dlth.training.selectors.rankers import RANKERS, RankerSpec

META = torch.device("meta")


def made(vit: nn.Module, ranker: str | None, **changes: Any) -> Any:
    """A ranker on the meta device, of a model at hand."""
    values = {"options": {}, "weights": None, "images": {}, "blocks": None, "fuse_tokens": False, "flags": "--flags"}
    spec = RankerSpec(**{"model": "vit_tiny_patch16_224", **values, "rates": {"keep": "0.5"}, **changes})
    spec.__dict__["_loaded"] = vit, "here"
    return choose(ranker, spec, META).ranker


def check_queues(ranker: Sees) -> None:
    """A batch is queued without a read and without a copy, by a ranker that has seen one before."""
    ranked = BatchRanker(ranker)
    images = torch.zeros(3, 3, *ranker.frame.size, dtype=torch.uint8, device=META)
    ranked.queued(images)  # means and deviations are sent once
    with OnTheHost() as host:
        read = ranked.queued(images)
    assert host.seen == []
    with pytest.raises(NotImplementedError):
        read()


@pytest.mark.parametrize("name", RANKERS)
def test_no_ranker_reads_its_device(name: str) -> None:
    """Each by its name, with gradients or without."""
    check_queues(made(tiny_vit("siglip" if name == "pool-attention" else "plain"), name))


KINDS = ("registers", "dynamic", "clip", "eva02", "dinov3", "rope mixed", "lvvit", "siglip", "mean")
"""Families in whose forward anything differs that could read or copy: prefixes, positions, norms, rotations, stems."""


@pytest.mark.parametrize("kind", KINDS)
def test_no_family_is_read_on_the_way(kind: str) -> None:
    """The ranker that fits each: prefix tokens, registers, rotations, images of any size."""
    check_queues(made(keep_table(tiny_vit(kind)), None))


def test_fused_tokens_are_not_read() -> None:
    """What EViT fuses of the patches it drops is found on the device."""
    check_queues(made(tiny_vit(), "evit", fuse_tokens=True))


ANNOTATORS = {
    "convolutions": ("resnet10t", {}),
    "channels last": ("swin_tiny_patch4_window7_224", {"img_size": 64, "window_size": 2, "depths": (1, 1, 1, 1)}),
    "tokens": ("vit_tiny_patch16_224", {"img_size": 64, "depth": 1}),
    "its own head": ("lvvit_t", {"img_size": 64, "depth": 1}),
}


@pytest.mark.parametrize("kind", ANNOTATORS)
def test_no_annotator_reads_its_device(kind: str) -> None:
    """Cells of maps and of tokens, under any head."""
    name, options = ANNOTATORS[kind]
    model = timm.create_model(name, num_classes=7, **options)
    check_queues(Annotator(model.to(META), Frame.of(model, Grid(1, 1), 64)))


def test_a_selector_in_the_loop_reads_nothing_of_images_of_another_size_and_normalisation() -> None:
    """Its own means, deviations and size are made of the student's images on the device."""
    ranker = made(tiny_vit(), "evit")
    students = Pixels((0.4, 0.5, 0.6), (0.2, 0.3, 0.4))
    select = OnlineSelector(ranker).ranking(students)
    images = torch.zeros(3, 3, 64, 64, device=META)
    select(images)
    with OnTheHost() as host:
        select(images)
    assert host.seen == []
