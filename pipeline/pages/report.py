"""A report as one HTML file that needs no network: text, tables and pictures as values, a template that draws them.

The pictures are also written as PNG files beside it, for a README or a talk. Text is escaped by the template, because
keys and names come from files that others made.
"""

from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from dlth.pipeline.pages.figures import png
from dlth.pipeline.pages.page import data_url, render_page
from dlth.tickets.store.disk import make_folder, write_files


@dataclass(frozen=True)
class Table:
    """Columns and rows; the first column names the row, the others are numbers."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Picture:
    """A figure, the name of its PNG file, and what it shows."""

    name: str
    figure: Figure
    caption: str


@dataclass(frozen=True)
class Section:
    """A heading with texts, tables, pictures and commands, drawn in this order."""

    title: str
    texts: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    pictures: tuple[Picture, ...] = ()
    commands: tuple[str, ...] = ()


@dataclass(frozen=True)
class Verdict:
    """A claim's outcome ("holds", "fails" or "not decided"), and the figures that say so."""

    outcome: str
    text: str


@dataclass(frozen=True)
class Report:
    """A whole report."""

    title: str
    lead: str
    verdicts: tuple[Verdict, ...] = ()
    sections: tuple[Section, ...] = ()
    footer: str = ""


def write_report(report: Report, out: Path) -> Path:
    """Write `report.html` and its pictures as PNG files to a folder; returns the HTML file's path."""
    make_folder(out)
    drawn = {picture.name: png(picture.figure) for section in report.sections for picture in section.pictures}
    page = render_page("report.html", **vars(report), urls={name: data_url(raw, "png") for name, raw in drawn.items()})
    path = out / "report.html"
    pictures = {out / f"{name}.png": raw for name, raw in drawn.items()}
    write_files(pictures | {path: page.encode()})
    return path
