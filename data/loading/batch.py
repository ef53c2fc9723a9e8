"""What the loaders hand out: batches of pixels with the patches that a student sees of them.

Axes: B images of the batch, P patches of the grid, k patches kept. Pixels travel as uint8 (a quarter of the bytes); the
trainer normalises, and mixes with the plans that are given, on its device.
"""

from dataclasses import dataclass, field, fields, replace
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from dlth.data.images.mixing import BatchMix
from dlth.data.images.token_labels import TokenLabels


class _Tensors:
    """Batches move to a device, or into pinned memory, and come apart, as a whole."""

    def _mapped(self, change: Any) -> Self:
        def apply(value: Any) -> Any:
            if isinstance(value, dict):
                return {name: apply(item) for name, item in value.items()}
            if isinstance(value, TokenLabels):
                return TokenLabels(*map(apply, value))
            return change(value) if isinstance(value, torch.Tensor) else value

        changed = {item.name: apply(getattr(self, item.name)) for item in fields(self)}  # type: ignore[arg-type]
        return replace(self, **changed)  # type: ignore[type-var]

    def to(self, device: torch.device | str) -> Self:
        """The same batch with its tensors on `device`; from pinned memory the copy does not wait."""
        return self._mapped(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Self:
        """The same batch in pinned memory (for a GPU)."""
        return self._mapped(lambda tensor: tensor.pin_memory())

    def tensors(self) -> list[torch.Tensor]:
        """Its tensors, whatever they are of."""
        found: list[torch.Tensor] = []

        def note(tensor: torch.Tensor) -> torch.Tensor:
            found.append(tensor)
            return tensor

        self._mapped(note)
        return found

    def of(self, chosen: NDArray[np.bool_]) -> Self:
        """Its images where `chosen` bool [B]."""
        rows = torch.from_numpy(chosen)
        return self._mapped(lambda tensor: tensor[rows])


@dataclass(frozen=True, eq=False)
class Batch(_Tensors):
    """A micro-batch of training; a step of a rank is every batch up to the one that says `last`.

    `images` uint8 [B, 3, height, width] and `labels` int64 [B] as they are before mixing, `mix` says how they mix;
    `patches` int64 [B, k], best first, mixed already, None: all patches. `ids` int64 [B]: the samples' numbers in the
    index. `weights` float32 [B]: 1, or 0 for what counts nothing (a repeat on a rank that ran out, a bad image). `bad`:
    the id of each bad image met here, and what was wrong. `hidden` float32 [B, P]: the share of each patch of the mixed
    image that shows fill or noise, None where nothing does. `extras`: by name, what else is known of each patch seen,
    [B, k, …] in the order of `patches`, or [B, P, …]. `token_labels`: of the cells of the images before mixing, and
    where the views lie in them, None without.
    """

    images: torch.Tensor
    patches: torch.Tensor | None
    labels: torch.Tensor
    ids: torch.Tensor
    weights: torch.Tensor
    mix: BatchMix
    epoch: int
    step: int
    last: bool
    bad: dict[int, str] = field(default_factory=dict)
    hidden: torch.Tensor | None = None
    extras: dict[str, torch.Tensor] = field(default_factory=dict)
    token_labels: TokenLabels | None = None

    def of(self, chosen: NDArray[np.bool_]) -> "Batch":
        """Its images where `chosen` bool [B]; of a pair that mixes, both or none."""
        return replace(super().of(chosen), mix=self.mix.of(np.flatnonzero(chosen)))

    def keeping(self, patches: torch.Tensor) -> "Batch":
        """The same images, seen whole until now, of which `patches` int64 [B, k] are kept, and what belongs to them."""
        extras = {
            name: values.take_along_dim(patches.view(*patches.shape, *[1] * (values.ndim - 2)), dim=1)
            for name, values in self.extras.items()
        }
        return replace(self, patches=patches, extras=extras)


@dataclass(frozen=True, eq=False)
class EvalBatch(_Tensors):
    """Images of an evaluation, each exactly once over all ranks.

    `images` uint8 [B, 3, height, width], `labels` int64 [B], `ids` int64 [B]; `patches`: for every arm evaluated, int64
    [B, k], best first, or None: all patches.
    """

    images: torch.Tensor
    patches: dict[str, torch.Tensor | None]
    labels: torch.Tensor
    ids: torch.Tensor
