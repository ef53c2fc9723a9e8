"""Numbers on their way back from a GPU: the copy is queued now, and who wants them waits for it later, for it alone."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor

Result = TypeVar("Result")


def read_later(values: Sequence[Tensor]) -> Callable[[], list[Tensor]]:
    """Queue copies of a few tensors of one device to the CPU; the call that comes back waits for them and gives them.

    Work that is queued in between is not waited for. Only of a GPU of CUDA can a copy be queued; of another device they
    are read by the call.
    """
    if not any(tensor.is_cuda for tensor in values):
        return lambda: [tensor.cpu() for tensor in values]
    copied = [tensor.to("cpu", non_blocking=True) for tensor in values]  # into pinned memory, torch's own
    done = torch.cuda.Event()
    done.record(torch.cuda.current_stream(values[0].device))  # by itself it would ask the thread's current device

    def read() -> list[Tensor]:
        done.synchronize()
        return copied

    return read


def one_behind(readings: Iterable[Callable[[], Result]]) -> Iterator[Result]:
    """Read each result once the work after it is queued, which `readings` does as it is asked for the next: so a GPU
    has work while a result is waited for and used, and never more than two pieces of work wait for it.
    """
    before: Callable[[], Result] | None = None
    for reading in readings:
        if before is not None:
            yield before()
        before = reading
    if before is not None:
        yield before()
