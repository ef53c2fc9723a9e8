"""The selector in training: gradients and dropout as timm's, the selector's own rule, what is refused."""

from typing import Any

import numpy as np
import pytest
import torch
from makers.models import tiny_vit

from dlth.tickets import Budget
from dlth.tickets.errors import InputError
from dlth.training import EViT, Selector
from dlth.training.models.token_logits import TokenLogits

IMAGES = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_nothing_dropped_is_timms_own_training_step(family: str) -> None:
    """At a rate of 1 logits and gradients are those of timm's forward in training mode, drop path and dropout drawn
    alike.
    """
    images = torch.rand(3, 3, *tiny_vit(family).patch_embed.img_size, generator=torch.Generator().manual_seed(0))
    noise = {"drop_path_rate": 0.4} | ({} if family.startswith("lvvit") else {"proj_drop_rate": 0.2})
    found = []
    for wrapped in (False, True):
        vit = tiny_vit(family, **noise).train()
        torch.manual_seed(1)
        output = (EViT(vit, 1.0, (1, 2)) if wrapped else vit)(images)
        logits = torch.cat([output.cls[:, None], output.patches], 1) if isinstance(output, TokenLogits) else output
        logits.square().sum().backward()
        found.append([logits, *(weight.grad for weight in vit.parameters() if weight.grad is not None)])
    assert len(found[0]) == len(found[1]) > 10
    torch.testing.assert_close(found[1], found[0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("fuse_tokens", [False, True])
def test_what_was_trained_is_what_selects(fuse_tokens: bool) -> None:
    """In evaluation mode the logits are, to the bit, those that the selector of the same model evaluates with."""
    vit = tiny_vit()
    blocks: Any = np.array([1, 3])  # any sequence of whole numbers
    evit = EViT(vit, "0.6", blocks, fuse_tokens).eval()
    with torch.no_grad():
        assert torch.equal(evit(IMAGES), Selector(vit, "0.6", (1, 3), fuse_tokens).logits(IMAGES))


def test_a_budget_takes_the_place_of_the_rate() -> None:
    """A keep schedule asks a step for another budget; one of other patches or stages is refused."""
    evit = EViT(tiny_vit(), 0.5, (1, 3)).eval()
    with torch.no_grad():
        whole = evit(IMAGES, Budget.from_stage_keep("1", 16, 2))
        torch.testing.assert_close(whole, evit.vit(IMAGES), atol=1e-5, rtol=0)
        assert not torch.allclose(evit(IMAGES), whole, atol=1e-3)
    with pytest.raises(InputError, match="a budget for 16 patches in 3 stages does not fit 16 patches and 2"):
        evit(IMAGES, Budget.from_stage_keep("1", 16, 3))


def test_another_image_size_has_its_own_budget() -> None:
    """A model with dynamic_img_size drops the same share of a larger grid."""
    evit = EViT(tiny_vit("dynamic"), 0.5, (1,)).eval()
    with torch.no_grad():
        assert evit(torch.rand(1, 3, 32, 64)).shape == (1, 5)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("plain", {"blocks": (3, 1)}, "rising"),
        ("plain", {"blocks": (1, True)}, "blocks must be"),
        ("plain", {"blocks": (4,)}, "from 0 to 3"),
        ("plain", {"stage_keep": 1.2}, "stage keep must be above 0 and at most 1"),
        ("dinov3", {"blocks": (1,), "fuse_tokens": True}, "rotary"),
    ],
    ids=str,
)
def test_what_makes_no_sense_is_refused(kind: str, options: dict[str, Any], message: str) -> None:
    """Blocks, rates and models that cannot serve are refused when the module is made."""
    with pytest.raises(InputError, match=message):
        EViT(tiny_vit(kind), **{"blocks": (1, 3)} | options)
