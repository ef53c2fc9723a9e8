"""Batches of which the images alone go to a device: all else that they hold is for who reads what the device made."""

from dataclasses import replace
from typing import Self

import torch
from torch import Tensor


class SentImages:
    """Of a frozen dataclass whose `images` are uint8 [B, 3, height, width]."""

    images: Tensor

    def pin_memory(self) -> Self:
        """The same with its images in pinned memory (for a GPU)."""
        return self._with(self.images.pin_memory())

    def to(self, device: torch.device | str) -> Self:
        """The same with its images on `device`, and from pinned memory the copy does not wait; with its images where
        they are, if the device has no room for them now: who computes may send them in parts.
        """
        try:
            return self._with(self.images.to(device, non_blocking=True))
        except torch.OutOfMemoryError:
            return self

    def tensors(self) -> list[Tensor]:
        """Its tensors that are on a GPU."""
        return [self.images] if self.images.is_cuda else []

    def without_images(self) -> Self:
        """The same without them, once they were seen: what is known of a whole shard waits together, and they are most
        of its bytes.
        """
        return self._with(self.images.new_empty(0, *self.images.shape[1:]))

    def _with(self, images: Tensor) -> Self:
        return replace(self, images=images)  # type: ignore[type-var]
