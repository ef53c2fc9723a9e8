"""The one way in which what fails on a network is tried again."""

import time
from collections.abc import Callable
from typing import TypeVar

from dlth.tickets.errors import DlthError

Result = TypeVar("Result")

WAITS = (0.1, 0.5, 2.0)
"""Seconds before another try, of whatever is asked for or sent; then the error is the user's."""


def retried(
    ask: Callable[[], Result], passing: tuple[type[Exception], ...] = (TimeoutError, ConnectionError)
) -> Result:
    """What `ask` returns, in another try after each of `WAITS` while it fails in a way that may pass.

    What is refused, or is not there, is told at once.
    """
    for wait in WAITS:
        try:
            return ask()
        except (DlthError, FileNotFoundError):
            raise
        except passing:
            time.sleep(wait)
    return ask()
