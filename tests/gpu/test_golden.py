"""The authors' own numbers on the device: float32 as IEEE has it, within what sums in another order may differ by."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from makers.device_report import ABSOLUTE, Compared
from makers.golden import FILES, TRAINED, Golden
from makers.precisions import FLOAT32
from torch import Tensor

from dlth.training import EViT, TicketViT
from dlth.training.device.numerics import numerics

IN_LOGITS, IN_SCORES, IN_GRADIENTS = 1e-4, 1e-6, 1e-5
"""As on the CPU (tests/training/selectors): logits are of the order of 1, scores of 0.01, gradients of 0.1."""


@pytest.fixture(autouse=True)
def _ieee() -> Iterator[None]:
    with numerics():
        yield


@pytest.fixture
def compared(compared: Compared) -> Compared:
    """Differences here are as the authors' numbers are, and no shares of them."""
    return partial(compared, unit=ABSOLUTE)


def apart(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference."""
    return float((ours - theirs).abs().max())


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_selector_and_student(path: Path, device: torch.device, compared: Compared) -> None:
    """Logits and scores are the authors', and so is the ticket, patch for patch."""
    golden = Golden.read(path, device)
    selector, tensors, name = golden.selector, golden.tensors, f"golden {path.stem}"
    logits = selector.logits(golden.images)
    compared(f"{name}: selector's logits", FLOAT32, apart(logits, tensors["selector_logits"]), IN_LOGITS)
    if selector.fuse_tokens:  # the authors' code gives no indices there
        return
    first = selector.scores(golden.images)
    compared(f"{name}: first stage's scores", FLOAT32, apart(first, tensors["stage0_cls_attn"]), IN_SCORES)
    theirs = tensors["ticket"]
    ours = selector.rank(golden.images)[:, : theirs.shape[1]]
    missing = int((ours.sort().values != theirs.sort().values).sum())
    compared(f"{name}: patches of tickets that differ", FLOAT32, missing, 0)
    student = TicketViT(golden.vit)
    with torch.no_grad():
        dense, sparse = student(golden.images), student(golden.images, theirs)
    compared(f"{name}: student, all patches", FLOAT32, apart(dense, tensors["student_dense_logits"]), IN_LOGITS)
    compared(f"{name}: student, its ticket", FLOAT32, apart(sparse, tensors["student_sparse_logits"]), IN_LOGITS)


@pytest.mark.parametrize("path", TRAINED, ids=lambda path: path.stem)
def test_a_training_step_of_the_selector(path: Path, device: torch.device, compared: Compared) -> None:
    """Loss and gradients of one forward and backward with dropping on are the authors'."""
    golden = Golden.read(path, device)
    blocks = [int(block) for block in golden.facts["blocks"].split(",")]
    evit = EViT(golden.vit, golden.facts["stage_keep"], blocks, golden.facts["fuse_tokens"] == "True").train()
    loss = F.cross_entropy(evit(golden.images), golden.tensors["labels"])
    loss.backward()
    theirs = {name[5:]: value for name, value in golden.tensors.items() if name.startswith("grad.")}
    worst = max(apart(golden.vit.get_parameter(name).grad, gradient) for name, gradient in theirs.items())
    compared(f"golden {path.stem}: loss", FLOAT32, apart(loss.detach(), golden.tensors["loss"].squeeze()), IN_LOGITS)
    compared(f"golden {path.stem}: gradients", FLOAT32, worst, IN_GRADIENTS)
