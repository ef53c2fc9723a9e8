"""The student on a ticket's patches, against timm's own forward and timm's own slot for dropping patches."""

from collections.abc import Callable

import pytest
import torch
from makers.models import tiny_vit
from timm.models.eva import Eva
from torch import Tensor, nn

from dlth.data.images.kept_pixels import kept_pixels
from dlth.tickets.errors import InputError
from dlth.training import TicketViT

Make = Callable[..., nn.Module]
SIDES = {"dynamic": (40, 24), "padded": (37, 30), "dinov3 dynamic": (24, 40), "rectangle": (32, 48)}
"""Image sizes other than the model's own, where it takes them."""


def images(family: str = "plain", count: int = 3) -> Tensor:
    return torch.randn(count, 3, *SIDES.get(family, (32, 32)), generator=torch.Generator().manual_seed(7))


def num_patches(vit: nn.Module, batch: Tensor) -> int:
    rows, cols = vit.patch_embed.dynamic_feat_size(batch.shape[2:])
    return rows * cols


def draw(vit: nn.Module, batch: Tensor, k: int = 5) -> Tensor:
    """k patches of each image in random order."""
    total = num_patches(vit, batch)
    return torch.rand(len(batch), total, generator=torch.Generator().manual_seed(3)).argsort(dim=1)[:, :k]


class Slot(nn.Module):
    """In the place of timm's PatchDropout: keeps given patches instead of random ones, after all were embedded."""

    def __init__(self, patches: Tensor, num_prefix: int, with_indices: bool) -> None:
        super().__init__()
        self.patches, self.num_prefix, self.with_indices = patches, num_prefix, with_indices

    def forward(self, tokens: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        batch = torch.arange(len(tokens)).unsqueeze(1)
        kept = torch.cat([tokens[:, : self.num_prefix], tokens[batch, self.patches + self.num_prefix]], dim=1)
        return (kept, self.patches) if self.with_indices else kept


def timm_on(vit: nn.Module, batch: Tensor, patches: Tensor) -> Tensor:
    """timm's own forward pass with its slot for dropping patches filled."""
    before, vit.patch_drop = vit.patch_drop, Slot(patches, vit.num_prefix_tokens, isinstance(vit, Eva))
    try:
        return vit(batch)
    finally:
        vit.patch_drop = before


def gradients(vit: nn.Module, logits: Tensor) -> dict[str, Tensor]:
    vit.zero_grad()
    (logits * torch.linspace(-1, 1, logits.numel()).view_as(logits)).sum().backward()
    return {name: weight.grad.clone() for name, weight in vit.named_parameters() if weight.grad is not None}


def test_all_patches_are_timms_forward(family: str) -> None:
    """Without patches, timm's own bits; with all of them named, the same logits within float error."""
    vit = tiny_vit(family)
    batch = images(family)
    student = TicketViT(vit)
    with torch.no_grad():
        expected = vit(batch)
        assert torch.equal(student(batch), expected)
        everything = torch.arange(num_patches(vit, batch)).expand(len(batch), -1)
        torch.testing.assert_close(student(batch, everything), expected, atol=1e-5, rtol=1e-4)


def test_logits_and_gradients_are_those_of_dropping_after_embedding(family: str) -> None:
    """Gathering before the embedding equals timm's way, to the gradients of every parameter."""
    vit = tiny_vit(family)
    batch = images(family)
    patches = draw(vit, batch)
    ours, theirs = TicketViT(vit)(batch, patches), timm_on(vit, batch, patches)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
    ours_by_name, theirs_by_name = gradients(vit, ours), gradients(vit, theirs)
    assert ours_by_name.keys() == theirs_by_name.keys()
    for name, expected in theirs_by_name.items():
        assert torch.allclose(ours_by_name[name], expected, atol=1e-4, rtol=1e-3), name


def test_pixels_that_come_cut_are_the_same_numbers(family: str) -> None:
    """Given kept patches' pixels in place of images: the same logits and gradients to the bit, or a refusal by a stem
    that sees the neighbours of a patch.
    """
    vit = tiny_vit(family)
    batch = torch.randn(3, 3, *vit.patch_embed.img_size, generator=torch.Generator().manual_seed(7))
    patches, student = draw(vit, batch), TicketViT(vit)
    pixels = kept_pixels(batch, patches, vit.patch_embed.grid_size)
    assert pixels.shape == (3, 5, 3, 8, 8)
    if not student.embeds_kept_only:
        with pytest.raises(InputError, match=r"need a model that embeds those alone"):
            student(pixels, patches)
        return
    whole, cut = (student(images, patches) for images in (batch, pixels))
    assert torch.equal(whole, cut)
    whole_by_name, cut_by_name = gradients(vit, whole), gradients(vit, cut)
    assert whole_by_name.keys() == cut_by_name.keys()
    assert all(torch.equal(gradient, cut_by_name[name]) for name, gradient in whole_by_name.items())
    with pytest.raises(InputError, match=r"say with `patches` which they are"):
        student(pixels, patches[:, :4])


@pytest.mark.parametrize("pooling", ["avg", "avgmax", "map", "prr"])
def test_pooling_is_over_kept_patches(pooling: str) -> None:
    """Models without a class token are students too; they pool what was kept."""
    vit = tiny_vit(global_pool=pooling, class_token=False)
    batch = images()
    patches = draw(vit, batch)
    torch.testing.assert_close(TicketViT(vit)(batch, patches), timm_on(vit, batch, patches), atol=1e-5, rtol=1e-4)


def test_dropped_pixels_are_never_read() -> None:
    """NaN in every dropped patch changes nothing; an overlapping stem is the named exception."""
    vit = tiny_vit()
    batch = images(count=1)
    patches = torch.tensor([[0, 5, 6, 15]])
    spoiled = torch.full_like(batch, torch.nan)
    for row, col in ((0, 0), (1, 1), (1, 2), (3, 3)):
        spot = (..., slice(row * 8, row * 8 + 8), slice(col * 8, col * 8 + 8))
        spoiled[spot] = batch[spot]
    student = TicketViT(vit)
    assert student.embeds_kept_only
    assert torch.equal(student(spoiled, patches), student(batch, patches))
    overlapping = TicketViT(tiny_vit("overlapping"))
    assert not overlapping.embeds_kept_only
    assert overlapping(spoiled, patches).isnan().any()


def test_blocks_see_only_kept_tokens() -> None:
    """A block's input is the prefix tokens and the kept patches, so a step costs what its tokens cost."""
    vit = tiny_vit("registers")
    seen: list[torch.Size] = []
    vit.blocks[0].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].shape))
    TicketViT(vit)(images(), draw(vit, images()))
    assert seen == [(3, 5 + 5, 32)]


