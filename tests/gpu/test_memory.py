"""What a step takes of the device's memory: bytes that PyTorch's allocator counted."""

import pytest
import torch
from makers.device_report import Compared
from makers.device_runs import MakeRun, prepared, steps
from makers.precisions import BFLOAT16
from makers.scales import Scale

from dlth.training.settings.train_config import TrainConfig

ABOVE_SHARE = 0.1
"""What a step takes whatever it keeps: the pixels, and buffers of kernels."""


def taken(config: TrainConfig, device: torch.device) -> int:
    """Bytes at the peak of a step, beyond those that weights and the optimizer hold before it."""
    with prepared(config) as parts:
        steps(parts, 1)
        parts.optimizer.zero_grad(set_to_none=True)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        steps(parts, 1)
        return torch.cuda.max_memory_allocated(device) - before


@pytest.mark.gpu
def test_a_ticket_spares_memory(make_run: MakeRun, scale: Scale, device: torch.device, compared: Compared) -> None:
    """A step on half of the patches takes half of the memory of a dense step, give or take a tenth."""
    batch = 4 * scale.batch
    options = {"amp": True, "batch_size": batch}
    dense = taken(make_run(arm="dense", tickets=None, **options), device)
    ticket = taken(make_run(**options), device)
    tokens = (scale.grid.num_patches // 2 + 1) / (scale.grid.num_patches + 1)
    compared("memory of a step on half of the patches, of a dense one", BFLOAT16, ticket / dense, tokens + ABOVE_SHARE)
