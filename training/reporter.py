"""How a run talks: to whoever called it, and never to the screen.

The command line draws progress from these calls, a notebook may plot, a test may send a signal; the loop knows none of
them. All methods do nothing here, so a reporter says only what it wants to hear. Only the leading rank reports.
"""

from collections.abc import Mapping
from typing import Any


class Reporter:
    """Base of everything that listens to a run."""

    def started(self, facts: Mapping[str, Any]) -> None:
        """Everything is open and agrees; `facts` is the plan as a person would read it."""

    def note(self, text: str) -> None:
        """Something a person should know."""

    def stepped(self, record: Mapping[str, Any]) -> None:
        """A step is done: epoch, batch of num_batches, step of num_steps, loss, lr, k, images."""

    def epoch_ended(self, record: Mapping[str, Any]) -> None:
        """An epoch is done and evaluated: the row of summary.csv."""