def test_order_of_patches_does_not_matter() -> None:
    """A ticket is a set to the student: any order gives the same logits within float error."""
    vit = tiny_vit("rope mixed")
    patches = draw(vit, images())
    student = TicketViT(vit)
    torch.testing.assert_close(student(images(), patches), student(images(), patches.flip(1)), atol=1e-5, rtol=1e-4)


def test_drop_path_is_active_in_training() -> None:
    """What timm does to a model in training, it does to the kept tokens."""
    student = TicketViT(tiny_vit(drop_path_rate=0.5)).train()
    patches = draw(student.vit, images())
    assert not torch.equal(student(images(), patches), student(images(), patches))


@pytest.mark.parametrize("name", ["plain", "dinov3", "rope mixed"])
def test_gradient_checkpointing_changes_no_gradient(name: str) -> None:
    """`set_grad_checkpointing` of the wrapped model holds."""
    vit = tiny_vit(name)
    patches = draw(vit, images())
    expected = gradients(vit, TicketViT(vit)(images(), patches))
    vit.set_grad_checkpointing()
    found = gradients(vit, TicketViT(vit)(images(), patches))
    for weight, value in expected.items():
        torch.testing.assert_close(found[weight], value)


@pytest.mark.parametrize("name", ["plain", "dynamic", "dinov3", "lvvit"])
def test_compiles_into_one_graph(name: str) -> None:
    """No graph break; another k compiles once more and stays right; one image too."""
    vit = tiny_vit(name)
    student = TicketViT(vit)
    torch._dynamo.reset()
    compiled = torch.compile(student, backend="eager", fullgraph=True)
    for count, k in ((3, 5), (3, 7), (1, 5)):
        batch = images(count=count)
        patches = draw(vit, batch, k)
        torch.testing.assert_close(compiled(batch, patches), student(batch, patches))


def test_autocast_follows_timm() -> None:
    """Under bf16 autocast the logits are those of timm's forward under it, within bf16 error."""
    vit = tiny_vit()
    everything = torch.arange(16).expand(3, -1)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        ours, theirs = TicketViT(vit)(images(), everything), vit(images())
    assert ours.dtype == theirs.dtype
    torch.testing.assert_close(ours, theirs, atol=0.05, rtol=0.05)


def test_channels_last_images() -> None:
    """Memory format does not change which pixels are cut."""
    vit = tiny_vit()
    patches = draw(vit, images())
    student = TicketViT(vit)
    torch.testing.assert_close(
        student(images().contiguous(memory_format=torch.channels_last), patches), student(images(), patches)
    )


def test_state_dict_is_timms() -> None:
    """The wrapped model's weights bear timm's names, before and after: nothing needs renaming."""
    vit = tiny_vit("distilled")
    before = list(vit.state_dict())
    student = TicketViT(vit)
    assert list(student.vit.state_dict()) == before
    tiny_vit("distilled", seed=1).load_state_dict(student.vit.state_dict(), strict=True)


@pytest.mark.parametrize(
    ("patches", "message"),
    [
        (torch.zeros(3, 4, dtype=torch.int32), r"int64 \[batch, k\] for a batch of 3, got torch.int32 \[3, 4\]"),
        (torch.zeros(2, 4, dtype=torch.int64), r"got torch.int64 \[2, 4\]"),
        (torch.zeros(4, dtype=torch.int64), r"got torch.int64 \[4\]"),
    ],
    ids=["dtype", "batch", "axes"],
)
def test_patches_that_do_not_fit_are_refused(patches: Tensor, message: str) -> None:
    """Shapes and dtypes are checked before anything is computed."""
    with pytest.raises(InputError, match=message):
        TicketViT(tiny_vit())(images(), patches)


@pytest.mark.parametrize("index", [16, -1])
def test_patches_outside_the_grid_are_an_error(index: int) -> None:
    """No index wraps around: neither the last patch plus one nor minus one is another patch."""
    with pytest.raises((IndexError, RuntimeError), match="out of bounds"):
        TicketViT(tiny_vit())(images(), torch.full((3, 2), index))


def test_images_of_broken_patches_are_refused() -> None:
    """A dynamic model without padding takes whole patches only."""
    with pytest.raises(InputError, match="images of 30x32 pixels are not whole patches of 8x8"):
        TicketViT(tiny_vit("dynamic"))(torch.zeros(1, 3, 30, 32), torch.zeros(1, 1, dtype=torch.int64))


def test_random_dropping_beside_tickets_is_refused() -> None:
    """A model that also drops patches at random would train on less than the ticket."""
    with pytest.raises(InputError, match="patch_drop_rate=0"):
        TicketViT(tiny_vit(patch_drop_rate=0.5))
