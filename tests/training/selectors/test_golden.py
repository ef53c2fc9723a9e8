"""Selector and student against values that the paper's released code computed (`golden/`, float32 on a CPU)."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from makers.golden import FILES, TRAINED, Golden

from dlth.training import EViT, TicketViT


@pytest.fixture(params=FILES, ids=lambda path: path.stem)
def golden(request: pytest.FixtureRequest) -> Golden:
    return Golden.read(request.param)


def test_files_are_there() -> None:
    """Plain and fused selection, two patch sizes; a training step without and with the fused token."""
    assert (len(FILES), len(TRAINED)) == (3, 2)


def test_selector_logits(golden: Golden) -> None:
    """The whole forward pass with dropping (and fusing) switched on ends within 1e-4."""
    torch.testing.assert_close(
        golden.selector.logits(golden.images), golden.tensors["selector_logits"], atol=1e-4, rtol=0
    )


def test_every_stage_keeps_the_same_patches(golden: Golden) -> None:
    """Index sets of all stages are equal; order is equal wherever neighbouring scores differ by more than 1e-6."""
    if "ticket" not in golden.tensors:
        assert golden.selector.fuse_tokens  # the authors' code gives no indices there: the logits are the check
        return
    stages, _ = golden.selector._forward(golden.images, to_the_end=False)
    before = torch.arange(golden.selector.grid.num_patches).expand(len(golden.images), -1)
    for number, stage in enumerate(stages):
        theirs = before.gather(1, golden.tensors[f"stage{number}_idx"])  # theirs count among the stage's own tokens
        kept = theirs.shape[1]
        assert kept == stage.kept
        assert (stage.patches[:, :kept].sort().values == theirs.sort().values).all()
        scores = golden.tensors[f"stage{number}_cls_attn"].gather(1, golden.tensors[f"stage{number}_idx"])
        torch.testing.assert_close(stage.scores[:, :kept], scores, atol=1e-6, rtol=0)
        steps = scores.diff(dim=1).abs() > 1e-6
        clear = torch.ones_like(scores, dtype=torch.bool)
        clear[:, 1:] &= steps
        clear[:, :-1] &= steps
        assert (stage.patches[:, :kept] == theirs)[clear].all()
        before = theirs


def test_ticket_and_student(golden: Golden) -> None:
    """The ticket is the first of the ranking; the student's logits on all patches and on the ticket end within 1e-4."""
    if "ticket" not in golden.tensors:
        assert golden.selector.fuse_tokens
        return
    ticket, selector = golden.tensors["ticket"], golden.selector
    student = TicketViT(golden.vit)
    assert selector.budget.k == ticket.shape[1]
    ranking = selector.rank(golden.images)
    assert (ranking[:, : ticket.shape[1]].sort().values == ticket.sort().values).all()
    with torch.no_grad():
        dense, sparse = student(golden.images), student(golden.images, ticket)
    torch.testing.assert_close(dense, golden.tensors["student_dense_logits"], atol=1e-4, rtol=0)
    torch.testing.assert_close(sparse, golden.tensors["student_sparse_logits"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("path", TRAINED, ids=lambda path: path.stem)
def test_a_training_step_of_the_selector(path: Path) -> None:
    """Loss, logits and gradients of one forward and backward with dropping on, the fused token's too, end within 1e-4
    (the gradients are of the order of 0.1).
    """
    golden = Golden.read(path)
    blocks = [int(block) for block in golden.facts["blocks"].split(",")]
    evit = EViT(golden.vit, golden.facts["stage_keep"], blocks, golden.facts["fuse_tokens"] == "True").train()
    logits = evit(golden.images)
    loss = F.cross_entropy(logits, golden.tensors["labels"])
    loss.backward()
    close = {"atol": 1e-5, "rtol": 0.0}
    torch.testing.assert_close(logits, golden.tensors["train_logits"], **close)
    torch.testing.assert_close(loss, golden.tensors["loss"].squeeze(), **close)
    gradients = {name[5:]: value for name, value in golden.tensors.items() if name.startswith("grad.")}
    assert len(gradients) == 6
    for name, gradient in gradients.items():
        torch.testing.assert_close(golden.vit.get_parameter(name).grad, gradient, **close)
