"""What a caller of the tools hands over, looked at first: a list and not a text, a whole number within its bounds.

Types say so to those who check them. A notebook does not, and a library's own exception from deep inside names neither
the argument nor what to do.
"""

import operator
from collections.abc import Iterable
from typing import TypeVar

from dlth.tickets.errors import InputError, shown

T = TypeVar("T")


def listed(values: Iterable[T], what: str) -> tuple[T, ...]:
    """The values of any iterable but text; raises InputError, naming `what`, for anything else."""
    if isinstance(values, str | bytes) or not isinstance(values, Iterable):
        raise InputError(f"a list of {what} is needed, found {shown(values)!r}: put one in brackets")
    return tuple(values)


def whole_number(value: object, what: str, least: int, most: int | None = None) -> int:
    """A whole number that a caller gives (numpy's too, True is none), from `least` to `most`; raises InputError."""
    try:
        number = None if isinstance(value, bool) else operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        number = None
    if number is None or number < least or (most is not None and number > most):
        bounds = f"at least {least}" if most is None else f"from {least} to {most}"
        raise InputError(f"{what} must be {bounds}{' and whole' if number is None else ''}, got {shown(value)}")
    return number
