"""What the command line shows: tables, progress, errors. Nothing else in dlth prints.

A terminal gets rich bars; a log file or a SLURM job gets a plain line every few seconds, because a redrawn bar makes
a log unreadable. Results go to standard output, everything said on the way goes to standard error, so that
`dlth … --json | jq` works.
"""

import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from itertools import accumulate
from json import dumps
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from dlth.tickets.errors import plain, shown
from dlth.tickets.format.jsontext import strict
from dlth.training.distributed.ranks import ranks

LONGEST = 1_000
"""Characters of a value in a table, at most: names in a header may be far longer."""

PLAIN_INTERVAL = 10.0
"""Seconds between two progress lines off a terminal."""


class Counter:
    """Counts work done: `counter(n)` sets the count to n, `counter.advance(n)` adds n."""

    def __init__(self, label: str, total: int, unit: str) -> None:
        self.label, self.total, self.unit, self.count = label, total, unit, 0
        self._skipped = 0
        self._start = self._last = time.monotonic()

    def __call__(self, count: int, total: int | None = None) -> None:
        """Set the work done so far, and the whole where it became known later."""
        self.total = self.total if total is None else total
        self.count = count
        self._draw()

    def advance(self, count: int) -> None:
        """Add work done."""
        self(self.count + count)

    def skip(self, count: int) -> None:
        """Add work that an earlier run did: it counts as done and not towards the rate."""
        self._skipped += count
        self(self.count + count)

    @property
    def rate(self) -> float:
        """Units of work per second of this run."""
        return (self.count - self._skipped) / max(time.monotonic() - self._start, 1e-9)

    def _draw(self) -> None:
        """Print one plain line when it is time to: count, share, rate, time left."""
        now = time.monotonic()
        if now - self._last < PLAIN_INTERVAL and self.count < self.total:
            return
        self._last = now
        left = max(self.total - self.count, 0) / self.rate if self.rate > 0 else 0.0
        share = 100 * self.count / self.total if self.total else 100.0
        note(
            f"{self.label}: {self.count}/{self.total} {self.unit} ({share:.1f}%) | {self.rate:.1f} {self.unit}/s"
            f" | {timedelta(seconds=round(left))} left"
        )


class _Bar(Counter):
    """The same count as a bar on a terminal."""

    def __init__(self, label: str, total: int, unit: str, progress: Progress) -> None:
        super().__init__(label, total, unit)
        self._progress = progress
        self._task = progress.add_task(shown(label), total=total, rate="")

    def _draw(self) -> None:
        rate = f"{self.rate:.0f} {self.unit}/s"
        self._progress.update(self._task, completed=self.count, total=self.total, rate=rate)


@contextmanager
def counting(label: str, total: int, unit: str = "images", quiet: bool = False) -> Iterator[Counter]:
    """Show progress, rate and time left of `total` units of work while the block runs."""
    if quiet or not _err().is_terminal:
        counter = Counter(label, total, unit)
        if quiet:
            counter._draw = lambda: None  # type: ignore[method-assign]
        yield counter
        return
    columns = [
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}", markup=False),
        TimeElapsedColumn(),
        TextColumn("·"),
        TimeRemainingColumn(),
    ]
    # rich would put its own stream, which decodes what it is given, before the one that escapes
    with Progress(*columns, console=_err(), redirect_stdout=False, redirect_stderr=False) as progress:
        yield _Bar(label, total, unit, progress)


def leads() -> bool:
    """Whether this process speaks: under torchrun only the first does."""
    return ranks().leads


def note(text: str) -> None:
    """Say something on the way, on standard error."""
    _err().print(plain(text))


def write(text: str, style: str | None = None) -> None:
    """Print a part of the result on standard output."""
    _out().print(plain(text), style=style)


class _Spoken(logging.Handler):
    """What the library logs, said as notes."""

    def emit(self, record: logging.LogRecord) -> None:
        note(self.format(record))


def listen() -> None:
    """Say what dlth's own log tells (a server that keeps us waiting), whatever else is set up for logs."""
    log = logging.getLogger("dlth")
    if not any(isinstance(handler, _Spoken) for handler in log.handlers):
        log.addHandler(_Spoken())


def lead_note(text: str) -> None:
    """Say what every process of a job knows, once: under torchrun the first does."""
    if leads():
        note(text)


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table on standard output; numbers are right-aligned."""
    view = Table(title=shown(title, LONGEST), title_justify="left", title_style="bold")
    for at, column in enumerate(columns):
        numeric = all(isinstance(row[at], int | float) for row in rows) and bool(rows)
        view.add_column(shown(column), justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        view.add_row(*map(_cell, row))
    _out().print(view)


def aligned(columns: Sequence[str], rows: Sequence[Sequence[object]], room: int | None = None) -> str:
    """Lines of columns under their names, a line for each row, however wide: for lists too long for a table.

    room: characters of a line; the last columns that do not fit are left out whole
    """
    cells = [columns, *([_cell(value) for value in row] for row in rows)]
    widths = [max(len(row[at]) for row in cells) for at in range(len(columns))]
    if room is not None:
        ends = accumulate(width + 2 for width in widths)
        widths = [width for width, end in zip(widths, ends, strict=True) if end - 2 <= room]
    lines = ("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=False)) for row in cells)
    return "\n".join(line.rstrip() for line in lines)


def room(error: bool = False) -> int | None:
    """Characters of a line on standard output, or on standard error; None off a terminal."""
    stream = _err() if error else _out()
    return stream.width if stream.is_terminal else None


@contextmanager
def redrawn() -> Iterator[Callable[[str], None] | None]:
    """Shows a text on standard error in the place of the one before; None off a terminal. Notes go above it."""
    if not _err().is_terminal:
        yield None
        return
    with Live(console=_err(), auto_refresh=False, redirect_stdout=False, redirect_stderr=False) as live:
        yield lambda text: live.update(Text(plain(text), no_wrap=True), refresh=True)


def result(title: str, values: Mapping[str, object], json: bool = False) -> None:
    """Print names and values on standard output, one a line under a title; with `json` as one object instead."""
    if json:
        as_json(values)
        return
    width = max((len(name) for name in values), default=0)
    write(shown(title, LONGEST), style="bold")
    for name, value in values.items():
        write(f"  {shown(name):<{width}}  {_cell(value)}")


def as_json(value: Mapping[str, Any]) -> None:
    """Print one JSON object on standard output, for scripts: ASCII alone, and null for what is no finite number."""
    text = dumps(strict(value), indent=2, default=str, allow_nan=False)
    sys.stdout.write(text.replace("\x7f", "\\u007f") + "\n")
    sys.stdout.flush()


def _cell(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    if isinstance(value, int):
        return f"{value:,}"
    return shown(value, LONGEST)


@cache
def _out() -> Console:
    return Console(soft_wrap=True, highlight=False, markup=False, emoji=False)


@cache
def _err() -> Console:
    return Console(stderr=True, soft_wrap=True, highlight=False, markup=False, emoji=False)
