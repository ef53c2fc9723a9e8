"""The tests' own eye for what a device would wait for: nothing of the kind escapes it."""

from collections.abc import Callable

import pytest
import torch
from makers.host import OnTheHost
from torch import Tensor

SEEN: dict[str, Callable[[Tensor], object]] = {
    "numbers": lambda there: torch.tensor([1.0, 2.0], device=there.device),
    "numbers as another's": lambda there: there.new_tensor([1.0, 2.0]),
    "a copy": lambda there: torch.ones(3).to(there.device),
    "places": lambda there: there[torch.arange(2)],
    "places in a list": lambda there: there[[0, 1]],
}
RAISES: dict[str, Callable[[Tensor], object]] = {
    "a number": lambda there: there.sum().item(),
    "a truth": lambda there: bool((there > 0).any()),
    "how many": lambda there: there.nonzero(),
    "a mask": lambda there: there[there > 0],
    "a list": lambda there: there.tolist(),
}
DEVICES_OWN: dict[str, Callable[[Tensor], object]] = {
    "filled": lambda there: torch.full((2,), 3.0, device=there.device),
    "counted": lambda there: there[torch.arange(2, device=there.device)],
    "a slice": lambda there: there[None, 1:] * 2.5,
}


@pytest.mark.parametrize("work", SEEN.values(), ids=SEEN)
def test_what_comes_from_the_host_is_noted(work: Callable[[Tensor], object]) -> None:
    """Copies that are asked for, and those that numbers and places of Python's bring with them."""
    there = torch.ones(3, device="meta")
    with OnTheHost() as host:
        work(there)
    assert host.seen


@pytest.mark.parametrize("work", RAISES.values(), ids=RAISES)
def test_what_is_read_from_the_device_raises(work: Callable[[Tensor], object]) -> None:
    """A tensor without numbers can give none."""
    with pytest.raises((RuntimeError, NotImplementedError)):
        work(torch.ones(3, device="meta"))


@pytest.mark.parametrize("work", DEVICES_OWN.values(), ids=DEVICES_OWN)
def test_what_is_made_on_the_device_is_not_noted(work: Callable[[Tensor], object]) -> None:
    """Constants, places and slices of the device's own are no work of the host."""
    there = torch.ones(3, device="meta")
    with OnTheHost() as host:
        work(there)
    assert host.seen == []
