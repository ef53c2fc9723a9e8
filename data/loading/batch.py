"""What the loaders hand out: batches of pixels with the patches that a student sees of them.

Axes: B images of the batch, P patches of the grid, k patches kept. Pixels travel as uint8 (a quarter of the bytes); the
trainer normalises, and mixes with the plans that are given, on its device. What the process that trains must know
itself (how many images count, which they are) stays with it, so that nothing is read back from a GPU for it.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields, replace
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from dlth.data.images.mixing import BatchMix
from dlth.data.images.token_labels import TokenLabels

_STAYS = ("ids",)
"""Tensors that the process itself needs: they stay where they were made."""


class _Tensors:
    """Batches move to a device, or into pinned memory, and come apart, as a whole."""

    def _mapped(self, change: Any, stays: tuple[str, ...] = ()) -> Self:
        def apply(value: Any) -> Any:
            if isinstance(value, dict):
                return {name: apply(item) for name, item in value.items()}
            if isinstance(value, list):
                return [item._mapped(change, stays) for item in value]
            if isinstance(value, TokenLabels):
                return TokenLabels(*map(apply, value))
            return change(value) if isinstance(value, torch.Tensor) else value

        names = [item.name for item in fields(self) if item.name not in stays]  # type: ignore[arg-type]
        return replace(self, **{name: apply(getattr(self, name)) for name in names})  # type: ignore[type-var]

    def to(self, device: torch.device | str) -> Self:
        """The same batch with its tensors on `device`, but `ids`; from pinned memory the copy does not wait."""
        return self._mapped(lambda tensor: tensor.to(device, non_blocking=True), _STAYS)

    def pin_memory(self) -> Self:
        """The same batch with what goes to a device in pinned memory (for a GPU)."""
        return self._mapped(lambda tensor: tensor.pin_memory(), _STAYS)

    def tensors(self) -> list[torch.Tensor]:
        """Its tensors that go to a device, whatever they are of."""
        found: list[torch.Tensor] = []

        def note(tensor: torch.Tensor) -> torch.Tensor:
            found.append(tensor)
            return tensor

        self._mapped(note, _STAYS)
        return found

    def of(self, chosen: NDArray[np.bool_]) -> Self:
        """Its images where `chosen` bool [B]."""
        rows = torch.from_numpy(chosen)
        return self._mapped(lambda tensor: tensor[rows])


@dataclass(frozen=True, eq=False)
class Batch(_Tensors):
    """A micro-batch of training; a step of a rank is every batch up to the one that says `last`.

    `images` uint8 [B, 3, height, width] and `labels` int64 [B] as they are before mixing, `mix` says how they mix;
    where they are cut, the pixels of `patches` alone, uint8 [B, k, 3, h, w]. `patches` int64 [B, k], best first, mixed
    already, None: all patches. `ids` int64 [B]: the samples' numbers in the index. `weights` float32 [B]: 1, or 0 for
    what counts nothing (a repeat on a rank that ran out, a bad image), and `weight` their sum. `bad`: the id of each
    bad image met here, and what was wrong. `hidden` float32 [B, P]: the share of each patch of the mixed image that
    shows fill or noise, None where nothing does. `extras`: by name, what else is known of each patch seen, [B, k, …] in
    the order of `patches`, or [B, P, …]. `token_labels`: of the cells of the images before mixing, and where the views
    lie in them, None without.
    """

    images: torch.Tensor
    patches: torch.Tensor | None
    labels: torch.Tensor
    ids: torch.Tensor
    weights: torch.Tensor
    weight: float
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
        mix, weight = self.mix.of(np.flatnonzero(chosen)), float(self.weights.numpy()[chosen].sum())
        return replace(super().of(chosen), mix=mix, weight=weight)

    def keeping(self, patches: torch.Tensor) -> "Batch":
        """The same images, seen whole until now, of which `patches` int64 [B, k] are kept, and what belongs to them."""
        extras = {
            name: values.take_along_dim(patches.view(*patches.shape, *[1] * (values.ndim - 2)), dim=1)
            for name, values in self.extras.items()
        }
        return replace(self, patches=patches, extras=extras)


@dataclass(frozen=True, eq=False)
class StepBatches(_Tensors):
    """A rank's micro-batches of one step, which travel together: they lie on the device at once, and those of the step
    after them (0.15 MB an image of 224 px).
    """

    batches: list[Batch]

    @classmethod
    def gathered(cls, batches: Iterable[Batch]) -> Iterator["StepBatches"]:
        """A loader's batches, step by step."""
        step: list[Batch] = []
        for batch in batches:
            step.append(batch)
            if batch.last:
                yield cls(step)
                step = []


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
