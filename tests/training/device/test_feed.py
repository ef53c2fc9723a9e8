"""Batches on their way to a device: order, errors and ends of the thread that sends them, on a CPU.

A CPU has streams that do nothing, so all of the way but pinned memory runs here; what it does on a GPU is for a GPU.
"""

import multiprocessing
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Self

import pytest
import torch

from dlth.data.images.augment import Augmentation
from dlth.data.loading.batch import Batch, StepBatches
from dlth.data.loading.loader import TrainLoader
from dlth.data.loading.order import Batching
from dlth.data.loading.workers import WorkerError
from dlth.data.shards.index import open_index
from dlth.tickets import Grid
from dlth.training.device.feed import over_a_stream, sent_ahead

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Unpinned:
    """What is sent, where nothing can be pinned; it tells when it was."""

    held: Any
    sent: list[Any]

    def pin_memory(self) -> Self:
        return self

    def to(self, device: torch.device) -> Self:
        self.sent.append(self.held)
        return self

    def tensors(self) -> list[torch.Tensor]:
        return [torch.zeros(1)]


def numbers(sent: list[Any], stop: Exception | None = None, at: int = 6) -> Iterator[Unpinned]:
    for number in range(at):
        yield Unpinned(number, sent)
    if stop is not None:
        raise stop


@pytest.fixture
def loader(make_shards: Callable[..., Any]) -> TrainLoader:
    """Of six steps of three micro-batches of two images, from two worker processes."""
    options = {"batching": Batching(6, micro_batches=3), "augmentation": Augmentation(size=(32, 32))}
    index = open_index(make_shards(2, 18).spec)
    return TrainLoader(index, grid=Grid(4, 4), seed=0, arm="dense", workers=2, **options)


def senders() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("reads ahead")]


def test_each_is_sent_while_the_one_before_is_in_use() -> None:
    """They come in their order; while one is in use, the next may have been sent, and none after that."""
    sent: list[Any] = []
    for number, batch in enumerate(over_a_stream(numbers(sent), CPU)):
        assert batch.held == number
        assert number + 1 <= len(sent) <= number + 2
    assert sent == list(range(6))
    assert senders() == []


@pytest.mark.parametrize("error", [WorkerError("died"), KeyboardInterrupt(), ZeroDivisionError("a bug")])
def test_what_the_loader_raises_arrives_as_itself_and_in_its_place(error: Any) -> None:
    """Batches before an error are handed on first, whoever raised it; then the thread has ended."""
    batches = over_a_stream(numbers([], error, at=3), CPU)
    assert [next(batches).held for _ in range(3)] == [0, 1, 2]
    with pytest.raises(type(error)) as caught:
        next(batches)
    assert caught.value is error
    assert senders() == []


def test_leaving_an_epoch_ends_its_thread_and_its_workers(loader: TrainLoader) -> None:
    """A run that stops in mid epoch leaves no thread and no process behind."""
    batches = over_a_stream((Unpinned(batch, []) for batch in loader.epoch(0)), CPU)
    next(batches)
    assert len(senders()) == 1
    assert len(multiprocessing.active_children()) == 2
    del batches
    assert senders() == []
    assert multiprocessing.active_children() == []


def test_the_micro_batches_of_a_step_travel_together(loader: TrainLoader) -> None:
    """Each step is sent whole, with its ids and the number of its images left where they are: none is read back."""
    sent = list(sent_ahead(StepBatches.gathered(loader.epoch(0)), torch.device("meta")))
    assert [[batch.last for batch in step.batches] for step in sent] == [[False, False, True]] * 6
    for step in sent:
        assert {tensor.device.type for tensor in step.tensors()} == {"meta"}
        assert [batch.weight for batch in step.batches] == [2.0] * 3
    ids = [number for step in sent for batch in step.batches for number in batch.ids.tolist()]
    assert sorted(ids) == list(range(36))
    assert isinstance(sent[0].batches[0], Batch)
