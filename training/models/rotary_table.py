"""The rotary table of a model's own grid, kept where timm would make it anew for every batch.

timm makes the table of DINOv3's models, which take images of any size, from coordinates on the host; a GPU waits for
their copy, once a forward. The table depends on the grid alone, so that of the grid for which a model was built is made
with it: as a buffer, which moves with the model and is not saved. The buffer is of whole numbers that have the table's
bits, as a model in bfloat16 would round a table of floats. timm's own forward, on all patches, still makes it.
"""

from typing import Any

import torch
from timm.layers import RotaryEmbeddingDinoV3
from torch import Tensor, nn

NAME, GRID = "rotary_table", "rotary_table_grid"
"""Of a model: the bits of its table, int32 [P, R], and the rows and columns of patches that it is of."""


def keep_table(model: nn.Module) -> nn.Module:
    """The model, with its table where it is one of these."""
    rope = getattr(model, "rope", None)
    if isinstance(rope, RotaryEmbeddingDinoV3):
        training = rope.training
        grid = list(model.patch_embed.grid_size)  # type: ignore[union-attr,arg-type]
        table = rope.eval().get_embed(shape=grid, dtype=torch.float32)  # training may move coordinates
        rope.train(training)
        model.register_buffer(NAME, table.view(torch.int32), persistent=False)
        setattr(model, GRID, grid)
    return model


def kept_table(model: nn.Module, grid: tuple[int, int]) -> Tensor | None:
    """The table, float32 [P, R], that was kept for images of `grid` patches; None if there is none, or training draws
    its own.
    """
    bits: Tensor | None = getattr(model, NAME, None)
    rope: Any = getattr(model, "rope", None)
    if bits is None or (rope.training and rope.aug_active):
        return None
    return bits.view(torch.float32) if list(grid) == getattr(model, GRID) else None
