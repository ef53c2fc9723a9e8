"""What the command line shows: tables, progress, errors. Nothing else in dlth prints.

A terminal gets rich bars; a log file or a SLURM job gets a plain line every few seconds, because a redrawn bar makes
a log unreadable. Results go to standard output, everything said on the way goes to standard error, so that
`dlth … --json | jq` works.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

out = Console(soft_wrap=True, highlight=False)
err = Console(stderr=True, soft_wrap=True, highlight=False)

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
        now = time.monotonic()
        if now - self._last < PLAIN_INTERVAL and self.count < self.total:
            return
        self._last = now
        self.line()

    def line(self) -> None:
        """Print one plain line: count, share, rate, time left."""
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
        self._task = progress.add_task(escape(label), total=total, rate="")

    def _draw(self) -> None:
        rate = f"{self.rate:.0f} {self.unit}/s"
        self._progress.update(self._task, completed=self.count, total=self.total, rate=rate)


@contextmanager
def counting(label: str, total: int, unit: str = "images", quiet: bool = False) -> Iterator[Counter]:
    """Show progress, rate and time left of `total` units of work while the block runs."""
    if quiet or not err.is_terminal:
        counter = Counter(label, total, unit)
        if quiet:
            counter._draw = lambda: None  # type: ignore[method-assign]
        yield counter
        return
    columns = [
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TextColumn("·"),
        TimeRemainingColumn(),
    ]
    with Progress(*columns, console=err) as progress:
        yield _Bar(label, total, unit, progress)


def leads() -> bool:
    """Whether this process speaks: under torchrun only the first does."""
    return os.environ.get("RANK", "0") == "0"


def note(text: str) -> None:
    """Say something on the way, on standard error, as it is."""
    err.print(escape(text))


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
    view = Table(title=escape(title), title_justify="left", title_style="bold")
    for at, column in enumerate(columns):
        numeric = all(isinstance(row[at], int | float) for row in rows) and bool(rows)
        view.add_column(escape(column), justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        view.add_row(*(escape(_cell(value)) for value in row))
    out.print(view)


def facts(title: str, values: Mapping[str, object]) -> None:
    """Print names and values, one a line, on standard output."""
    width = max((len(name) for name in values), default=0)
    out.print(f"[bold]{escape(title)}[/bold]")
    for name, value in values.items():
        out.print(f"  {escape(name):<{width}}  {escape(_cell(value))}")


def as_json(value: Mapping[str, Any]) -> None:
    """Print one JSON object on standard output, for scripts."""
    sys.stdout.write(json.dumps(value, indent=2, default=str) + "\n")
    sys.stdout.flush()


def _cell(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    if isinstance(value, int):
        return f"{value:,}"
    return str(value)
