"""Holding a model to a mask while it trains: gradients, weights, averages, and what its optimizer remembers.

A masked weight is +0 after every step, whatever the optimizer did to it: momentum and decay, a second moment, an
orthogonalised update. A mask is a word of ones or zeros for each weight, and what is masked is their bitwise and: NaN
and infinity times zero are no zero, -1 times zero has other bits, and `masked_fill_` takes 27 times as long (4.6 ns a
weight on a CPU). Its gradient is gone before the norm is taken, so clipping, loss scale and trust ratios see the pruned
network alone; so is all that the optimizer keeps in the weight's own shape, so a checkpoint tells nothing of it.

The masks are tensors of this object, on the model's device, and nothing of the model: its names, its copies and what it
saves are those of the unpruned one. Rejected: torch.nn.utils.prune, which makes the weight a product of two others in
each forward. Until the next one the weight is what it was before the step, the optimizer and the average work on the
unmasked one, names in the state dict are others, and a pruned module cannot be copied (deepcopy), so it can have no
average. Nothing here waits for a GPU but `revived` and `remaining`, which are asked when something is saved.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dlth.training.pruning.recipe import Masks


@dataclass(frozen=True, eq=False)
class _Held:
    """A weight under its mask: `average` is that of the weight, None without one; `kept` has all bits set where it is
    kept, none where it is masked, int32 of the weight's shape.
    """

    name: str
    weight: nn.Parameter
    average: nn.Parameter | None
    kept: Tensor

    def clear(self, tensor: Tensor) -> None:
        """Set to zero what is masked of a tensor of the weight's shape."""
        if tensor.dtype == torch.float32:
            tensor.detach().view(torch.int32).bitwise_and_(self.kept)
        else:  # moments that an optimizer keeps in fewer bits
            tensor.masked_fill_(self.kept == 0, 0.0)

    def is_revived(self, tensor: Tensor) -> Tensor:
        """bool [], whether anything is not zero that is masked of such a tensor."""
        return tensor.ne(0).logical_and_(self.kept == 0).any()


class WeightMasks:
    """The masks of a model that trains, and of the moving average of its weights where it has one.

    Masks are of parameters that the model has, in their shapes (`check_mask_fits`).
    """

    def __init__(self, model: nn.Module, masks: Masks, average: nn.Module | None = None) -> None:
        weights = dict(model.named_parameters())
        averages = dict(average.named_parameters()) if average is not None else {}
        self._held = tuple(
            _Held(name, weights[name], averages.get(name), _kept(mask, weights[name])) for name, mask in masks.items()
        )

    def remaining(self) -> int:
        """How many weights are not masked, counted. Waits for the device once."""
        return int(torch.stack([held.kept.count_nonzero() for held in self._held]).sum())

    @torch.no_grad()
    def mask_gradients(self) -> None:
        """Set the gradient of every masked weight to zero: once a step, when all of it has been summed."""
        for held in self._held:
            if held.weight.grad is not None:
                held.clear(held.weight.grad)

    @torch.no_grad()
    def mask_weights(self) -> None:
        """Set every masked weight to zero."""
        for held in self._held:
            held.clear(held.weight)

    @torch.no_grad()
    def mask_averages(self) -> None:
        """Set the average of every masked weight to zero."""
        for held in self._held:
            if held.average is not None:
                held.clear(held.average)

    @torch.no_grad()
    def mask_state(self, optimizer: torch.optim.Optimizer) -> None:
        """Set to zero what an optimizer keeps of every masked weight, in tensors of the weight's shape."""
        for held in self._held:
            for tensor in _of_its_shape(optimizer, held.weight):
                held.clear(tensor)

    @torch.no_grad()
    def revived(self, optimizer: torch.optim.Optimizer) -> list[str]:
        """Names of parameters that are not zero where they are masked, in weights, averages or the optimizer's state;
        none in a model that was held to its masks. Waits for the device once.
        """
        found = [
            torch.stack([held.is_revived(tensor) for tensor in self._tensors(held, optimizer)]).any()
            for held in self._held
        ]
        wrong = torch.stack(found).tolist()
        return [held.name for held, is_wrong in zip(self._held, wrong, strict=True) if is_wrong]

    def _tensors(self, held: _Held, optimizer: torch.optim.Optimizer) -> Iterator[Tensor]:
        yield held.weight
        if held.average is not None:
            yield held.average
        yield from _of_its_shape(optimizer, held.weight)


def _of_its_shape(optimizer: torch.optim.Optimizer, weight: nn.Parameter) -> Iterator[Tensor]:
    """What an optimizer keeps number by number of a weight; what it keeps of rows or of the whole has other shapes."""
    for value in optimizer.state.get(weight, {}).values():
        if isinstance(value, Tensor) and value.shape == weight.shape:
            yield value


def _kept(mask: Tensor, weight: nn.Parameter) -> Tensor:
    """A mask as words of bits, on the weight's device and in its order in memory."""
    return torch.empty_like(weight, dtype=torch.int32, requires_grad=False).copy_(mask).neg_()
