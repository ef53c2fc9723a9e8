"""Students of any model: what reaches the model is the ticket's patches, as the paper's code has them, and no more."""

from typing import Any

import pytest
import timm
import torch
from makers import TESTS
from makers.models import tiny_vit
from safetensors.torch import load_file
from torch import Tensor, nn

from dlth.tickets import Grid
from dlth.tickets.errors import InputError
from dlth.training import make_student
from dlth.training.models.registry import build

SWIN = {"patch_size": 4, "embed_dim": 12, "depths": (2, 2), "num_heads": (2, 2), "num_classes": 5}


def tiny_swin(version: int = 1, **changes: Any) -> nn.Module:
    """Two stages at 64 px: 16x16 tokens in windows of 8 (its halves shifted), then 8x8 tokens."""
    torch.manual_seed(version)
    name = "swin_tiny_patch4_window7_224" if version == 1 else "swinv2_tiny_window8_256"
    swin = timm.create_model(name, **SWIN | {"img_size": 64, "window_size": 8} | changes)
    for key, weight in swin.named_parameters():
        if weight.ndim > 1 and "logit_scale" not in key:
            nn.init.normal_(weight, std=0.15)
    return swin.eval()


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    return load_file(TESTS / "training" / "golden" / "image_a.safetensors")


@pytest.mark.parametrize(("how", "expected"), [("zero", "zeroed"), ("small-dense", "small_dense")])
def test_the_model_sees_what_the_papers_models_saw(golden: dict[str, Tensor], how: str, expected: str) -> None:
    """Bit for bit, in whatever order the patches come; without patches it is the image itself."""
    student, images = make_student(nn.Identity(), how, patch_size=8), golden["images"]
    patches = golden["ranking"][:, :36]
    assert torch.equal(student(images, patches), golden[expected])
    assert torch.equal(student(images, patches.flip(1)), golden[expected])
    assert student(images, None) is images


@pytest.mark.parametrize("how", ["zero", "small-dense"])
def test_dropped_pixels_are_nowhere(golden: dict[str, Tensor], how: str) -> None:
    """What a dropped patch shows, be it no number, changes neither logits nor gradients."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))
    images, patches = golden["images"], golden["ranking"][:, :16]
    student, spoilt = make_student(model, how, patch_size=8), torch.full_like(images, torch.nan)
    kept = make_student(nn.Identity(), "zero", patch_size=8)(torch.ones_like(images), patches) > 0
    gradients = []
    for pixels in (images, torch.where(kept, images, spoilt)):
        loss = student(pixels, patches).square().sum()
        gradients.append(torch.autograd.grad(loss, list(student.parameters())))
    for one, other in zip(*gradients, strict=True):
        assert torch.equal(one, other)
        assert one.isfinite().all()


def test_a_square_is_made_of_the_best(golden: dict[str, Tensor]) -> None:
    """Of 40 patches the 36 best are laid out, and the student says so beforehand."""
    student = make_student(nn.Identity(), "small-dense", patch_size=8)
    assert (student.most_kept(40), student.most_kept(36), student.most_kept(3)) == (36, 36, 1)
    assert torch.equal(student(golden["images"], golden["ranking"][:, :40]), golden["small_dense"])


def test_patches_are_the_models_or_the_tickets() -> None:
    """A ViT's patches are its own; a CNN's and a Swin's are 16 pixels, or those of the tickets."""
    with torch.device("meta"):
        swin, resnet = build("swin_tiny_patch4_window7_224"), build("resnet18", img_size=32)
    assert make_student(tiny_vit(), "zero").grid == make_student(tiny_vit()).grid == Grid(4, 4)
    assert make_student(swin, "zero").grid == Grid(14, 14)
    assert make_student(resnet, patch_size=4).grid == Grid(8, 8)
    assert [make_student(model).how for model in (tiny_vit(), resnet, nn.Identity())] == ["sparse", "zero", "zero"]


@pytest.mark.parametrize(("how", "tokens"), [("sparse", 92), ("zero", 256), ("small-dense", 64)])
def test_tokens_are_of_one_size_however_patches_are_left_out(how: str, tokens: int) -> None:
    """Of 64 patches of 8 pixels 23 are kept (16 as a square): a Swin's tokens are 4x4 pixels, a CNN's are patches."""
    assert make_student(tiny_swin(), how, patch_size=8).num_tokens(23) == tokens
    resnet = build("resnet18", img_size=64)
    assert make_student(resnet, "zero", patch_size=8).num_tokens(23) == 64


