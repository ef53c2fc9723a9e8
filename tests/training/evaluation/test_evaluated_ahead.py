"""Evaluation keeps a GPU at work: shown on the meta device, whose numbers cannot be read."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from makers.models import tiny_vit

from dlth.data.shards.index import open_index
from dlth.training import EViT, Selector, TicketViT
from dlth.training.device.precision import Precision
from dlth.training.distributed.process_group import World
from dlth.training.evaluation.evalset import EvalSet
from dlth.training.models.frame import Frame
from dlth.training.models.pixels import Pixels
from dlth.training.models.student import Student
from dlth.training.selectors.online import OnlineSelector
from dlth.training.selectors.selector_student import SelectorStudent
from dlth.training.settings.eval_config import EvalConfig

META = torch.device("meta")
STUDENTS: dict[str, tuple[Callable[..., Student], int]] = {
    "tickets": (TicketViT, 3),
    "a selector": (lambda vit: SelectorStudent(EViT(vit, 0.7)), 2),
}
"""A student of a model, and on how many arms it is measured."""


@pytest.mark.parametrize("kind", STUDENTS)
def test_no_arm_is_read_before_all_of_the_next_batch_are_queued(make_shards: Callable[..., Any], kind: str) -> None:
    """Forwards on all arms, a selector's choice and the scores read nothing; the first to read finds two batches
    queued."""
    make, arms = STUDENTS[kind]
    student, selector = make(tiny_vit(depth=2).to(META)), Selector(tiny_vit(depth=2).to(META))
    index, frame = open_index(make_shards(1, 7).spec), Frame.of(selector.vit)
    chosen = 8 if kind == "tickets" else None
    config = EvalConfig(checkpoint="none", val="none", workers=0)
    images, pixels = EvalSet(config, index, frame, chosen, None, 0, 3), Pixels(frame.mean, frame.std)
    select = OnlineSelector(selector).ranking(pixels) if kind == "tickets" else None
    queued: list[int] = []
    student.register_forward_hook(lambda module, args, logits: queued.append(len(logits)))
    with pytest.raises(NotImplementedError, match="meta"):
        images.evaluate(student, World(0, 1, META), pixels, Precision(None, META), select)
    assert queued == [3] * 2 * arms
