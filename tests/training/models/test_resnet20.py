"""ResNet for CIFAR: the paper's network, by its formula, and a student like any other."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

from dlth.tickets.errors import InputError
from dlth.training.evaluation.evaluate import evaluate
from dlth.training.models.registry import build, image_size_of
from dlth.training.models.resnet20 import CifarResNet
from dlth.training.runs.loop import train
from dlth.training.settings.eval_config import EvalConfig
from dlth.training.settings.train_config import TrainConfig


def by_the_formula(weights: Mapping[str, Tensor], x: Tensor, blocks: int) -> Tensor:
    """The paper's section 4.2 in evaluation mode, from the weights alone: y = F(x) + x, x strided and padded with zeros
    where F has more channels.
    """

    def normed(x: Tensor, name: str) -> Tensor:
        mean, var, scale, shift = (
            weights[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")
        )
        return functional.batch_norm(x, mean, var, scale, shift, eps=1e-5)

    x = normed(functional.conv2d(x, weights["conv1.weight"], padding=1), "bn1").relu()
    for stage in (1, 2, 3):
        for block in range(blocks):
            name, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            inner = functional.conv2d(x, weights[f"{name}.conv1.weight"], stride=stride, padding=1)
            inner = normed(inner, f"{name}.bn1").relu()
            inner = normed(functional.conv2d(inner, weights[f"{name}.conv2.weight"], padding=1), f"{name}.bn2")
            shortcut = torch.zeros_like(inner)
            shortcut[:, : x.shape[1]] = x[:, :, ::stride, ::stride]
            x = (inner + shortcut).relu()
    return x.mean((2, 3)) @ weights["fc.weight"].T + weights["fc.bias"]


@pytest.mark.parametrize(("depth", "parameters"), [(20, 269_722), (32, 464_154), (56, 853_018), (110, 1_727_962)])
def test_the_papers_parameters(depth: int, parameters: int) -> None:
    """0.27 M, 0.46 M, 0.85 M, 1.7 M with ten classes, as its table 6 has them: shortcuts have none."""
    with torch.device("meta"):
        model = build("resnet20", depth=depth)
    assert sum(weight.numel() for weight in model.parameters()) == parameters


@pytest.mark.parametrize(("depth", "width", "side"), [(20, 16, 32), (14, 4, 33)])
def test_logits_are_those_of_the_formula(depth: int, width: int, side: int) -> None:
    """With statistics that are not the first ones, and for a side that two strides do not divide."""
    torch.manual_seed(0)
    model = build("resnet20", depth=depth, width=width)
    for _ in range(2):
        model(torch.randn(8, 3, side, side) * 3 + 1)
    images = torch.randn(4, 3, side, side)
    expected = by_the_formula(model.state_dict(), images, depth // 6)
    torch.testing.assert_close(model.eval()(images), expected)
    assert expected.std() > 0.01


def test_it_begins_as_he_et_al_have_it() -> None:
    """Each convolution's weights have a variance of 2 over its inputs; the last norms are not zero, as timm's are."""
    torch.manual_seed(0)
    model = CifarResNet(width=64)
    for name in ("conv1", "layer2.0.conv1", "layer3.2.conv2"):
        weight = model.get_parameter(f"{name}.weight")
        assert weight.var().item() == pytest.approx(2 / weight[0].numel(), rel=0.05), name
    assert all(norm.weight.eq(1).all() for norm in model.modules() if isinstance(norm, torch.nn.BatchNorm2d))


def test_timm_takes_it_as_one_of_its_own() -> None:
    """Size and means of CIFAR's images, a new head, features by stage, and layers for the layer decay."""
    model = build("resnet20")
    assert image_size_of(model) == (32, 32)
    assert (model.pretrained_cfg["mean"][0], model.pretrained_cfg["std"][0]) == (0.4914, 0.2470)
    model.reset_classifier(3)
    assert model.get_classifier().out_features == model(torch.zeros(2, 3, 32, 32)).shape[1] == 3
    model.reset_classifier(0)
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, model.num_features)
    features = timm.create_model("resnet20", features_only=True)
    assert [tuple(x.shape[1:]) for x in features(torch.zeros(1, 3, 32, 32))] == [(16, 32, 32), (32, 16, 16), (64, 8, 8)]
    grouped = timm.optim.create_optimizer_v2(build("resnet20"), opt="sgd", lr=1.0, layer_decay=0.5)
    assert len({group["lr_scale"] for group in grouped.param_groups}) == 11, "stem, nine blocks, head"


@pytest.mark.parametrize("depth", [2, 18, 21, True])
def test_a_depth_that_the_paper_has_not_is_refused(depth: int) -> None:
    """What a depth may be is said."""
    with pytest.raises(InputError, match=rf"6n \+ 2 layers .8, 14, 20, 32, ….: depth is {depth}"):
        build("resnet20", depth=depth)


def test_it_is_trained_and_evaluated_as_any_student(make_run: Callable[..., TrainConfig]) -> None:
    """On tickets, which are zero in the image, by its recipe, with drop path and an average: the weights fit timm's
    model, and `dlth evaluate` finds the run's own accuracies, on the whole image too.
    """
    kwargs = {"depth": 8, "width": 4}
    recipe = {"opt": "momentum", "sched": "multistep", "decay_milestones": (1,), "warmup_epochs": 0}
    config = make_run(recipe="resnet20", model_kwargs=kwargs, model="resnet20", model_ema=True, drop_path=0.1, **recipe)
    result = train(config)
    assert result.how == "zero"
    weights = load_file(Path(config.out) / "model_ema.safetensors")
    timm.create_model("resnet20", num_classes=4, **kwargs).load_state_dict(weights, strict=True)
    assert weights["layer3.0.bn2.running_mean"].abs().max() > 0
    val = {"val": config.val, "val_tickets": config.val_tickets, "workers": 0, "device": "cpu"}
    table = evaluate(EvalConfig(checkpoint=config.out, **val)).table()
    measured = {name: row["top1"] for name, row in result.evaluation["model"].items()}
    assert {name: row["top1"] for name, row in table.items()} == measured
    assert {"dense", "ticket"} <= measured.keys()
