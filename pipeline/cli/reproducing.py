"""`dlth reproduce`: the paper's experiments by name, what was made of them, and whether that is whole."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from dlth.pipeline.cli import console
from dlth.pipeline.cli.options import Json, checked
from dlth.tickets.errors import shown

Patterns = Annotated[list[str] | None, typer.Argument(help="Rows, by name or as 'deit-s/*'; all if absent.")]
TERMINAL = ("row", "k", "epochs", "reference", "dense", "difference", "ticket", "random", "hours", "state")
"""Columns that a terminal shows; --json and the files have all."""


def list_(rows: Patterns = None, json: Json = False) -> None:
    """Show the paper's experiments: what each is, what it needs, and what it cannot do as the authors did."""
    from dlth.pipeline.reproduction.experiments import chosen

    wanted = chosen(rows or ["*"])
    if json:
        console.as_json({"experiments": [row.to_json() for row in wanted]})
        return
    lines = [
        (row.name, row.settings.get("model", "-"), row.rate or "-", row.k, row.epochs, row.batch, _reference(row))
        for row in wanted
    ]
    console.table("experiments of the paper", ("row", "model", "rate", "k", "epochs", "batch", "reference"), lines)
    for row in wanted if rows else ():
        for text in row.remarks:
            console.note(f"{row.name}: {text}")
    if missing := [row.name for row in wanted if row.missing]:
        console.note(f"cannot be run by this version: {', '.join(missing)}")


def check(
    folder: Annotated[Path, typer.Argument(help="A folder of `dlth reproduce`, or one bundle.")],
    markdown: Annotated[Path | None, typer.Option(help="Write the table to this file as Markdown.")] = None,
    csv: Annotated[Path | None, typer.Option(help="Write the table to this file as CSV.")] = None,
    json: Json = False,
) -> None:
    """Compute every number of the table anew from single images, and say which bundles are whole; needs no GPU and no
    images. Exit code 1 where one is damaged.
    """
    from dlth.pipeline.reproduction.check import check_bundles
    from dlth.pipeline.reproduction.experiments import EXPERIMENTS
    from dlth.pipeline.reproduction.table import as_csv, as_json, as_markdown, table
    from dlth.training.run_files import write_text

    bundles = check_bundles(folder)
    lines = table(EXPERIMENTS.values(), bundles)
    for path, text in ((markdown, as_markdown), (csv, as_csv)):
        if path is not None:
            write_text(path, text(lines))
    damage = [problem for bundle in bundles for problem in bundle.damage]
    facts = [
        {"bundle": bundle.folder.name, "row": bundle.row, "whole": not bundle.damage, "unlike": list(bundle.unlike)}
        for bundle in bundles
    ]
    if not json:
        for bundle in bundles:
            state = "damaged" if bundle.damage else "whole" + ("".join(f"; {text}" for text in bundle.unlike))
            console.write(f"{shown(bundle.folder.name)}: {shown(state, console.LONGEST)}")
        show_table([line for line in lines if line.state != "not run"] or lines)
    checked(damage, {"ok": not damage, "bundles": facts, "table": as_json(lines)}, json)


def show_table(lines: Sequence[Any]) -> None:
    """Print the table: numbers of complete bundles, the published ones beside them."""
    rows = [tuple(_cell(getattr(line, name)) for name in TERMINAL) for line in lines]
    console.table("the paper's experiments, top-1 in percent", TERMINAL, rows)


def _cell(value: object) -> object:
    return "-" if value is None else f"{value:.2f}" if isinstance(value, float) else value


def _reference(row: Any) -> str:
    return f"{row.reference.top1} {row.reference.source}" if row.reference is not None else "-"
