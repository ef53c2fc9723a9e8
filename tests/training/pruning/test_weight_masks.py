"""Holding weights to a mask while any of timm's optimizers moves them."""

import math
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from makers.masks import masks_of
from makers.runs import train_config
from timm.optim import list_optimizers
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from dlth.tickets.errors import InputError
from dlth.training.pruning.recipe import MaskRecipe
from dlth.training.pruning.weight_masks import WeightMasks
from dlth.training.runs.optim import make_optimizer

NEED_A_GPU = {name: "CUDA required" for name in list_optimizers() if str(name).startswith(("bnb", "fused"))}
CANNOT = NEED_A_GPU | {"adahessian": "does not require grad"}
"""Optimizers that a run on a CPU cannot take, and what it says; AdaHessian asks for the gradient of a gradient."""
STEPS = 7


def tiny() -> nn.Sequential:
    """A convolution, a norm and two linear layers, of which one is square."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(64, 6), nn.GELU(), nn.Linear(6, 6)
    )


def optimizer_of(model: nn.Module, name: str) -> torch.optim.Optimizer:
    """timm's optimizer as a run makes it, with momentum and decay."""
    return make_optimizer(model, train_config("shards", Path("run"), arm="dense", opt=name, weight_decay=0.1), 8)


def masked(tensor: Tensor, mask: Tensor) -> Tensor:
    """The numbers of a tensor where it is masked, as their bits: +0 alone is 0."""
    return tensor[~mask].view(torch.int32)


@pytest.fixture(autouse=True)
def _nothing_is_compiled() -> Iterator[None]:
    """Kron compiles each of its operations, which takes longer than all else here."""
    with torch.compiler.set_stance("force_eager"):
        yield


@pytest.mark.parametrize("name", [str(name) for name in list_optimizers()])
def test_no_optimizer_revives_a_weight(name: str) -> None:
    """After every step masked weights, their average and what the optimizer keeps of them are +0, and kept ones move;
    one that no run can have says so by name.
    """
    model = tiny()
    if name in CANNOT:
        with pytest.raises(InputError, match=CANNOT[name]):
            optimizer_of(model, name)
        return
    masks = masks_of(model, MaskRecipe(1, "0.5"))
    optimizer, ema = optimizer_of(model, name), ModelEmaV3(model, decay=0.5)
    held, before = WeightMasks(model, masks, ema.module), deepcopy(model.state_dict())
    held.mask_weights()
    held.mask_averages()
    for _ in range(STEPS):
        optimizer.zero_grad()
        model(torch.randn(4, 3, 4, 4)).square().sum().backward()
        held.mask_gradients()
        optimizer.step()
        held.mask_weights()
        held.mask_state(optimizer)
        ema.update(model)
        held.mask_averages()
        weights, averages = dict(model.named_parameters()), dict(ema.module.named_parameters())
        for parameter, mask in masks.items():
            kept = [value for value in optimizer.state[weights[parameter]].values() if isinstance(value, Tensor)]
            of_its_shape = [value for value in kept if value.shape == mask.shape]
            for tensor in (weights[parameter].detach(), averages[parameter].detach(), *of_its_shape):
                assert not masked(tensor.float(), mask).any()
        assert held.revived(optimizer) == []
    for parameter, mask in masks.items():
        after = model.state_dict()[parameter]
        assert after.isfinite().all()
        assert (after != before[parameter])[mask].any()
    assert held.remaining() == sum(int(mask.sum()) for mask in masks.values())


def test_a_gradient_is_that_of_the_pruned_network_alone() -> None:
    """Masked entries of a gradient are +0, infinite and missing numbers too; the others, and other layers', stay."""
    model = tiny()
    masks = masks_of(model, MaskRecipe(1, "0.5"))
    held = WeightMasks(model, masks)
    model(torch.randn(4, 3, 4, 4)).square().sum().backward()
    weights = dict(model.named_parameters())
    whole = {name: weight.grad.clone() for name, weight in weights.items() if weight.grad is not None}
    name, mask = next(iter(masks.items()))
    gradient = weights[name].grad
    assert gradient is not None
    gradient[~mask] = math.nan
    gradient.view(-1)[int((~mask).view(-1).nonzero()[0])] = -math.inf
    held.mask_gradients()
    for parameter, weight in weights.items():
        assert weight.grad is not None
        expected = whole[parameter] * masks[parameter] if parameter in masks else whole[parameter]
        assert torch.equal(weight.grad, expected)
        if parameter in masks:
            assert not masked(weight.grad, masks[parameter]).any()


@pytest.mark.parametrize("part", ["weights", "average", "optimizer", "optimizer's 16 bits"])
def test_a_masked_weight_that_is_not_zero_is_told_and_mended_wherever_it_is(part: str) -> None:
    """One number in a weight, its average or the optimizer's state is found, by the parameter's name, and masked."""
    model = tiny()
    masks, ema = masks_of(model, MaskRecipe(1, "0.5")), ModelEmaV3(model)
    name, moment = ("adafactorbv", "exp_avg") if "16" in part else ("adamw", "exp_avg_sq")
    held, optimizer = WeightMasks(model, masks, ema.module), optimizer_of(model, name)
    for weight in model.parameters():
        weight.grad = torch.ones_like(weight)
    held.mask_gradients()
    optimizer.step()
    held.mask_weights()
    held.mask_averages()
    held.mask_state(optimizer)
    assert held.revived(optimizer) == []
    weight = model.get_parameter("5.weight")
    tensor = {"weights": weight, "average": ema.module.get_parameter("5.weight")}.get(part)
    tensor = optimizer.state[weight][moment] if tensor is None else tensor
    assert (tensor.dtype == torch.bfloat16) == ("16" in part)
    with torch.no_grad():
        tensor.view(-1)[int((~masks["5.weight"]).view(-1).nonzero()[-1])] = 1e-38
    assert held.revived(optimizer) == ["5.weight"]
    held.mask_weights()
    held.mask_averages()
    held.mask_state(optimizer)
    assert held.revived(optimizer) == []


def test_masks_are_nothing_of_the_model() -> None:
    """Names, buffers and copies of a model under masks are the unpruned one's; masks lie in memory as weights do."""
    model = tiny().to(memory_format=torch.channels_last)
    names = list(model.state_dict())
    held = WeightMasks(model, masks_of(model, MaskRecipe(1, "0.5")))
    assert list(model.state_dict()) == names
    assert list(deepcopy(model).state_dict()) == names
    assert [each.kept.stride() for each in held._held] == [each.weight.stride() for each in held._held]
