"""Standard output and error as a command needs them: always there, in any encoding, and harmless to a terminal.

Whatever is written, by dlth, by a library's warning or log, goes through one filter: control, format and surrogate
characters become escapes. rich alone writes past it, as bars and bold need control codes; `console` gives it text that
was escaped before. So a message that somebody forgets to escape still cannot move a terminal.

What cannot be written is an error on standard output, whose text is the result, and none on standard error: a reader of
the messages that goes away must not end a training.
"""

import errno
import io
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout, suppress
from typing import TextIO, cast

from dlth.tickets.errors import FULL, SpaceError, plain
from dlth.training.machine_errors import MachineError


class ReaderGoneError(Exception):
    """Nobody reads standard output any more, as after `dlth … | head -1`."""


class _Sink:
    """A stream whose failures are said once, and no traceback at exit."""

    def __init__(self, stream: TextIO, holds_result: bool) -> None:
        self._stream, self._holds_result = stream, holds_result

    def write(self, text: str) -> int:
        with self._failing():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._failing():
            self._stream.flush()

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)

    @contextmanager
    def _failing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            with suppress(OSError), open(os.devnull, "w") as nothing:  # or Python's own flush at exit fails once more
                os.dup2(nothing.fileno(), self._stream.fileno())
            if not self._holds_result:
                return
            if error.errno == errno.EPIPE:
                raise ReaderGoneError from error
            kind = SpaceError if error.errno in FULL else MachineError
            raise kind(f"the result cannot be written to standard output: {error.strerror}") from error


class _Plain(_Sink):
    """A stream that escapes what a terminal would obey; rich finds the one without that behind it."""

    def write(self, text: str) -> int:
        super().write(plain(text))
        return len(text)

    @property
    def rich_proxied_file(self) -> _Sink:
        """What rich writes to."""
        return _Sink(self._stream, self._holds_result)


@contextmanager
def harmless() -> Iterator[None]:
    """Standard streams that can be written to, and escape what they are given, while the block runs.

    Raises ReaderGoneError, SpaceError and MachineError for a result that cannot be written.
    """
    _open_missing()
    with ExitStack() as stack:
        for redirect, given, result in ((redirect_stdout, sys.stdout, True), (redirect_stderr, sys.stderr, False)):
            # absent: closed before Python began
            stream: TextIO = stack.enter_context(open(os.devnull, "w")) if given is None else given
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")  # ASCII and Latin-1 cannot write every name
            stack.enter_context(redirect(cast(TextIO, _Plain(stream, result))))
        yield
        sys.stdout.flush()


def _open_missing() -> None:
    """Give closed standard descriptors to the null device: the next file opened would get the number of one.

    A library that prints would then print into a ticket file.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number: this one
