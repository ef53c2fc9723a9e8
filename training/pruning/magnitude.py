"""Magnitude pruning: of the weights that remain, the smallest are masked, counted to the weight.

Counts are of exact fractions: a round masks ``round(rate · remaining)`` weights, half to even, which is the rule of
torch.nn.utils.prune; level i is i such rounds, so what remains is known before anything is trained. Equal weights are
taken by their place: the earlier parameter of the state dict, and in it the lower index. Sorting all weights with their
indices would take 12 bytes a weight; the k-th smallest needs a partition of 4, and its ties are counted off in a second
pass. Rejected: open_lth's strict threshold ``w > threshold``, which masks one weight more than asked, and all of its
equals; and weights as floats, since a processor set to flush denormals takes them for equal: the bits of an absolute
value, read as a whole number, are in its order.
"""

from collections.abc import Iterable, Mapping
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor

from dlth.tickets.errors import InputError, shown
from dlth.tickets.ranking.budget import exact_rate
from dlth.tickets.seeding import generator
from dlth.training.pruning.recipe import MaskRecipe, Masks

ALL = "all layers together"
"""What is counted under scope global, in the place of a layer's name."""
_FIRST_INFINITE = 0x7F80_0000
"""Bits of float32's infinity; those of NaN are above."""


def remaining_counts(sizes: Mapping[str, int], recipe: MaskRecipe) -> dict[str, int]:
    """How many weights remain after all rounds of `recipe.level`: of each layer, or under scope global of `ALL`.

    Args:
        sizes: prunable parameter -> its weights
    Raises:
        InputError: a layer of which nothing would remain, with the level at which that comes
    """
    counted, rate = dict(sizes) if recipe.scope == "layer" else {ALL: sum(sizes.values())}, exact_rate(recipe.rate)
    left: dict[int, int] = {}  # of layers of one size as much remains
    for name, size in counted.items():
        if size not in left:
            left[size] = size
            for level in range(1, recipe.level + 1):
                left[size] = _after_round(left[size], rate)
                if not left[size]:
                    raise _emptied(name, size, level, recipe)
        counted[name] = left[size]
    return counted


def pruned(weights: Mapping[str, Tensor], before: Masks | None, recipe: MaskRecipe) -> Masks:
    """The masks after `recipe.rounds` more rounds, or as many weights of each layer drawn by chance if it is shuffled.

    Args:
        weights: prunable parameter -> its trained values, float32 or of fewer bits, in the state dict's order
        before: what remains of them so far, of the same names and shapes; None for everything
    Raises:
        InputError: a layer of which nothing would remain; weights that are no numbers, or none that are compared here
    """
    masks = {
        name: torch.ones(weight.shape, dtype=torch.bool)
        if before is None
        else before[name].clone(memory_format=torch.contiguous_format)
        for name, weight in weights.items()
    }
    if recipe.level == 0:
        return masks
    groups = [[name] for name in weights] if recipe.scope == "layer" else [list(weights)]
    for names in groups:
        _mask_smallest(weights, masks, names, recipe)
    for name, mask in masks.items():
        if not mask.any():
            raise _emptied(name, mask.numel(), recipe.level, recipe)
    return _shuffled(masks, recipe) if recipe.shuffled else masks


def _mask_smallest(weights: Mapping[str, Tensor], masks: Masks, names: Iterable[str], recipe: MaskRecipe) -> None:
    """Mask the smallest of several parameters' remaining weights, all of them ranked together."""
    left = remaining = sum(int(masks[name].sum()) for name in names)
    for _ in range(recipe.rounds):
        left = _after_round(left, exact_rate(recipe.rate))
    if not (number := remaining - left):
        return
    values = np.concatenate([_magnitudes(name, weights[name])[masks[name].numpy()] for name in names])
    values.partition(number - 1)
    largest = values[number - 1]
    ties = number - int((values[: number - 1] < largest).sum())  # how many of those that equal it are masked
    del values
    for name in names:
        mask, magnitudes = masks[name].numpy(), _magnitudes(name, weights[name])
        equal = np.flatnonzero(mask & (magnitudes == largest))[:ties]
        ties -= len(equal)
        mask &= magnitudes >= largest
        mask.reshape(-1)[equal] = False


def _magnitudes(name: str, weight: Tensor) -> np.ndarray:
    """The bits of absolute values, uint32 of the weight's shape: in the order of the values, -0 the same as 0."""
    if not weight.is_floating_point() or torch.promote_types(weight.dtype, torch.float32) != torch.float32:
        raise InputError(f"{shown(name)} holds {weight.dtype}: weights of float32, or of fewer bits, are pruned")
    bits = weight.detach().to("cpu", torch.float32).contiguous().numpy().view(np.uint32) & np.uint32(0x7FFF_FFFF)
    if bits.max(initial=0) >= _FIRST_INFINITE:
        raise InputError(f"{shown(name)} holds weights that are no numbers: its training has failed, train it again")
    return bits


def _shuffled(masks: Masks, recipe: MaskRecipe) -> Masks:
    """As many weights of each parameter, drawn by chance: by the recipe's seed, level and draw, and by the name."""
    drawn: Masks = {}
    for name, mask in masks.items():
        random = generator(recipe.seed, "mask", recipe.level, recipe.draw, name)
        places = random.permutation(mask.numel())[: int(mask.sum())]
        flat = torch.zeros(mask.numel(), dtype=torch.bool)
        flat[torch.from_numpy(places)] = True
        drawn[name] = flat.reshape(mask.shape)
    return drawn


def _after_round(remaining: int, rate: Fraction) -> int:
    whole, rest = divmod(rate.numerator * remaining, rate.denominator)  # round() of a Fraction takes ten times as long
    return remaining - whole - (2 * rest + whole % 2 > rate.denominator)


def _emptied(name: str, size: int, level: int, recipe: MaskRecipe) -> InputError:
    leave = "" if name == ALL else f", or leave it whole with --exclude {shown(name)}"
    return InputError(
        f"level {level} at rate {shown(recipe.rate)} would mask every weight of {shown(name)}, which has {size:,}: take"
        f" a smaller --rate or fewer --rounds{leave}"
    )
