"""`dlth tickets export`, `import`, `match` and `remap`: tickets in other formats and for other packings."""

from pathlib import Path
from typing import Annotated, Any

import typer

from dlth.pipeline.cli import console
from dlth.pipeline.cli.flags import integer
from dlth.pipeline.cli.options import DryRun, File, Json, Out, Shards, Split
from dlth.pipeline.cli.ticket_tools import opened, write
from dlth.tickets import Grid, num_kept
from dlth.tickets.ascii_digits import is_digits
from dlth.tickets.errors import InputError, shown

FORMATS = {".npz": "npz", ".parquet": "parquet", ".json": "coco"}


def export(
    file: File,
    to: Annotated[Path, typer.Argument(help="The file to write: .npz, .parquet or .json (COCO masks).")],
    format_: Annotated[
        str | None, typer.Option("--format", help="npz, parquet or coco; by the file's ending if not given.")
    ] = None,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Write the tickets for other tools: numpy arrays, a Parquet table, or COCO masks of the kept patches."""
    from dlth.data.sharing.parquet import export_parquet
    from dlth.tickets.exchange.coco import export_coco
    from dlth.tickets.exchange.npz import export_npz
    from dlth.tickets.store.disk import refuse_existing

    writers = {"npz": export_npz, "parquet": export_parquet, "coco": export_coco}
    chosen = _format(to, format_)
    store = opened(file)
    refuse_existing(to)
    facts = {"file": str(to), "format": chosen, "rows": store.num_rows, "of": store.identity}
    if not dry_run:
        with console.counting("export", len(store.shards), "shards", quiet=json) as counter:
            writers[chosen](store, to, counter)
        facts["bytes"] = to.stat().st_size
    console.result("dry run: nothing is written" if dry_run else "dlth tickets export", facts, json)


def import_(
    source: Annotated[Path, typer.Argument(help="An .npz or .parquet file with keys and rankings or masks.")],
    out: Out,
    grid: Annotated[str | None, typer.Option(help="Rows and columns of patches, e.g. 14x14.")] = None,
    patch_size: Annotated[
        int | None, typer.Option(parser=integer, help="Side of a patch in pixels of the view.")
    ] = None,
    keep: Annotated[str | None, typer.Option(help="Share of all patches that a ticket keeps (rankings).")] = None,
    tokens: Annotated[int | None, typer.Option(parser=integer, help="The same as a number of patches.")] = None,
    view: Annotated[str | None, typer.Option(help="Frame of the patches: whole image, or center crop.")] = None,
    crop_pct: Annotated[str, typer.Option(help="Share of the shorter side in a center crop.")] = "1",
    selector: Annotated[str, typer.Option(help="What chose the patches.")] = "",
    dataset: Annotated[str, typer.Option(help="Name of the data set.")] = "",
    split: Annotated[str, typer.Option(help="Its split.")] = "",
    creator: Annotated[str, typer.Option(help="Who made them.")] = "",
    license_: Annotated[str, typer.Option("--license", help="Licence of the tickets.")] = "",
    shard_rows: Annotated[
        int, typer.Option(parser=integer, help="Rows of a shard, where the file has no shards of its own.")
    ] = 1_000,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Make a ticket file of a lab's own rankings or masks; every row is checked. Nothing in the file is unpickled."""
    from dlth.data.sharing.parquet import ParquetTable
    from dlth.tickets.exchange.imports import ImportOptions, Table, import_draft
    from dlth.tickets.exchange.npz import NpzTable

    readers: dict[str, Any] = {"npz": NpzTable, "parquet": ParquetTable}
    chosen = _format(source, None)
    if chosen not in readers:
        raise InputError(f"{shown(source)}: rows are imported from .npz and .parquet files")
    table: Table = readers[chosen](source)
    cells = _grid(grid) or (table.header.grid if table.header else None)
    if keep is not None and (tokens is not None or cells is None):
        raise InputError("--keep needs --grid, and cannot stand beside --tokens, which says the same")
    k = num_kept(keep, cells.num_patches) if keep is not None and cells is not None else tokens
    options = ImportOptions(_grid(grid), patch_size, k, view, crop_pct, selector, dataset, split, creator, license_)
    write(import_draft(table, options, shard_rows), out, dry_run, json)


def match(
    file: File,
    data: Shards,
    split: Split = None,
    all_: Annotated[bool, typer.Option("--all", help="Read every image and not a sample of a thousand.")] = False,
    json: Json = False,
) -> None:
    """How many images of differently packed shards the tickets serve, and how each was found."""
    from dlth.data.joining.remap import match as find
    from dlth.data.shards.index import open_index

    store, index = opened(file), open_index(data, split=split)
    with console.counting("match", index.num_samples, quiet=json) as counter:
        matched = find(index, store, all_, counter)
    facts = _facts(matched)
    if json:
        console.as_json(facts | {"examples": list(matched.examples)})
        return
    console.result(f"{shown(file)} for the images of {shown(data)}", facts)
    _warn(matched)


def remap(
    file: File,
    data: Shards,
    out: Out,
    split: Split = None,
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="Leave images without a ticket out instead of refusing.")
    ] = False,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Write the ticket file for another packing of the same images: its shards, order, keys and hashes."""
    from dlth.data.joining.remap import remap as remap_rows
    from dlth.data.shards.index import open_index

    store, index = opened(file), open_index(data, split=split)
    with console.counting("match", index.num_samples, quiet=json) as counter:
        draft, matched = remap_rows(index, store, allow_missing, counter)
    _warn(matched)
    write(draft, out, dry_run, json, _facts(matched))


def _facts(matched: Any) -> dict[str, object]:
    """What a match found, for a person and for a script."""
    ways = {f"by {way}": count for way, count in matched.counts.items() if way != "none"}
    return {
        "images": len(matched.ticket_row),
        "matched": matched.num_matched,
        **ways,
        "without a row": len(matched.ticket_row) - matched.num_matched,
        "rows of the file": matched.num_rows,
        "images read": int(matched.read.sum()),
        "same bytes": matched.identical,
        "other bytes": matched.re_encoded,
        "row without a hash": matched.unknown,
        "running numbers not believed": matched.distrusted,
        "base names that are not unique": matched.ambiguous,
    }


def _warn(matched: Any) -> None:
    if matched.re_encoded:
        named = ", ".join(shown(key, 60) for key in matched.examples)
        console.note(
            f"warning: {matched.re_encoded:,} of the {int(matched.read.sum()):,} images read have other bytes than "
            f"those the tickets were made from (re-encoded or resized) and were matched by name alone: {named}. Their "
            "tickets lie in the originals' view: right for copies of the same frame, wrong for crops."
        )
    if matched.distrusted:
        console.note(
            f"warning: {matched.distrusted:,} keys are running numbers that stand in the file for other images' bytes; "
            "they were not believed"
        )


def _format(path: Path, given: str | None) -> str:
    chosen = given or FORMATS.get(path.suffix.lower(), "")
    if chosen not in FORMATS.values():
        raise InputError(
            f"{shown(path)}: the format is one of {', '.join(FORMATS.values())}; give --format or such an ending"
        )
    return chosen


def _grid(text: str | None) -> Grid | None:
    if text is None:
        return None
    rows, cross, cols = text.lower().partition("x")
    if not (cross and is_digits(rows) and is_digits(cols)):
        raise InputError(f"--grid {shown(text)!r}: expected rows x columns, e.g. 14x14")
    return Grid(int(rows), int(cols))
