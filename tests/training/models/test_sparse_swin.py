"""Swin on kept tokens alone, against timm's own forward and against dense Swin whose attention is masked."""

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from makers.runs import Listener
from safetensors.torch import load_file
from timm.models.swin_transformer import window_partition
from torch import Tensor, nn

from dlth.tickets.errors import InputError
from dlth.training import make_student
from dlth.training.device.compiled import compiled
from dlth.training.models.sparse_swin import SparseSwin
from dlth.training.models.window_plan import NUM_GROUPS, Layout, plan_windows
from dlth.training.runs.loop import train
from dlth.training.settings.train_config import TrainConfig

SIZE = {"img_size": 64, "embed_dim": 16, "depths": (2, 2, 2), "num_heads": (2, 2, 4), "num_classes": 5}
"""16x16 tokens of 4 pixels, then 8x8, then 4x4: a token for each of 16 patches."""
V1, V2 = "swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256"
SWINS: dict[str, tuple[str, dict[str, Any]]] = {
    "v1": (V1, {"window_size": 4}),
    "v2": (V2, {"window_size": 4}),
    "v1 padded": (V1, {"window_size": 3}),
    "v2 padded": (V2, {"window_size": (5, 3)}),
    "v1 rectangle, merging missing tokens": (V1, {"img_size": (48, 96), "window_size": 3, "depths": (2, 2, 2, 2)}),
    "v2 odd grid, merging missing tokens": (V2, {"img_size": 48, "window_size": 3, "depths": (2, 1, 1, 2)}),
}


def tiny_swin(kind: str, **options: object) -> nn.Module:
    """A Swin in evaluation mode, with weights large enough that attention differs from token to token."""
    name, changes = SWINS[kind]
    torch.manual_seed(0)
    options = SIZE | changes | options
    stages = len(options["depths"])
    swin = timm.create_model(name, **options | {"num_heads": (2, 2, 4, 4)[:stages]})
    for key, weight in swin.named_parameters():
        if weight.ndim > 1 and "logit_scale" not in key:
            nn.init.normal_(weight, std=0.15)
        elif "norm" in key:  # V2 starts with branches of zero
            nn.init.normal_(weight, mean=0.5, std=0.1)
    return swin.eval()


def images(swin: nn.Module, count: int = 3) -> Tensor:
    return torch.randn(count, 3, *swin.patch_embed.img_size, generator=torch.Generator().manual_seed(7))


def draw(num_patches: int, k: int, count: int = 3) -> Tensor:
    """k patches of each image, in random order."""
    return torch.rand(count, num_patches, generator=torch.Generator().manual_seed(3)).argsort(dim=1)[:, :k]


