"""Under what precision a model runs: training, evaluation and stage 1 ask alike."""

import contextlib
from dataclasses import dataclass
from typing import Any, Self

import torch


@dataclass(frozen=True)
class Precision:
    """Under what precision forwards run: autocast to `dtype`, or plain float32 when it is None."""

    dtype: torch.dtype | None
    device: torch.device

    @classmethod
    def of(cls, amp: bool, amp_dtype: str, device: torch.device) -> Self:
        """The precision that the settings ask for."""
        return cls(getattr(torch, amp_dtype) if amp else None, device)

    def __call__(self) -> contextlib.AbstractContextManager[Any]:
        """A context in which to run a forward."""
        if self.dtype is None and not torch.amp.is_autocast_available(self.device.type):
            return contextlib.nullcontext()  # there is nothing to switch off (on meta)
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype is not None)
