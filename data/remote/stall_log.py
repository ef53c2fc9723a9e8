"""A word while a server keeps us waiting: a transfer that is slow must not look like a program that hangs.

The words go to Python's logging (logger ``dlth``), not through a callback: what waits stands deep below those who
could pass one, in threads and loader processes too. The command line shows them on standard error, and so does Python
where nobody set logging up.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from dlth.tickets.errors import shown

LOG = logging.getLogger("dlth")
FIRST_WORD = 10.0
"""Seconds without news before a word."""


@contextmanager
def watched(what: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
    """Say on the log how the block gets on: ``got(count)`` tells it how many bytes of `what` are there.

    "waiting for …" comes whenever no byte moved for `FIRST_WORD` seconds. With `total` (bytes) a slow transfer's count
    is said too, after as long and then after twice as long each: many loader processes may wait for one slow server.
    """
    watch = _Watch(what, total)
    speaker = threading.Thread(target=watch.wait, name="dlth-waiting", daemon=True)
    speaker.start()
    try:
        yield watch.got
    finally:
        watch.ended.set()
        speaker.join()


class _Watch:
    def __init__(self, what: str, total: int | None) -> None:
        self._what, self._total = shown(what), total
        self._moved = time.monotonic()  # when the last byte did
        self._next_count, self._pause = self._moved + FIRST_WORD, FIRST_WORD
        self.ended = threading.Event()

    def got(self, count: int) -> None:
        self._moved = now = time.monotonic()
        if self._total is not None and now >= self._next_count:
            self._pause *= 2
            self._next_count = now + self._pause
            LOG.warning("fetching %s: %s of %s bytes", self._what, f"{count:,}", f"{self._total:,}")

    def wait(self) -> None:
        """Speak of every `FIRST_WORD` seconds of silence, until the block ends."""
        moved, words = self._moved, 0
        while not self.ended.wait(max(moved + (words + 1) * FIRST_WORD - time.monotonic(), 0.0)):
            if self._moved != moved:
                moved, words = self._moved, 0
                continue
            words += 1
            LOG.warning("waiting for %s: nothing moved for %g seconds", self._what, words * FIRST_WORD)