def masked(swin: nn.Module, batch: Tensor, patches: Tensor, patch_size: int) -> Tensor:
    """Dense Swin in which nobody looks at a dropped token: timm's blocks image by image, their masks extended.

    Merging finds zeros in place of dropped tokens, and the mean is over cells of which something was kept.
    """
    rows, cols = batch.shape[2] // patch_size, batch.shape[3] // patch_size
    pooled = []
    for image, own in zip(batch, patches, strict=True):
        kept = torch.zeros(rows * cols).index_fill(0, own, 1).view(1, 1, rows, cols)
        kept = F.interpolate(kept, scale_factor=patch_size // 4)
        tokens = swin.patch_embed(image[None])
        for stage in swin.layers:
            if not isinstance(stage.downsample, nn.Identity):
                tokens = stage.downsample(tokens * kept[0, 0, :, :, None])
                kept = F.max_pool2d(kept, 2, ceil_mode=True)
            for block in stage.blocks:
                tokens = with_mask(block, kept[0, 0])(tokens)
        pooled.append((swin.norm(tokens) * kept[0, 0, :, :, None]).sum(dim=(1, 2)) / kept.sum())
    return swin.head.fc(torch.cat(pooled))


def with_mask(block: Any, kept: Tensor) -> Callable[[Tensor], Tensor]:
    """timm's block, its mask between regions extended by the tokens that are not kept [rows, cols]."""

    def run(tokens: Tensor) -> Tensor:
        own = block.attn_mask
        rolled = kept.roll((-block.shift_size[0], -block.shift_size[1]), dims=(0, 1))
        (rows, cols), (height, width) = kept.shape, block.window_size
        rolled = F.pad(rolled, (0, -cols % width, 0, -rows % height), value=1.0)
        keys = window_partition(rolled[None, :, :, None], block.window_size).flatten(1)
        mask = ((keys - 1) * 1e9)[:, None].expand(-1, keys.shape[1], -1)
        block.attn_mask = mask if own is None else own + mask
        try:
            return block(tokens)
        finally:
            block.attn_mask = own

    return run


def gradients(model: nn.Module, logits: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    (logits * torch.linspace(-1, 1, logits.numel()).view_as(logits)).sum().backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


@pytest.mark.parametrize("kind", SWINS)
def test_all_patches_are_timms_forward(kind: str) -> None:
    """Without patches timm's own bits; with all of them timm's logits, in training with its stochastic depth."""
    swin = tiny_swin(kind, drop_path_rate=0.5)
    batch, student = images(swin), make_student(swin)
    assert isinstance(student, SparseSwin)
    everything = torch.arange(student.grid.num_patches).expand(len(batch), -1)
    for mode in (False, True):
        student.train(mode)

        def run(patches: Tensor | None) -> Tensor:
            torch.manual_seed(5)
            return student(batch, patches)

        torch.manual_seed(5)
        expected = swin(batch)
        assert torch.equal(run(None), expected)
        torch.testing.assert_close(run(everything), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", SWINS)
@pytest.mark.parametrize("patch_size", [16, 8])
def test_logits_and_gradients_are_those_of_masked_attention(kind: str, patch_size: int) -> None:
    """Computing kept tokens alone is dense Swin that looks at no dropped one, to the gradient of every parameter."""
    swin = tiny_swin(kind)
    batch, student = images(swin), make_student(swin, "sparse", patch_size)
    patches = draw(student.grid.num_patches, student.grid.num_patches // 2)
    ours, theirs = student(batch, patches), masked(swin, batch, patches, patch_size)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    found, expected = gradients(swin, ours), gradients(swin, theirs)
    assert found.keys() == expected.keys() == dict(swin.named_parameters()).keys()
    for name, value in expected.items():
        assert torch.allclose(found[name], value, atol=1e-4, rtol=1e-3), name


@pytest.mark.parametrize("kind", ["v1", "v2 padded"])
def test_dropped_pixels_are_never_read(kind: str) -> None:
    """NaN in every dropped patch, and an image of NaN alone beside it, change no bit."""
    swin = tiny_swin(kind)
    batch, student = images(swin, 2), make_student(swin)
    patches = torch.tensor([[0, 5, 6, 15], [1, 2, 3, 4]])
    spoiled = torch.full_like(batch, torch.nan)
    for row, col in ((0, 0), (1, 1), (1, 2), (3, 3)):
        spot = (0, ..., slice(row * 16, row * 16 + 16), slice(col * 16, col * 16 + 16))
        spoiled[spot] = batch[spot]
    found = student(spoiled, patches)
    assert torch.equal(found[0], student(batch, patches)[0])
    assert found[1].isnan().all()


def test_order_of_patches_and_other_images_do_not_matter() -> None:
    """A ticket is a set: any order gives the same bits. What else is in the batch changes rounding alone."""
    student = make_student(tiny_swin("v1"))
    batch, patches = images(student.model), draw(16, 7)
    expected = student(batch, patches)
    assert torch.equal(student(batch, patches.flip(1)), expected)
    alone = torch.cat([student(image[None], own[None]) for image, own in zip(batch, patches, strict=True)])
    torch.testing.assert_close(alone, expected, atol=1e-5, rtol=1e-5)


def test_one_patch_is_enough() -> None:
    """A ticket of one patch gives numbers, and gradients to all parameters."""
    student = make_student(tiny_swin("v2")).train()
    found = gradients(student.model, student(images(student.model), draw(16, 1)))
    assert all(value.isfinite().all() for value in found.values())
    assert len(found) == len(list(student.model.parameters()))


def test_only_kept_tokens_are_computed() -> None:
    """Each stage's products see the tokens of kept patches: 16, 4 and 1 of each."""
    student = make_student(tiny_swin("v1"))
    seen: list[int] = []
    for stage in student.model.layers:
        stage.blocks[0].mlp.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    student(images(student.model), draw(16, 5))
    assert seen == [3 * 5 * 16, 3 * 5 * 4, 3 * 5]
    assert student.num_tokens(5) == 5 * 16
    assert student.flops(8) < 0.55 * student.flops()


@pytest.mark.parametrize("kind", ["v1", "v2"])
def test_gradient_checkpointing_and_compiling_change_nothing(kind: str) -> None:
    """Recomputed blocks give the same gradients; a compiled student takes batch after batch of other tickets."""
    swin = tiny_swin(kind)
    student, batch = make_student(swin), images(swin)
    patches = draw(16, 6)
    expected = gradients(swin, student(batch, patches))
    swin.set_grad_checkpointing()
    for name, value in gradients(swin, student(batch, patches)).items():
        torch.testing.assert_close(value, expected[name])
    swin.set_grad_checkpointing(False)
    fast = compiled(student, "eager")
    for shift in range(4):
        torch.testing.assert_close(fast(batch, (patches + shift) % 16), student(batch, (patches + shift) % 16))


@pytest.mark.parametrize("kind", ["v1", "v2"])
def test_half_precision_is_near(kind: str) -> None:
    """Under autocast to bfloat16 logits stay near those of float32, and gradients are finite."""
    swin = tiny_swin(kind)
    student, batch, patches = make_student(swin), images(swin), draw(16, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = student(batch, patches)
    expected = student(batch, patches)
    assert (logits - expected).abs().max() < 0.1 * expected.abs().max()
    assert all(value.isfinite().all() for value in gradients(swin, logits.float()).values())


@pytest.mark.parametrize("shift", [(0, 0), (1, 2)])
@pytest.mark.parametrize("share", [1.0, 0.6, 0.1])
def test_a_plan_holds_every_token_once(shift: tuple[int, int], share: float) -> None:
    """Each kept token has a slot of its own, its window's other slots hold that window's tokens, groups are few."""
    layout = Layout((10, 9), (4, 4), shift)
    kept = torch.rand(7, 90, generator=torch.Generator().manual_seed(1)) < share
    plan = plan_windows(kept, layout)
    num_tokens = int(kept.sum())
    assert plan.rows[plan.slots].tolist() == list(range(num_tokens))
    assert len(plan.groups) <= NUM_GROUPS
    assert sum(group.num_windows * group.num_slots for group in plan.groups) == len(plan.rows)
    image, cell = kept.nonzero().T
    row, col = (cell // 9 - shift[0]) % 10 // 4, (cell % 9 - shift[1]) % 9 // 4
    window_of = torch.cat([image * 100 + row * 10 + col, torch.tensor([-1])])  # padding of the grid is in any window
    start = 0
    for group in plan.groups:
        windows = plan.rows[start : start + group.pairs[:, 0].numel()].view(group.num_windows, -1)
        start += windows.numel()
        for own in window_of[windows].tolist():
            assert len(set(own) - {-1}) == 1
        seen = (group.pairs < 2 * layout.num_offsets).sum(dim=2)
        assert (seen >= (window_of[windows] >= 0).sum(dim=1, keepdim=True).clamp(max=1)).all()
        assert (seen.amax(dim=1) == group.num_slots).any()  # padded to a window that is there


def test_what_cannot_be_sparse_is_refused() -> None:
    """Patches that are no whole tokens, images of no whole patches, heads that take no mean: each says what works."""
    swin = tiny_swin("v1")
    with pytest.raises(InputError, match="multiple of 4"):
        make_student(swin, "sparse", 6)
    with pytest.raises(InputError, match="whole patches"):
        make_student(swin, "sparse", 12)(images(swin), draw(16, 4))
    with pytest.raises(InputError, match="--how zero"):
        make_student(tiny_swin("v1", global_pool="max"), "sparse")


class Stops(Listener):
    """Asks its run to stop after the second step."""

    def stepped(self, record: Any) -> None:
        if record["step"] == 2:
            signal.raise_signal(signal.SIGTERM)


def test_a_run_stopped_and_resumed_ends_on_the_same_bits(make_run: Callable[..., TrainConfig]) -> None:
    """Trained on tickets in two parts as in one, with stochastic depth and mixing; timm loads what was saved."""
    kwargs = {"window_size": 3, "embed_dim": 8, "depths": (1, 2, 1), "num_heads": (1, 2, 2)}
    changes = {"model": V1, "model_kwargs": kwargs, "img_size": 64, "drop_path": 0.2, "mixup": 0.8, "mix_group": 8}
    whole, halves = make_run("whole", **changes), make_run("halves", **changes)
    result = train(whole)
    assert (result.k, result.num_patches) == (8, 16)
    assert result.evaluation["model"].keys() == {"dense", "ticket", "random"}
    assert train(halves, reporter=Stops()).status == "stopped"
    assert train(halves.model_copy(update={"resume": "auto"})).weights_sha256 == result.weights_sha256
    swin = timm.create_model(V1, num_classes=4, img_size=64, **kwargs)
    swin.load_state_dict(load_file(Path(whole.out) / "model.safetensors"), strict=True)
