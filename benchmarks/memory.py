"""What a training step keeps in memory: what autograd holds, the same on any device, and what the allocator saw."""

import torch
from rounds import Step
from torch import Tensor, nn

from dlth.training.device.facts import forget_peak, peak_memory


def kept_for_backward(step: Step) -> float:
    """MiB that autograd holds at the end of the forward pass, beside the weights."""
    storages: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        if not isinstance(tensor if tensor._base is None else tensor._base, nn.Parameter):
            storages[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        step()
    return sum(storages.values()) / 2**20


def cuda_peak(step: Step, device: torch.device) -> float:
    """Highest number of MiB that tensors held during a step."""
    forget_peak(device)
    step()
    return peak_memory(device) / 2**20
