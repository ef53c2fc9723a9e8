"""A report as one HTML file that needs no network: text, tables and pictures as values, a template that draws them.

The pictures are also written as PNG files beside it, for a README or a talk. Text is escaped by the template, because
keys and names come from files that others made.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from dlth.pipeline.figures import png
from dlth.pipeline.page import data_url, render_page
from dlth.tickets.disk import make_folder, write_files


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
    sections = []
    for section in report.sections:
        pictures = []
        for picture in section.pictures:
            data = png(picture.figure)
            write_files({out / f"{picture.name}.png": data})
            pictures.append({"data": data_url(data, "png"), "caption": picture.caption})
        sections.append(
            {
                "title": section.title,
                "texts": section.texts,
                "tables": section.tables,
                "pictures": pictures,
                "commands": section.commands,
            }
        )
    page = render_page(
        "report.html",
        title=report.title,
        lead=report.lead,
        verdicts=report.verdicts,
        sections=sections,
        footer=report.footer,
    )
    path = out / "report.html"
    write_files({path: page.encode()})
    return path
