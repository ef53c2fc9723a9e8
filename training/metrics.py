"""What a run counts: loss, images, tokens, time in data and in compute, memory; all of it goes on after a resume."""

from __future__ import annotations

import resource
import sys
from dataclasses import dataclass, fields

import torch

_ROUNDING = 1e-3
"""How far sums may go past their bound: they are rounded in float32 before they come here."""
_MAX_LOSS = 3.5e38
"""A loss is a float32."""
_MAX_SECONDS = 3.2e9
"""A century."""


@dataclass
class Totals:
    """Sums over some steps: seconds of this rank; of all ranks images, tokens, and the loss weighted by images.

    `hidden`: over the images, the share of their kept patches' area that shows fill or noise; `whole`: images trained
    on all patches, as they, or those they mixed with, had no ticket.
    """

    loss_sum: float = 0.0
    loss_weight: float = 0.0
    images: float = 0.0
    tokens: float = 0.0
    hidden: float = 0.0
    whole: float = 0.0
    data_seconds: float = 0.0
    compute_seconds: float = 0.0

    def add(self, other: Totals) -> None:
        """Add another's sums to these."""
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))

    def can_be_of(self, num_images: float, tokens_per_image: int) -> bool:
        """Whether these can be the sums of at most so many images, each of at most so many tokens."""
        most = {
            "images": num_images,
            "loss_weight": self.images,
            "hidden": self.images,
            "whole": self.images,
            "tokens": self.images * tokens_per_image,
            "loss_sum": self.loss_weight * _MAX_LOSS,
            "data_seconds": _MAX_SECONDS,
            "compute_seconds": _MAX_SECONDS,
        }
        return all(-_ROUNDING <= getattr(self, name) <= bound * (1 + _ROUNDING) for name, bound in most.items())

    @property
    def loss(self) -> float | None:
        """Mean loss per image, or None where no step counted."""
        return self.loss_sum / self.loss_weight if self.loss_weight else None

    @property
    def hidden_share(self) -> float | None:
        """Mean share of the kept patches' area that shows fill or noise, or None where there was no image."""
        return self.hidden / self.images if self.images else None

    @property
    def seconds(self) -> float:
        """Time in data and compute together."""
        return self.data_seconds + self.compute_seconds

    def rates(self) -> dict[str, float]:
        """Images and tokens per second over all ranks, and the seconds that this rank waited for data and computed."""
        seconds = max(self.seconds, 1e-9)
        return {
            "images_per_second": self.images / seconds,
            "tokens_per_second": self.tokens / seconds,
            "data_seconds": self.data_seconds,
            "compute_seconds": self.compute_seconds,
        }


def peak_memory(device: torch.device) -> int:
    """Most bytes held so far: allocated on the GPU, or resident in this process on a CPU."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def device_name(device: torch.device) -> str:
    """The device as a person knows it, e.g. the GPU's model name."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
