"""`dlth reproduce`: the paper's experiments by name, what was made of them, and whether that is whole."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from dlth.pipeline.cli import console
from dlth.pipeline.cli.exit_codes import EXIT_INPUT
from dlth.pipeline.cli.flags import with_flags
from dlth.pipeline.cli.options import DryRun, Json, checked
from dlth.pipeline.reproduction.reproduce_config import ReproduceConfig
from dlth.tickets.errors import InputError, shown
from dlth.training.distributed.signals import EXIT_RESUMABLE

Patterns = Annotated[list[str] | None, typer.Argument(help="Rows, by name or as 'deit-s/*'; all if absent.")]
COLUMNS = ("row", "mode", "k", "weights", "reference", "dense", "difference", "ticket", "hours", "state")
"""Columns that a terminal shows; --json and the files have all."""
HEADS = ("row", "mode", "k", "weights", "published", "dense", "differs", "ticket", "hours", "state")


class RowsOrCommand(TyperGroup):
    """Rows of the table may stand where a command's name would: then they are to be run."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """The words after `reproduce`, with the name of the command that they mean."""
        named = not args or args[0] in (*self.commands, *self.get_help_option_names(ctx))
        return super().parse_args(ctx, args if named else ["run", *args])


def list_(rows: Patterns = None, json: Json = False) -> None:
    """Show the paper's experiments: what each is, what it needs, and what it cannot do as the authors did."""
    from dlth.pipeline.reproduction.experiments import chosen

    wanted = chosen(rows or ["*"])
    if json:
        console.as_json({"experiments": [row.to_json() for row in wanted]})
        return
    lines = [(row.name, row.k or "-", row.epochs or "-", row.batch or "-", _reference(row)) for row in wanted]
    console.write(console.aligned(("row", "patches", "epochs", "batch", "published top-1"), lines))
    for row in wanted if rows else ():
        for text in row.remarks:
            console.note(f"{row.name}: {text}")
    if missing := [row.name for row in wanted if row.missing]:
        console.note(f"cannot be run by this version: {', '.join(missing)}")


@with_flags(ReproduceConfig)
def run(
    overrides: dict[str, Any],
    rows: Annotated[list[str], typer.Argument(help="Rows, by name or as 'deit-s/*' (in quotes).")],
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Run rows with the paper's recipe and length: selectors and tickets where they are missing, students, bundles.

    The word run may be left out. The same command goes on where an earlier one ended; students may be shared by any
    number of processes that run it.
    """
    from dlth.pipeline.cli.study_progress import study_progress
    from dlth.pipeline.cli.training import ConsoleReporter
    from dlth.pipeline.reproduction.experiments import chosen
    from dlth.pipeline.reproduction.reproduce import Listener, Reproduction
    from dlth.training.settings.layering import checked as settled

    config = settled(ReproduceConfig, overrides)
    listener = Listener(
        console.note,
        ConsoleReporter(json, command="dlth train-selector"),
        partial(study_progress, quiet=json),
        partial(console.counting, quiet=json),
    )
    asked = Reproduction.of(config, chosen(rows), listener)
    for text in asked.to_make():
        console.note(f"first: {text}")
    if dry_run:
        _show_plan(asked, json)
        return
    came = asked.run()
    if not json:
        for folder in came.bundles:
            console.note(f"bundle: {shown(folder)}")
        for state in came.failed:
            console.note(f"failed: {shown(state.name)}: {state.problem}")
    _show_bundles(Path(config.out), {row.name for row in asked.rows}, json)
    raise typer.Exit(EXIT_RESUMABLE if came.stopped else EXIT_INPUT if came.failed else 0)


def _show_plan(asked: Any, json: bool) -> None:
    """Print what rows will cost; those whose tickets are not there are counted with random patches."""
    from dlth.pipeline.cli.study_command import show_plan

    show_plan(asked.study, asked.foreseen(), json)


def _show_bundles(folder: Path, rows: set[str], json: bool) -> None:
    """Print the table of the rows that were asked for, and what became of trials at a smaller scale."""
    from dlth.pipeline.reproduction.check import check_bundles
    from dlth.pipeline.reproduction.experiments import EXPERIMENTS
    from dlth.pipeline.reproduction.table import as_json, table

    bundles = check_bundles(folder) if any((folder / "bundles").glob("*/bundle.json")) else ()
    bundles = tuple(bundle for bundle in bundles if bundle.row in rows)
    lines = table([row for name, row in EXPERIMENTS.items() if name in rows], bundles)
    if json:
        console.as_json({"out": str(folder), "table": as_json(lines)})
        return
    _show_each(bundles)
    _show_table(lines)


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
    for path, ending, text in ((markdown, ".md", as_markdown), (csv, ".csv", as_csv)):
        if path is not None and path.suffix != ending:  # it could take any other file's place
            raise InputError(f"--{'csv' if path == csv else 'markdown'} {shown(path)}: its name must end in {ending}")
        if path is not None:
            write_text(path, text(lines))
    damage = [problem for bundle in bundles for problem in bundle.damage]
    facts = [
        {"bundle": bundle.folder.name, "row": bundle.row, "whole": not bundle.damage, "unlike": list(bundle.unlike)}
        for bundle in bundles
    ]
    if not json:
        _show_each(bundles)
        _show_table([line for line in lines if line.state not in ("not run", "cannot be run")])
        console.note(f"not run: {sum(line.state == 'not run' for line in lines)} rows; `dlth reproduce list` has them")
    checked(damage, {"ok": not damage, "bundles": facts, "table": as_json(lines)}, json)


def _show_each(bundles: Sequence[Any]) -> None:
    """Print what each bundle is."""
    for bundle in bundles:
        console.write(f"{shown(bundle.folder.name)}: {shown(bundle.text, console.LONGEST)}")


def _show_table(lines: Sequence[Any]) -> None:
    """Print the table: numbers of complete bundles, top-1 in percent, the published ones beside them."""
    rows = [tuple(_cell(getattr(line, name)) for name in COLUMNS) for line in lines]
    console.write(console.aligned(HEADS, rows))


def _cell(value: object) -> str:
    return "-" if value in (None, "") else f"{value:.2f}" if isinstance(value, float) else str(value)


def _reference(row: Any) -> str:
    return f"{row.reference.top1} {row.reference.source}" if row.reference is not None else "-"
