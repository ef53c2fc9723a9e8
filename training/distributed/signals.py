"""SIGTERM and SIGINT ask a run to stop; they never interrupt a step or a save.

The handler only sets a flag: the loop finishes its step, saves, and leaves with exit code 75 (sysexits' "temporary
failure"): the run is not finished and `--resume auto` goes on with it. A second SIGINT (Ctrl-C twice) ends the process
at once, which costs no more than a kill would. Under torchrun the agent reports its own code, so result.json, not the
exit code, is the mark of a finished run.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

EXIT_RESUMABLE = 75
"""Exit code of a run that was asked to stop and saved itself."""


@dataclass
class StopRequest:
    """Whether this process was asked to stop."""

    requested: bool = False


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Turn SIGTERM and SIGINT into a flag while the block runs; outside the main thread signals stay as they are."""
    stop = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def handle(number: int, _: FrameType | None) -> None:
        if number == signal.SIGINT and stop.requested:
            raise KeyboardInterrupt
        stop.requested = True

    before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
