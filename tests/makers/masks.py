"""Masks, and the weights that they are of: ten to work them out by hand, and those of a tiny model, in memory or in the
folders that its runs leave.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dlth.training.models.registry import build
from dlth.training.models.weights_metadata import WeightsNote
from dlth.training.pruning.magnitude import pruned
from dlth.training.pruning.mask_file import MaskFile, write_mask
from dlth.training.pruning.mask_header import MaskHeader, layers_of
from dlth.training.pruning.prunable import prunable_shapes
from dlth.training.pruning.recipe import REWIND, MaskRecipe, Masks
from dlth.training.runs.checkpoint import write_tensors

MODEL, KWARGS = "vit_tiny_patch16_224", {"patch_size": 8, "embed_dim": 8, "depth": 1, "num_heads": 2}
PRUNABLE = 12 * 8 * 8
"""Of that model: queries, keys and values (3), their projection (1), and the two layers behind it (8)."""


class TenWeights(nn.Module):
    """Two layers of four and of six weights, and what is never pruned."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.second = nn.Linear(2, 2), nn.LayerNorm(2), nn.Linear(2, 3, bias=False)


def ten_weights(*values: float) -> dict[str, Tensor]:
    """Ten values as the two layers' weights, four and six."""
    flat = torch.tensor(values, dtype=torch.float32)
    return {"first.weight": flat[:4].reshape(2, 2), "second.weight": flat[4:].reshape(3, 2)}


def bits(masks: Masks) -> str:
    """Masks as text, a layer after the other: 1 remains, 0 is masked."""
    return " ".join("".join(str(int(bit)) for bit in mask.flatten()) for mask in masks.values())


def header_of(masks: Masks, recipe: MaskRecipe, model: str = "ten", **facts: Any) -> MaskHeader:
    """What a mask says of itself."""
    return MaskHeader(model=model, recipe=recipe, layers=layers_of(masks), **facts)


def masks_of(model: nn.Module, recipe: MaskRecipe) -> Masks:
    """What a recipe leaves of a model's weights as they are."""
    weights = model.state_dict()
    return pruned({name: weights[name].cpu() for name in prunable_shapes(model)}, None, recipe)


def mask_file(model: nn.Module, name: str, path: Path, rate: str = "0.5", level: int = 1) -> MaskFile:
    """The mask of a model that is called `name`, by magnitude, written."""
    recipe = MaskRecipe(level, rate)
    masks = masks_of(model, recipe)
    return write_mask(path, header_of(masks, recipe, name), masks)


def leave_run(
    folder: Path,
    seed: int,
    masks: Masks | None = None,
    names: tuple[str, ...] = ("model",),
    num_classes: int = 3,
    **images: Any,
) -> Path:
    """A run's folder with weights of a seed, those zero that `masks` masks; `names`: "model", "rewind" and the like;
    `images`: what they say of how theirs were made.
    """
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    model = build(MODEL, num_classes=num_classes, img_size=32, **KWARGS)
    with torch.no_grad():
        for name, mask in (masks or {}).items():
            model.get_parameter(name).mul_(mask)
    note = WeightsNote(model=MODEL, model_kwargs=KWARGS, num_classes=num_classes, img_size=32, step=7, **images)
    for name in names:
        write_tensors(folder / f"{name}.safetensors", model.state_dict(), note.to_json())
    return folder


def leave_first(folder: Path) -> Path:
    """The folder of an unpruned run: its weights at step 7, and the last ones."""
    leave_run(folder, 0, names=(REWIND.removesuffix(".safetensors"),))
    return leave_run(folder, 1)
