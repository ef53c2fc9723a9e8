"""A training step under our masks of weights, against torch.nn.utils.prune on the same model, and the unmasked step.

    python benchmarks/bench_pruning.py --rounds 9 --json pruning.json

Forward, backward and AdamW, random data, float32, half of the prunable weights masked by magnitude. torch's way
multiplies weight and mask in each forward, and lets the optimizer go on with what is masked; ours sets gradient, weight
and both moments to zero where they are masked. Both cost by the weight, a step by the weight and the image.
"""

import argparse
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rounds import Step, report, spread, time_rounds
from torch import Tensor, nn
from torch.nn.utils import prune

from dlth.training.models.registry import build
from dlth.training.pruning.magnitude import pruned
from dlth.training.pruning.prunable import prunable_shapes
from dlth.training.pruning.recipe import MaskRecipe, Masks
from dlth.training.pruning.weight_masks import WeightMasks

MODELS = {"resnet20": (32, 128), "deit_tiny": (224, 8), "deit_small": (224, 8)}
"""Model -> side of its images, images of a step."""


def training_step(model: nn.Module, images: Tensor, labels: Tensor, masks: Masks | None = None) -> Step:
    """One step of AdamW with its own state, under masks if there are any."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    held = WeightMasks(model, masks) if masks is not None else None
    if held is not None:
        held.mask_weights()

    def step() -> None:
        F.cross_entropy(model(images), labels).backward()
        if held is not None:
            held.mask_gradients()
        optimizer.step()
        if held is not None:
            held.mask_weights()
            held.mask_state(optimizer)
        optimizer.zero_grad()

    return step


def reparametrized(model: nn.Module, masks: Masks) -> nn.Module:
    """The model under torch.nn.utils.prune."""
    for name, mask in masks.items():
        prune.custom_from_mask(model.get_submodule(name.rpartition(".")[0]), "weight", mask)
    return model


def measure(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """A model's row."""
    size, batch = MODELS[name]
    device = options.device
    images, labels = torch.randn(batch, 3, size, size, device=device), torch.arange(batch, device=device) % 10
    model = build(name, num_classes=10).to(device).train()
    weights = model.state_dict()
    masks = pruned({each: weights[each].cpu() for each in prunable_shapes(model)}, None, MaskRecipe(1, "0.5"))
    theirs = reparametrized(deepcopy(model), {each: mask.to(device) for each, mask in masks.items()})
    steps = {
        "unmasked": training_step(deepcopy(model), images, labels),
        "ours": training_step(deepcopy(model), images, labels, masks),
        "torch": training_step(theirs, images, labels),
    }
    times = time_rounds(steps, options.rounds, device)
    return {
        "model": name,
        "images of a step": batch,
        "weights": sum(weight.numel() for weight in model.parameters()),
        "ours / unmasked": spread(times, "ours", "unmasked"),
        "torch / unmasked": spread(times, "torch", "unmasked"),
        "ours / torch": spread(times, "ours", "torch"),
        "seconds": sorted(times["ours"])[options.rounds // 2],
    }


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = [measure(name, options) for name in options.models]
    report("Step under a mask of half the weights", rows, options.device, options.json, rounds=options.rounds)


if __name__ == "__main__":
    main()
