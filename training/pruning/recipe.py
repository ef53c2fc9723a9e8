"""How a mask is made, in numbers: enough to make it again from the weights that it was made from."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias

from pydantic import Field

from dlth.tickets.errors import shown
from dlth.training.settings.fields import Keep

if TYPE_CHECKING:  # the command line reads settings that name a recipe's, and answers without torch
    from torch import Tensor

Scope = Literal["global", "layer"]
Masks: TypeAlias = dict[str, "Tensor"]
"""Parameter's name -> bool of the parameter's shape, True where its weight remains; prunable parameters alone."""

MASK, REWIND = "mask.safetensors", "rewind.safetensors"
"""In a run's folder: the mask that it was trained under, and its weights at the step that others are set back to."""


@dataclass(frozen=True)
class MaskRecipe:
    """What is masked, beginning with the weights and the mask of a finished run.

    level: rounds of pruning behind the mask, from 1; 0 masks nothing
    rate: share of the remaining prunable weights that a round masks, as text ("0.2" is exactly a fifth)
    rounds: how many rounds at once; 1, or `level` for one-shot pruning from the unpruned run; never more (ValueError)
    scope: smallest of all prunable weights, or of each layer's
    exclude: patterns (as a shell's) of names of parameters that are left whole, besides heads, norms, biases and
        embeddings
    shuffled: weights are then drawn by chance, in each layer as many as magnitude would leave
    draw, seed: which of several drawings, and of which seed; they decide only what is drawn
    """

    level: Annotated[int, Field(ge=0, le=1_000)]
    rate: Keep
    rounds: Annotated[int, Field(ge=1, le=1_000)] = 1
    scope: Scope = "global"
    exclude: Annotated[tuple[Annotated[str, Field(max_length=200)], ...], Field(max_length=64)] = ()
    shuffled: bool = False
    draw: Annotated[int, Field(ge=0, le=10_000)] = 0
    seed: Annotated[int, Field(ge=0)] = 0

    def __post_init__(self) -> None:
        if 0 < self.level < self.rounds:
            raise ValueError(f"{self.rounds} rounds at once cannot lie behind level {self.level}")

    def __str__(self) -> str:
        """The recipe in words: ``level 3: 0.2 of what remains, 3 rounds at once, smallest of all layers``."""
        if self.level == 0:
            return "level 0: nothing is masked"
        rounds = f", {self.rounds} rounds at once" if self.rounds > 1 else ""
        scope = "smallest of all layers together" if self.scope == "global" else "smallest of each layer"
        whole = f", {shown(', '.join(self.exclude))} left whole" if self.exclude else ""
        drawn = f"; as many of each layer by chance (seed {self.seed}, draw {self.draw})" if self.shuffled else ""
        return f"level {self.level}: {shown(self.rate)} of what remains{rounds}, {scope}{whole}{drawn}"
