"""Masks of tiny models, by magnitude, without the runs that they would come from."""

from pathlib import Path

from torch import nn

from dlth.training.pruning.magnitude import pruned
from dlth.training.pruning.mask_file import MaskFile, write_mask
from dlth.training.pruning.mask_header import MaskHeader, layers_of
from dlth.training.pruning.prunable import prunable_shapes
from dlth.training.pruning.recipe import MaskRecipe, Masks


def masks_of(model: nn.Module, recipe: MaskRecipe) -> Masks:
    """What a recipe leaves of a model's weights as they are."""
    weights = model.state_dict()
    return pruned({name: weights[name].cpu() for name in prunable_shapes(model)}, None, recipe)


def mask_file(model: nn.Module, name: str, path: Path, rate: str = "0.5", level: int = 1) -> MaskFile:
    """The mask of a model that is called `name`, written."""
    recipe = MaskRecipe(level, rate)
    masks = masks_of(model, recipe)
    return write_mask(path, MaskHeader(model=name, recipe=recipe, layers=layers_of(masks)), masks)
