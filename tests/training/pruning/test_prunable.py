"""Which weights of which models are pruned."""

import math

import pytest
import torch
from makers.masks import TenWeights

from dlth.tickets.errors import InputError
from dlth.training.models.registry import outline
from dlth.training.pruning.prunable import prunable_shapes

BLOCK = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
OF_BLOCKS = {
    "deit_small": (12, BLOCK),
    "deit_small_distilled": (12, BLOCK),
    "lvvit_small": (16, BLOCK),
    "eva02_tiny_patch14_224": (12, (*(f"attn.{x}_proj" for x in "qkv"), "attn.proj", *(f"mlp.fc1_{x}" for x in "gx"))),
}


def count(name: str) -> int:
    return sum(map(math.prod, prunable_shapes(outline(name)).values()))


def test_ten_weights_are_the_layers_of_a_model_without_heads() -> None:
    """Weights of linear layers alone, in the state dict's order: no bias, no norm."""
    assert prunable_shapes(TenWeights()) == {"first.weight": (2, 2), "second.weight": (3, 2)}


@pytest.mark.parametrize("name", ["deit_small", "deit_small_distilled", "lvvit_small"])
def test_transformers_are_pruned_in_their_blocks(name: str) -> None:
    """Exactly the four layers of each block: no embedding, no head, no second head, no token."""
    depth, layers = OF_BLOCKS[name]
    found = prunable_shapes(outline(name))
    assert list(found) == [f"blocks.{block}.{layer}.weight" for block in range(depth) for layer in layers]
    width = 384
    hidden = 3 * width if name == "lvvit_small" else 4 * width
    assert sum(map(math.prod, found.values())) == depth * (4 * width**2 + 2 * width * hidden)


def test_a_cnn_is_pruned_but_for_its_classifier() -> None:
    """Each convolution of timm's ResNet-18, the first one and the shortcuts among them, and nothing else."""
    model = outline("resnet18")
    found = prunable_shapes(model)
    convolutions = {f"{name}.weight" for name, each in model.named_modules() if isinstance(each, torch.nn.Conv2d)}
    assert set(found) == convolutions
    assert len(found) == 20
    assert count("resnet18") == 11_166_912  # 11,689,512 in all, 513,000 of the classifier, 9,600 of batch norms


def test_swin_keeps_its_bias_tables() -> None:
    """Layers of its blocks, and those that merge patches; no bias table, no embedding, no head."""
    found = prunable_shapes(outline("swin_tiny_patch4_window7_224"))
    merging = [name for name in found if "downsample" in name]
    assert merging == [f"layers.{stage}.downsample.reduction.weight" for stage in (1, 2, 3)]
    assert len(found) == 12 * len(BLOCK) + len(merging)
    assert not any("bias" in name or "head" in name or "patch_embed" in name for name in found)


def test_eva_is_pruned_in_its_blocks() -> None:
    """Its split projections and gated layers, without its head and its rotary positions."""
    found = prunable_shapes(outline("eva02_tiny_patch14_224", num_classes=5))
    assert all(name.startswith("blocks.") for name in found)
    assert len(found) == 12 * 4
    assert count("eva02_tiny_patch14_224") == 5_308_416


def test_patterns_leave_more_whole() -> None:
    """A pattern is of whole names: exactly what it matches stays out, whatever else is called alike."""
    model = outline("deit_small")
    every, some = prunable_shapes(model), prunable_shapes(model, ("blocks.1.*", "*.mlp.fc[1]*"))
    out = {name for name in every if name.startswith("blocks.1.") or ".mlp.fc1." in name}
    assert set(every) - set(some) == out
    assert len(out) == 12 + 3


def test_patterns_that_match_nothing_or_everything_are_refused() -> None:
    """A slip of the key is named with names as they are; so is a model of which nothing is left."""
    with pytest.raises(InputError, match=r"--exclude blocks\.1\.attn matches no parameter .* first\.weight"):
        prunable_shapes(TenWeights(), ("*second*", "blocks.1.attn"))
    with pytest.raises(InputError, match=r"nothing to prune but what --exclude \*second\*, first\* leaves whole"):
        prunable_shapes(TenWeights(), ("*second*", "first*"))
