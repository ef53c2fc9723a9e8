"""Numbers on their way back from a GPU: the copy is queued now, and who wants them waits for it later, for it alone."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def read_later(values: Sequence[Tensor]) -> Callable[[], list[Tensor]]:
    """Queue copies of a few tensors of one device to the CPU; the call that comes back waits for them and gives them.

    Work that is queued in between is not waited for.
    """
    if not any(tensor.is_cuda for tensor in values):
        return lambda: list(values)
    copied = [tensor.to("cpu", non_blocking=True) for tensor in values]  # into pinned memory, torch's own
    done = torch.cuda.Event()
    done.record()

    def read() -> list[Tensor]:
        done.synchronize()
        return copied

    return read
