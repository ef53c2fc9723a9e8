"""Numbers on their way back from a device: when each is read, on a CPU."""

from collections.abc import Callable, Iterator

import pytest
import torch

from dlth.training.device.reading import one_behind, read_later


def test_a_result_is_read_once_the_next_work_is_queued_and_the_last_at_the_end() -> None:
    """Two pieces of work are under way at most, and results come in their order."""
    told: list[str] = []

    def queued() -> Iterator[Callable[[], int]]:
        for number in range(3):
            told.append(f"queue {number}")
            yield lambda number=number: told.append(f"read {number}") or number

    assert list(one_behind(queued())) == [0, 1, 2]
    assert told == ["queue 0", "queue 1", "read 0", "queue 2", "read 1", "read 2"]
    assert list(one_behind([])) == []


def test_nothing_is_read_before_it_is_asked_for() -> None:
    """Tensors of a device that can give no numbers are taken, and raise when they are read."""
    reading = read_later([torch.ones(2, device="meta")])
    with pytest.raises(NotImplementedError, match="meta"):
        reading()
    (ours,) = read_later([theirs := torch.ones(2)])()
    assert ours is theirs
