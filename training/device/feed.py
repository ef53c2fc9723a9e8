"""Batches on their way to a GPU, so that it never waits for a copy: one is sent while the one before is computed on.

A thread takes the next batch from its loader, pins it, and queues its copies on a stream of their own; the stream that
computes waits for their end, on the device. Rejected: copying on the computing stream, from pinned memory as well: 256
images of 224 px are 38 MB, one to three milliseconds in which nothing else runs.

On a CPU there is nothing to send, and no thread: batches are handed on as they come.
"""

from collections.abc import Iterable, Iterator
from typing import Protocol, Self, TypeVar

import torch
from torch import Tensor

from dlth.data.loading.workers import one_ahead


class Sendable(Protocol):
    """What can be sent: a batch of a loader."""

    def pin_memory(self) -> Self:
        """The same in pinned memory, from where a copy to a GPU does not wait."""

    def to(self, device: torch.device) -> Self:
        """The same on a device; from pinned memory the copy is queued on the current stream, and not waited for."""

    def tensors(self) -> list[Tensor]:
        """Its tensors."""


Batch = TypeVar("Batch", bound=Sendable)


def sent_ahead(batches: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
    """The same batches on the device, each sent while the one before it is in use. Raises what the loader raises."""
    if device.type != "cuda":
        return (batch.to(device) for batch in batches)
    return _over_a_stream(batches, device)


def _over_a_stream(batches: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
    copies = torch.cuda.Stream(device)

    def send(batch: Batch) -> tuple[Batch, torch.cuda.Event]:
        with torch.cuda.device(device), torch.cuda.stream(copies):  # both are each thread's own
            sent, done = batch.pin_memory().to(device), torch.cuda.Event()
            done.record()
        return sent, done

    for sent, done in one_ahead(map(send, batches)):
        computing = torch.cuda.current_stream(device)
        computing.wait_event(done)
        for tensor in sent.tensors():
            tensor.record_stream(computing)  # its memory goes back to the copying stream, not before it was used
        yield sent
