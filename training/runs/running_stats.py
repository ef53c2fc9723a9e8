"""Batch norms' running means and variances in training: the same on every rank, and moved only by a step that moved.

A forward pass in training changes them, before anybody knows whether the step's loss is a number, and on each rank by
its own images. So they are put back where a step moved nothing (one image of NaN would stay in them for good), and are
the mean over ranks where it did. DDP's own way, rank 0's copied to all, leaves out what the others saw, and what an
evaluation measures would depend on the rank. In training each rank normalises by its own images, as timm's scripts do.
"""

import torch.distributed as dist
from torch import Tensor, nn

from dlth.training.distributed.process_group import World


class RunningStatistics:
    """Those of a model, which may have none."""

    def __init__(self, model: nn.Module, world: World) -> None:
        norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
        self.world, self.tensors = world, [tensor for norm in norms for tensor in norm.buffers()]
        self._before: list[Tensor] = []

    def remember(self) -> None:
        """Note them as they are before a step."""
        self._before = [tensor.clone() for tensor in self.tensors]

    def settle(self, moved: bool) -> None:
        """After the step: let ranks agree on them, or put them back if it moved nothing."""
        if not moved:
            for tensor, before in zip(self.tensors, self._before, strict=True):
                tensor.copy_(before)
        elif self.world.size > 1:
            for tensor in self.tensors:
                if tensor.is_floating_point():
                    dist.all_reduce(tensor)
                    tensor.div_(self.world.size)
