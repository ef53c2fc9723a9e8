"""A report as one HTML file that needs no network: text, tables and pictures as values, a template that draws them.

Beside it lie the same tables as CSV and in one JSON, and the pictures as PNG files, for a script, a README or a talk.
Text is escaped by the template, because keys and names come from files that others made.
"""

import csv
import io
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from dlth.pipeline.pages.figures import DPI, png
from dlth.pipeline.pages.page import data_url, render_page
from dlth.tickets.store.disk import make_folder, write_files

Cell = str | int | float | None
NOTHING = "–"
"""What a cell without a value shows."""


@dataclass(frozen=True)
class Table:
    """Columns and rows of values; the first column names the row.

    name: of its CSV file, and in the JSON; a table without one is shown alone
    formats: how numbers of a column are shown, as in "+.1f"; files have them whole
    words: columns of text beside the first, which are not set to the right as numbers are
    caption: what stands above it
    folded: whether it is long, and shown when it is asked for
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    name: str = ""
    formats: Mapping[str, str] = field(default_factory=dict)
    words: tuple[str, ...] = ()
    caption: str = ""
    folded: bool = False

    @property
    def shown_columns(self) -> tuple[str, ...]:
        """Those that have anything in a row; files have all."""
        filled = (any(row[place] not in (None, "") for row in self.rows) for place in range(len(self.columns)))
        return tuple(column for column, has in zip(self.columns, filled, strict=True) if has)

    @property
    def texts(self) -> tuple[tuple[str, ...], ...]:
        """The rows as they are shown, in these columns."""
        places = [(self.columns.index(column), self.formats.get(column, "")) for column in self.shown_columns]
        return tuple(tuple(_shown_cell(row[place], spec) for place, spec in places) for row in self.rows)


@dataclass(frozen=True)
class Picture:
    """A figure, the name of its PNG file, what it shows, and for those who cannot see it what is to be seen there."""

    name: str
    figure: Figure
    caption: str
    alt: str = ""

    @property
    def width(self) -> int:
        """How wide it is shown where there is room, in pixels; its PNG has twice as many."""
        return round(float(self.figure.get_figwidth()) * DPI / 2)


@dataclass(frozen=True)
class Choice:
    """Pictures of which one is shown, as the reader chooses: what is chosen, and each picture by its word."""

    label: str
    options: tuple[tuple[str, Picture], ...]


@dataclass(frozen=True)
class Section:
    """A heading with texts, tables, choices, pictures and commands, drawn in this order."""

    title: str
    texts: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    choices: tuple[Choice, ...] = ()
    pictures: tuple[Picture, ...] = ()
    commands: tuple[str, ...] = ()

    @property
    def all_pictures(self) -> Iterator[Picture]:
        """Those of choices and the others."""
        yield from (picture for choice in self.choices for _, picture in choice.options)
        yield from self.pictures


@dataclass(frozen=True)
class Verdict:
    """A claim's outcome ("holds", "fails" or "not decided"), and the figures that say so.

    fold: what it is shown under when that is asked for, with others of the same; empty where it is shown at once
    """

    outcome: str
    text: str
    fold: str = ""

    @property
    def plain(self) -> dict[str, str]:
        """The claim as JSON holds it."""
        return {"outcome": self.outcome, "text": self.text}


@dataclass(frozen=True)
class Report:
    """A whole report; warnings are what a reader must know before the verdicts."""

    title: str
    lead: str
    verdicts: tuple[Verdict, ...] = ()
    sections: tuple[Section, ...] = ()
    footer: str = ""
    warnings: tuple[str, ...] = ()

    @property
    def tables(self) -> dict[str, Table]:
        """Those that have a name, by it."""
        return {table.name: table for section in self.sections for table in section.tables if table.name}

    @property
    def folds(self) -> Iterator[tuple[str, tuple[Verdict, ...]]]:
        """The verdicts in their order: under the line of what they are folded by, how often which came out, or none."""
        for fold, under in groupby(self.verdicts, lambda verdict: verdict.fold):
            verdicts = tuple(under)
            outcomes = Counter(verdict.outcome for verdict in verdicts)
            told = ", ".join(f"{outcome} at {number}" for outcome, number in outcomes.items())
            yield (f"{fold}: {told}" if fold else ""), verdicts


def files_folder(page: Path) -> Path:
    """Where the tables and pictures of a page lie: `NAME_files`, as browsers call it, beside `NAME.html`."""
    return page.with_name(f"{page.stem}_files")


def write_page(report: Report, page: Path) -> Path:
    """Write an HTML file, `NAME.json` beside it, and tables and pictures in `NAME_files`; returns the HTML's path."""
    make_folder(files_folder(page))
    drawn = {picture.name: png(picture.figure, DPI) for section in report.sections for picture in section.all_pictures}
    urls = {name: data_url(raw, "png") for name, raw in drawn.items()}
    files = {files_folder(page) / f"{name}.png": raw for name, raw in drawn.items()}
    files |= {files_folder(page) / f"{name}.csv": as_csv(table) for name, table in report.tables.items()}
    files[page.with_suffix(".json")] = as_json(report)
    html = render_page("report.html", title=report.title, report=report, urls=urls)
    write_files(files | {page: html.encode()})
    return page


def as_csv(table: Table) -> bytes:
    """A table as CSV: numbers whole, nothing for no value."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([table.columns, *table.rows])
    return text.getvalue().encode()


def as_json(report: Report) -> bytes:
    """Verdicts, warnings and named tables as JSON."""
    tables = {name: {"columns": table.columns, "rows": table.rows} for name, table in report.tables.items()}
    verdicts = [verdict.plain for verdict in report.verdicts]
    content: dict[str, Any] = {"title": report.title, "warnings": report.warnings, "verdicts": verdicts}
    return (json.dumps(content | {"tables": tables}, indent=1, allow_nan=False) + "\n").encode()


def _shown_cell(cell: Cell, spec: str) -> str:
    if cell is None:
        return NOTHING
    return cell if isinstance(cell, str) else format(cell, spec or ("," if isinstance(cell, int) else ".4g"))
