"""`dlth report`: what studies and runs came to, as one page, and as tables for scripts."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from dlth.pipeline.cli import console
from dlth.pipeline.cli.options import Json
from dlth.tickets.errors import InputError, shown
from dlth.tickets.store.disk import user_path


def report(
    folders: Annotated[list[str], typer.Argument(metavar="DIR…", help="Folders of studies, of runs, or of one run.")],
    out: Annotated[
        Path, typer.Option(help="The page; tables and pictures go beside it, to NAME.json and NAME_files.")
    ] = Path("report.html"),
    title: Annotated[str, typer.Option(help="What stands above it; the studies' names if not given.")] = "",
    margin: Annotated[
        float | None,
        typer.Option(help="Points within which two arms count as equally good; the study's, or 1, if not given."),
    ] = None,
    val: Annotated[str | None, typer.Option(help="Shards of the validation images, to draw tickets on them.")] = None,
    val_split: Annotated[str | None, typer.Option(help="Their split of an _info.json.")] = None,
    val_tickets: Annotated[
        str | None, typer.Option(help="Their ticket file, which the runs were evaluated on.")
    ] = None,
    other_tickets: Annotated[
        str | None, typer.Option(help="Tickets of the same images by another selector, to draw where the two differ.")
    ] = None,
    json: Json = False,
) -> None:
    """Verdicts, tables and curves of studies and runs: one HTML page that needs no network, CSV and JSON."""
    from dlth.pipeline.evidence.gather import gather
    from dlth.pipeline.evidence.validation_images import ValidationImages
    from dlth.pipeline.pages.report import files_folder
    from dlth.pipeline.reports.report import verdicts_of, write_report
    from dlth.pipeline.reports.verdicts import as_verdicts

    if (val is None) != (val_tickets is None) or (other_tickets is not None and val is None):
        raise InputError("tickets are drawn on images: give both --val SHARDS and --val-tickets FILE")
    evidence = gather([user_path(folder) for folder in folders], console.note)
    if val is not None and val_tickets is not None:
        evidence = replace(evidence, images=ValidationImages.open(val, val_tickets, val_split, other_tickets))
    written = write_report(evidence, out, title, margin)
    if json:
        verdicts = [verdict.plain for verdict in as_verdicts(verdicts_of(evidence, margin))]
        console.as_json({"page": written, "files": files_folder(written), "verdicts": verdicts})
        return
    console.note(
        f"{len(evidence.all_runs)} runs: {shown(written)}; tables and pictures in {shown(files_folder(written))}"
    )
