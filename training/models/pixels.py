"""How uint8 images become a model's input: by one function, wherever a model sees images.

A score that differs in its last bit may break a tie the other way. So stage 1, the selector in the loop, training and
evaluation all divide, subtract and divide alike, and the same pixels give the same ranking, whoever asks.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Self

import torch
from torch import Tensor


@dataclass(frozen=True)
class Pixels:
    """Channel means and deviations of values in [0, 1], and the memory format of what is made."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    channels_last: bool = False

    def __call__(self, images: Tensor) -> Tensor:
        """Normalised float32 [B, 3, H, W] of uint8 [B, 3, H, W], on the same device; of patches [B, k, 3, h, w] alike,
        for which there is one memory format.
        """
        last = self.channels_last and images.ndim == 4
        memory = torch.channels_last if last else torch.contiguous_format
        floats = images.to(torch.float32, memory_format=memory).div_(255)
        return floats.sub_(_on(self.mean, images.device)).div_(_on(self.std, images.device))

    def renormalised(self, images: Tensor, ours: Self) -> Tensor:
        """What these pixels would have been, float32 [B, 3, H, W], of images that `ours` normalised."""
        if (self.mean, self.std) == (ours.mean, ours.std):
            return images
        mean, std = (_on(values, images.device) for values in (self.mean, self.std))
        their_mean, their_std = (_on(values, images.device) for values in (ours.mean, ours.std))
        return images.mul(their_std / std).add_((their_mean - mean) / std)


@lru_cache(maxsize=16)
def _on(values: tuple[float, ...], device: torch.device) -> Tensor:
    """A channel's values as [1, 3, 1, 1]; kept, as each copy to a GPU would wait."""
    return torch.tensor(values).view(1, -1, 1, 1).to(device)
