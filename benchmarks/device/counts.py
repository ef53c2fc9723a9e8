"""Operations and bytes of a call: what a device must do at least, and what it moves where nothing is fused."""

from dataclasses import dataclass
from typing import Any

import torch
from memory import kept_for_backward
from rounds import Step
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

ADAMW = 8
"""Times that a step of AdamW reads or writes a number of 4 bytes per weight: weight, gradient and two moments, each
read once and written once."""


@dataclass(frozen=True)
class Cost:
    """Of one image in a batch.

    `flops`: two per multiply-add of matrix products and convolutions. `traffic`: bytes of every operation's inputs and
    outputs, views left out, as if each came from memory and went back. `least`: bytes that no fusing saves.
    """

    flops: float
    traffic: float
    least: float


class _Traffic(TorchDispatchMode):
    """Sums bytes of inputs and outputs of all operations that are no views, nor a view by another name."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not func.is_view and func is not torch.ops.aten._unsafe_view.default:
            tensors = (leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, Tensor))
            self.bytes += sum(min(tensor.nbytes, tensor.untyped_storage().nbytes()) for tensor in tensors)
        return result


def cost_of_step(step: Step, model: nn.Module, batch: int) -> Cost:
    """Of a training step that is not compiled; it is run twice.

    Least: what autograd keeps is written once and read once, and AdamW reads and writes what it has of each weight.
    """
    flops, traffic = _counted(step)
    weights = sum(parameter.numel() for parameter in model.parameters())
    least = 2 * kept_for_backward(step) * 2**20 + ADAMW * 4 * weights
    return Cost(flops / batch, traffic / batch, least / batch)


def cost_of_forward(forward: Step, model: nn.Module, images: Tensor) -> Cost:
    """Of a forward that is not compiled. Least: images and weights are read once."""
    flops, traffic = _counted(forward)
    least = images.nbytes + sum(parameter.nbytes for parameter in model.parameters())
    return Cost(flops / len(images), traffic / len(images), least / len(images))


def _counted(run: Step) -> tuple[float, float]:
    counter, traffic = FlopCounterMode(display=False), _Traffic()
    with counter, traffic:
        run()
    return float(counter.get_total_flops()), float(traffic.bytes)
