"""What every measurement is given, and what rows have in common."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import median
from types import ModuleType
from typing import Any

import torch
from rounds import spread

from device.counts import Cost
from device.data import Files
from device.limits import Limits
from device.scope import Scope
from device.timing import NO_TIME, Deadline, Row, Seconds


@dataclass(frozen=True)
class Bench:
    """The size, the device and its limits, what was made, and the authors' code, None where nobody named it.

    `costs`: of each candidate by (model, name), counted while it is not compiled; the same when it is.
    """

    scope: Scope
    device: torch.device
    deadline: Deadline
    limits: Limits
    files: Files
    authors: ModuleType | None = None
    costs: dict[tuple[str, str], Cost] = field(default_factory=dict)


EAGER, COMPILED = "eager", "compiled"


def about(name: str, compiled: bool) -> Row:
    """The first columns of a row."""
    return {"model": name, "compute": COMPILED if compiled else EAGER}


def rate(times: Seconds, name: str, batch: int) -> Any:
    """Images per second of a candidate, or that it was not measured."""
    return round(batch / median(times[name])) if name in times else NO_TIME


def ratio(times: Seconds, name: str, base: str) -> Any:
    """Time of a candidate over that of another, within rounds; empty where one of them was not measured."""
    return spread(times, name, base) if {name, base} <= set(times) else ""


def verdict(found: object, most: float) -> str:
    """Whether a ratio's median is at most so much; empty without one."""
    if not isinstance(found, Mapping):
        return ""
    return f"{'met' if found['median'] <= most else 'missed'} (≤ {most:.3f})"
