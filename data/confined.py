"""An object that lives in a process of its own, with a bound on that process's memory.

For libraries that parse a stranger's file in ways that we cannot bound from outside: what they allocate, and where they
crash, is then the child's end and an error of ours. The child is forked, not started anew: a fresh interpreter takes a
second for its imports. Answers come back pickled, by our own code in the child; nothing of the file is unpickled.
"""

import faulthandler
import multiprocessing
import os
import resource
import signal
import weakref
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from dlth.tickets.errors import DamageError, DlthError, LimitError

_CONTEXT = multiprocessing.get_context("fork")


class Confined:
    """What `make()` returns, in a child process that may take `memory` bytes more than it was born with.

    Raises what `make` and the object's methods raise of ours, LimitError where the memory does not suffice, and
    DamageError where the child dies, both naming `what`.
    """

    def __init__(self, make: Callable[[], Any], memory: int, what: str) -> None:
        self._memory, self._what = memory, what
        self._ours, theirs = _CONTEXT.Pipe()
        self._process = _CONTEXT.Process(target=_serve, args=(theirs, self._ours, make, memory), daemon=True)
        self._process.start()
        theirs.close()
        self._end = weakref.finalize(self, _end, self._process, self._ours)
        self._answer()

    def call(self, name: str, *args: Any) -> Any:
        """The result of the object's method, or its attribute where no method has that name."""
        with suppress(OSError):  # a child that died: `_answer` says how
            self._ours.send((name, args))
        return self._answer()

    def _answer(self) -> Any:
        try:
            result = self._ours.recv()
        except (EOFError, OSError):
            self._process.join()
            raise self._died(self._process.exitcode or 0) from None
        if isinstance(result, MemoryError):
            raise self._too_much() from None
        if isinstance(result, DlthError):
            raise result
        return result

    def _too_much(self) -> LimitError:
        return LimitError(
            f"{self._what} asks for more than {self._memory / 2**30:.3g} GiB of memory while it is read, which nothing "
            "of its kind needs: it is damaged or made to do harm"
        )

    def _died(self, code: int) -> DlthError:
        if code == -signal.SIGABRT:  # how C++ ends when an allocation fails where nobody catches it
            return self._too_much()
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return DamageError(f"{self._what} ended the process that read it ({how}): it is damaged or made to do harm")


def confined(call: Callable[[], Any], memory: int, what: str) -> Any:
    """The result of one call in such a process; raises as `Confined`."""
    return Confined(partial(_Once, call), memory, what).call("result")


class _Once:
    def __init__(self, call: Callable[[], Any]) -> None:
        self.result = call()


def _end(process: Any, ours: Connection) -> None:
    ours.close()
    process.kill()
    process.join()


def _serve(theirs: Connection, ours: Connection, make: Callable[[], Any], memory: int) -> None:
    """The child: make the object, then answer calls until the other end is closed."""
    ours.close()
    faulthandler.disable()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # what a library says of its crash; the parent says it better
    for number in (signal.SIGINT, signal.SIGTERM):  # whoever started us ends us
        signal.signal(number, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _limit(memory)
    with suppress(EOFError, OSError):
        served = _outcome(make)
        theirs.send(served if isinstance(served, Exception) else None)
        while not isinstance(served, Exception):
            name, args = theirs.recv()
            theirs.send(_outcome(lambda: _value(served, name, args)))  # noqa: B023 (called at once)
    os._exit(0)


def _limit(memory: int) -> None:
    """At most `memory` bytes of address space more than now; where /proc does not tell it, the bound is not set."""
    with suppress(OSError):
        now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        wanted = now + memory if hard == resource.RLIM_INFINITY else min(now + memory, hard)
        resource.setrlimit(resource.RLIMIT_AS, (wanted, hard))


def _outcome(call: Callable[[], Any]) -> Any:
    """A result, or an error of ours or of memory, as a value."""
    try:
        return call()
    except (DlthError, MemoryError) as error:
        return error if isinstance(error, DlthError) else MemoryError()


def _value(served: Any, name: str, args: tuple[Any, ...]) -> Any:
    value = getattr(served, name)
    return value(*args) if callable(value) else value
