"""What a mask says of itself: whose it is, how it was made and of what; shapes and counts that cannot disagree.

A stranger may have written it, so nothing is built or allocated before names, shapes and counts have been held against
each other and against the recipe: how many weights remain follows from the shapes, the rate and the level.
"""

import math
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from dlth.training.models.weights_metadata import ModelNote
from dlth.training.pruning.magnitude import ALL, remaining_counts
from dlth.training.pruning.recipe import MaskRecipe, Masks

MAX_WEIGHTS, MAX_LAYERS = 1 << 31, 4_096
"""Of one mask: 2 GB while it is used. timm's largest models that a recipe trains have half of it."""

Digest = Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")]
"""sha256 in hex; empty where there is nothing that it could be of."""


class Layer(BaseModel):
    """A prunable parameter: its name in the state dict, its shape, and how many of its weights remain."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: Annotated[str, Field(min_length=1, max_length=500)]
    shape: Annotated[tuple[Annotated[int, Field(ge=1, le=MAX_WEIGHTS)], ...], Field(min_length=1, max_length=8)]
    kept: Annotated[int, Field(ge=1)]

    @property
    def size(self) -> int:
        """How many weights it has."""
        return math.prod(self.shape)


class MaskHeader(ModelNote):
    """A mask's facts, and the model that it is of.

    layers: in the order of the state dict
    rewind_step, initial: the step whose weights a run under this mask begins with, and the digest of those; None and
        empty for fresh random weights
    final: digest of the weights that the mask was made from, those of a finished run's model.safetensors
    parent: identity of the mask under which these were trained; empty for an unpruned model

    Digests of weights are `tensors_digest`. Raises ValueError where names, shapes, counts and recipe do not agree.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=())

    format: Literal["dlth-mask"] = "dlth-mask"
    version: Literal[1] = 1
    recipe: MaskRecipe
    layers: Annotated[tuple[Layer, ...], Field(min_length=1, max_length=MAX_LAYERS)]
    rewind_step: Annotated[int, Field(ge=0, le=10**18)] | None = None
    initial: Digest = ""
    final: Digest = ""
    parent: Digest = ""

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Prunable parameter -> its shape."""
        return {layer.name: layer.shape for layer in self.layers}

    @property
    def prunable(self) -> int:
        """How many weights may be masked."""
        return sum(layer.size for layer in self.layers)

    @property
    def remaining(self) -> int:
        """How many of them are not."""
        return sum(layer.kept for layer in self.layers)

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        if len(self.shapes) < len(self.layers) or "__metadata__" in self.shapes:
            raise ValueError("a parameter's name appears twice, or is the one that safetensors keeps for itself")
        if any(layer.kept > layer.size for layer in self.layers):
            raise ValueError("more weights remain of a parameter than it has")
        if self.prunable > MAX_WEIGHTS:
            raise ValueError(f"a mask is of at most {MAX_WEIGHTS} weights, not of {self.prunable}")
        if bool(self.initial) != (self.rewind_step is not None):
            raise ValueError("the step that weights are set back to goes with the digest of those weights")
        kept = (
            {layer.name: layer.kept for layer in self.layers} if self.recipe.scope == "layer" else {ALL: self.remaining}
        )
        told = remaining_counts({layer.name: layer.size for layer in self.layers}, self.recipe)
        if wrong := [name for name, count in told.items() if kept[name] != count]:
            raise ValueError(
                f"{kept[wrong[0]]} weights remain of {wrong[0]}; its recipe leaves {told[wrong[0]]} ({self.recipe})"
            )
        return self


def layers_of(masks: Masks) -> tuple[Layer, ...]:
    """What a header says of masks."""
    return tuple(Layer(name=name, shape=tuple(mask.shape), kept=int(mask.sum())) for name, mask in masks.items())