@pytest.mark.parametrize(
    ("model", "how", "patch_size", "message"),
    [
        ("resnet18", "sparse", None, r"ResNet cannot drop patches: .*Any model takes --how zero"),
        ("resnet18", "dense", None, r"there is no --how 'dense'; there are sparse, zero, small-dense"),
        ("vit_tiny_patch16_224", "sparse", 8, r"runs on its own patches of 16 pixels, not of 8"),
        (
            "vit_tiny_patch16_224",
            "small-dense",
            None,
            r"takes images of one size.*dynamic_img_size=True, or leave --how out",
        ),
        ("resnet18", "zero", 13, r"images of 224x224 pixels are not whole patches of 13x13"),
    ],
)
def test_pairs_that_cannot_be_are_refused(model: str, how: str, patch_size: int | None, message: str) -> None:
    """With what would work."""
    with torch.device("meta"):
        built = build(model)
    with pytest.raises(InputError, match=message):
        _ = make_student(built, how, patch_size).grid


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("side", [3, 2, 1])
def test_a_swin_takes_smaller_images_with_its_own_weights(version: int, side: int) -> None:
    """The windows of a smaller image divide it, and the bias between two tokens stays that of their distance: so a Swin
    that timm builds for the smaller size, with the middle of the same table, says the same. Gradients reach the table.
    """
    swin = tiny_swin(version)
    student, images = make_student(swin, "small-dense", patch_size=16), torch.randn(2, 3, 64, 64)
    patches = torch.stack([torch.randperm(16)[: side**2] for _ in range(2)])
    small = make_student(nn.Identity(), "small-dense", patch_size=16)(images, patches)
    window = {3: 6, 2: 8, 1: 4}[side]
    changes = {} if version == 1 else {"pretrained_window_sizes": (8, 8)}
    other = tiny_swin(version, img_size=16 * side, window_size=window, **changes)
    weights = swin.state_dict()
    for name, table in other.state_dict().items():
        if "relative_position_bias_table" in name:
            cut = (16 - (table_side := int(len(table) ** 0.5)) - 1) // 2
            middle = weights[name].unflatten(0, (15, 15))[cut : cut + table_side, cut : cut + table_side]
            weights[name] = middle.flatten(0, 1)
    other.load_state_dict(weights)
    torch.testing.assert_close(student(images, patches), other(small), atol=1e-5, rtol=1e-5)
    student(images, patches).sum().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in swin.parameters())
    assert torch.equal(student(images, None), swin(images))


def test_a_smaller_swin_compiles() -> None:
    """As one graph, with the same numbers, once the student has seen the size, as it has before a run's steps."""
    student, images = make_student(tiny_swin(), "small-dense", patch_size=16), torch.randn(2, 3, 64, 64)
    patches = torch.arange(4).expand(2, -1)
    expected = student(images, patches)
    assert torch.equal(torch.compile(student, backend="eager", fullgraph=True)(images, patches), expected)


@pytest.mark.parametrize(("model", "how"), [("cnn", "zero"), ("swin", "small-dense"), ("swin", "sparse")])
def test_patches_of_another_batch_are_refused(model: str, how: str) -> None:
    """A row an image, of at least one patch, int64: nothing is left black or broadcast, and a list is named as one."""
    student = make_student(tiny_swin() if model == "swin" else nn.Flatten(), how, 16)
    images, patches = torch.zeros(2, 3, 64, 64), torch.arange(4).expand(2, -1)
    student(images, patches)
    for wrong in (patches[:1], patches[:, :0], patches[0], patches.int(), [[0, 1], [2, 3]]):
        with pytest.raises(InputError, match=r"patches must be (int64 \[batch, k\] for a batch of 2|an int64 tensor)"):
            student(images, wrong)
    with pytest.raises((RuntimeError, IndexError)):
        student(images, patches - 1)


@pytest.mark.parametrize("version", [1, 2])
def test_a_smaller_swin_follows_its_models_mode_and_dtype(version: int) -> None:
    """Stochastic depth is on and off as the model has it, whoever set it, and a model may be cast between passes."""
    torch.manual_seed(0)
    swin, images = tiny_swin(version, drop_path_rate=0.5), torch.randn(16, 3, 64, 64)
    patches = torch.arange(4).repeat(16, 1)
    for weight in (weight for weight in swin.parameters() if weight.ndim == 1):
        nn.init.normal_(weight, std=0.5)  # V2's branches begin at zero
    student = make_student(swin, "small-dense", 16)
    swin.train()
    assert not torch.equal(student(images, patches), student(images, patches))
    swin.eval()
    logits = student(images, patches)
    assert torch.equal(logits, student(images, patches))
    assert torch.allclose(student.double()(images.double(), patches).float(), logits, atol=1e-4)
    assert torch.equal(student.float()(images, patches), logits)
