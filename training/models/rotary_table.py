"""The rotary table of a model's own grid, kept where timm would make it anew for every batch.

timm makes the table of DINOv3's models, which take images of any size, from coordinates on the host; a GPU waits for
their copy, once a forward. The table depends on the grid alone, so that of the grid for which a model was built is made
with it: as a buffer, which moves with the model and is not saved. timm's own forward, on all patches, still makes it.
"""

from typing import Any

from timm.layers import RotaryEmbeddingDinoV3
from torch import Tensor, nn

NAME = "rotary_table"


def keep_table(model: nn.Module) -> nn.Module:
    """The model, with its table where it is one of these."""
    rope = getattr(model, "rope", None)
    if isinstance(rope, RotaryEmbeddingDinoV3):
        training = rope.training
        table = rope.eval().get_embed(shape=_own_grid(model))  # of the coordinates as they are: training may move them
        rope.train(training)
        model.register_buffer(NAME, table, persistent=False)
    return model


def kept_table(model: nn.Module, grid: tuple[int, int]) -> Tensor | None:
    """The table [P, R] that was kept for images of `grid` patches; None if there is none, or training draws its own."""
    table: Tensor | None = getattr(model, NAME, None)
    rope: Any = getattr(model, "rope", None)
    if table is None or (rope.training and rope.aug_active):
        return None
    return table if list(grid) == _own_grid(model) else None


def _own_grid(model: Any) -> list[int]:
    return list(model.patch_embed.grid_size)
