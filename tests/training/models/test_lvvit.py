"""LV-ViT against values that the paper's released code computed, and what a run makes of it."""

import subprocess
import sys

import pytest
import torch
from makers import TESTS
from safetensors import safe_open
from torch import Tensor

from dlth.tickets.errors import InputError
from dlth.training import LVViT, Selector, make_student
from dlth.training.models.registry import build, default_blocks
from dlth.training.models.token_logits import TokenLogits
from dlth.training.runs.losses import image_loss, token_label_loss


class Golden:
    """The golden model, its normalised images, and what was computed of them."""

    def __init__(self) -> None:
        with safe_open(TESTS / "training" / "golden" / "lvvit_a.safetensors", "pt") as file:
            self.facts = file.metadata()
            self.tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        sizes = ("img_size", "patch_size", "embed_dim", "depth", "num_heads", "num_classes")
        size = {name: int(self.facts[name]) for name in sizes} | {"mlp_ratio": float(self.facts["mlp_ratio"])}
        self.vit = LVViT(**size, skip=float(self.facts["skip_lam"]), stem_width=64).eval()
        weights = {name[6:]: value for name, value in self.tensors.items() if name.startswith("model.")}
        self.vit.load_state_dict(weights, strict=True)
        mean, std = (
            torch.tensor([float(x) for x in self.facts[name].split(",")]).view(3, 1, 1) for name in ("mean", "std")
        )
        self.images = (self.tensors["images"].float() / 255 - mean) / std
        self.ticket = self.tensors["ticket"]

    def close(self, found: Tensor, name: str) -> None:
        torch.testing.assert_close(found, self.tensors[name], atol=1e-5, rtol=1e-5)


@pytest.fixture
def golden() -> Golden:
    return Golden()


@torch.no_grad()
def test_golden_logits(golden: Golden) -> None:
    """With the published parameter names: evaluation logits on all patches and on the ticket; in training, logits of
    the class token and of each kept patch."""
    student = make_student(golden.vit)
    golden.close(student(golden.images), "student_dense_logits")
    golden.close(student(golden.images, golden.ticket), "student_sparse_logits")
    student.train()
    golden.vit.patch_embed.eval()  # the values were computed with batch norm in evaluation mode
    output = student(golden.images, golden.ticket)
    golden.close(output.cls, "student_train_cls_logits")
    golden.close(output.patches, "student_train_token_logits")


def test_golden_selection(golden: Golden) -> None:
    """Each stage keeps the authors' patches, the ticket is theirs, and so are the logits with dropping on."""
    selector = Selector(golden.vit, golden.facts["stage_keep"], [int(b) for b in golden.facts["blocks"].split(",")])
    ranking = selector.rank(golden.images)
    for stage, kept in enumerate(selector.budget.stage_tokens):
        assert torch.equal(ranking[:, :kept].sort().values, golden.tensors[f"stage{stage}_patches"].sort().values)
    assert torch.equal(ranking[:, : golden.ticket.shape[1]].sort().values, golden.ticket.sort().values)
    golden.close(selector.logits(golden.images), "selector_logits")


def test_golden_loss(golden: Golden) -> None:
    """The loss with token labels, which are dropped as the tokens are."""
    targets, patches = golden.tensors["targets"][:, :, 1], golden.tensors["targets"][:, :, 2:].mT
    kept = patches.take_along_dim(golden.ticket[..., None], dim=1)
    output = TokenLogits(golden.tensors["student_train_cls_logits"], golden.tensors["student_train_token_logits"])
    weights = float(golden.facts["dense_weight"]), float(golden.facts["cls_weight"])
    golden.close(token_label_loss(output, targets, kept, *weights).mean()[None], "token_label_loss")


def test_without_token_labels_each_patch_has_its_images_label() -> None:
    """So both heads learn: no weight is without a gradient, and half a weight halves the patches' part alone."""
    torch.manual_seed(0)
    vit = build("lvvit_tiny", img_size=32, embed_dim=24, depth=2, num_heads=2, num_classes=3, stem_width=8)
    student, targets = make_student(vit).train(), torch.eye(3)[[0, 2]]
    output = student(torch.randn(2, 3, 32, 32), torch.tensor([[0, 3], [1, 2]]))
    loss = image_loss(output, targets)
    labelled = token_label_loss(output, targets, targets[:, None].expand(-1, 2, -1))
    torch.testing.assert_close(loss, labelled)
    torch.testing.assert_close(loss - image_loss(output, targets, 0.5), 0.5 * (loss - image_loss(output, targets, 0.0)))
    loss.sum().backward()
    assert all(weight.grad is not None for weight in vit.parameters())


@pytest.mark.parametrize(
    ("name", "millions", "blocks"),
    [
        ("tiny", 8.5, (3, 6, 9)),
        ("small", 26.2, (4, 8, 12)),
        ("medium", 55.8, (5, 10, 15)),
        ("large", 150.0, (6, 12, 18)),
    ],
)
def test_published_sizes(name: str, millions: float, blocks: tuple[int, ...]) -> None:
    """Each has its paper's parameters, the paper's selection blocks, and ImageNet's mean as its images'."""
    with torch.device("meta"):
        vit = build(f"lvvit_{name}")
    assert sum(weight.numel() for weight in vit.parameters()) / 1e6 == pytest.approx(millions, abs=0.05)
    assert default_blocks(vit) == blocks
    assert vit.pretrained_cfg["mean"] == (0.485, 0.456, 0.406)


def test_new_heads_are_both_of_the_new_size() -> None:
    """`reset_classifier` changes both heads, and no classes leave the class token."""
    vit = LVViT(32, 16, 24, 1, 2, num_classes=7, stem_width=8).eval()
    vit.reset_classifier(3)
    assert (vit.head.out_features, vit.aux_head.out_features) == (3, 3)
    vit.reset_classifier(0)
    assert vit(torch.zeros(1, 3, 32, 32)).shape == (1, 24)


SCRIPT = """
import sys, dlth.training
assert "timm" not in sys.modules and "torch" not in sys.modules
import timm
assert timm.create_model("lvvit_t", depth=1).patch_embed.num_patches == 196
assert [finder for finder in sys.meta_path if finder.__module__.startswith("dlth")] == []
"""


def test_timm_knows_it_after_one_import() -> None:
    """`import dlth.training` imports neither timm nor torch, and timm knows LV-ViT when it comes; no hook stays."""
    subprocess.run([sys.executable, "-c", SCRIPT], check=True, timeout=300)


@pytest.mark.parametrize("side", [7, 0])
def test_an_odd_patch_is_refused(side: int) -> None:
    """The stem halves the image before it cuts patches."""
    with pytest.raises(InputError, match=f"patch_size must be even, got {side}"):
        LVViT(img_size=28, patch_size=side, stem_width=8)
