"""`dlth tickets stats`, `diff`, and the commands that make ticket files from ticket files.

Each parses, calls one library function and shows what came back. What writes takes `--dry-run` and never overwrites:
a command that was killed goes on where it was, and one that is run again finds its file done.
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from dlth.pipeline.cli import console
from dlth.pipeline.cli.flags import integer
from dlth.pipeline.cli.options import Classes, DryRun, File, Files, Json, Keep, Labelled, Out, Split, Tokens
from dlth.tickets import TicketStore, num_kept
from dlth.tickets.derive.draft import Draft
from dlth.tickets.errors import InputError, MissingFileError, shown
from dlth.tickets.format.provenance import all_alike
from dlth.tickets.user_files import named_lines

_CLASSES_SHOWN = 20


def opened(path: Path) -> TicketStore:
    """A file for one pass over its shards: no more than two are kept in memory."""
    return TicketStore(path, cache_shards=2)


def stats(
    file: File, data: Labelled = None, split: Split = None, keep: Keep = None, tokens: Tokens = None, json: Json = False
) -> None:
    """Coverage, centre bias, entropy of positions and fragile rows of a ticket file, by class where --data is given.

    Centre bias: how much more often than evenly the central quarter of the view is kept. Fragile: the score of the last
    patch kept is hardly above that of the next.
    """
    from dlth.tickets.statistics.stats import ticket_stats

    store = opened(file)
    classes = _classes(data, split, store)
    with console.counting("stats", len(store.shards), "shards", quiet=json) as counter:
        figures = ticket_stats(store, classes and classes.labels, _count(store, keep, tokens), progress=counter)
    if json:
        console.as_json(asdict(figures) | {"alike": figures.alike, "frequency": figures.frequency.round(6).tolist()})
        return
    part, patches = figures.overall, store.header.grid.num_patches
    fragile = ", ".join(f"{share:.2%} below {threshold:g}" for threshold, share in part.fragile.items())
    console.result(
        f"tickets of {shown(file)}, {figures.k} of {patches} patches",
        {
            "coverage": f"{part.num_tickets:,} of {figures.num_rows:,} images have a ticket, "
            f"{figures.num_skipped:,} skipped",
            "positions used": f"{figures.positions_used} of {patches}",
            "centre bias": f"{part.centre_bias:.3f} (1: the central quarter is kept as often as the rest)",
            "entropy of positions": f"{part.entropy_bits:.3f} bits, {part.entropy_share:.1%} of the most there can be",
            "fragile rows": f"gap {fragile}" + (f"; {figures.unscored:.1%} without scores" if figures.unscored else ""),
        },
    )
    if figures.alike:
        console.note(f"note: {all_alike(store.header, part.num_tickets, figures.k)}")
    if classes is not None:
        rows = [
            (classes.name(label), each.num_tickets, each.centre_bias, each.entropy_share, each.fragile[1e-4])
            for label, each in list(figures.classes.items())[:_CLASSES_SHOWN]
        ]
        console.table("by class", ("class", "tickets", "centre bias", "entropy share", "gap < 1e-4"), rows)
        _more(len(figures.classes))


def diff(
    first: Annotated[Path, typer.Argument(help="A ticket file.")],
    second: Annotated[Path, typer.Argument(help="Another one, about the same images in any packing.")],
    data: Labelled = None,
    split: Split = None,
    tokens: Annotated[
        list[int] | None,
        typer.Option(parser=integer, help="Compare this many best patches; may be given several times."),
    ] = None,
    worst: Annotated[int, typer.Option(parser=integer, help="Images to list, least overlap first.")] = 10,
    json: Json = False,
) -> None:
    """Overlap of two files' tickets at several sizes, rank correlation, spread, by class, and the worst images."""
    from dlth.tickets.statistics.compare import compare

    stores = opened(first), opened(second)
    classes = _classes(data, split, stores[0])
    with console.counting("diff", len(stores[0].shards), "shards", quiet=json) as counter:
        compared = compare(*stores, tuple(tokens) if tokens else None, classes and classes.labels, worst, counter)
    if json:
        console.as_json(asdict(compared))
        return
    console.result(
        f"{shown(first)} and {shown(second)}",
        {
            "compared": f"{compared.num_compared:,} images with a ticket in both files",
            "in one file alone": f"{compared.only_first:,} and {compared.only_second:,}",
            "other bytes": f"{compared.num_other_bytes:,} images (re-encoded, or no hash known)",
            "rank correlation": _correlation(compared.rank_correlation),
        },
    )
    columns = ("k", "mean", "std", "least", "5%", "median", "95%", "share", "chance")
    rows = [
        (each.k, *_rounded(each.iou), round(each.share.mean, 3), round(each.chance, 3)) for each in compared.overlaps
    ]
    console.table("intersection over union of the k best; share of a ticket in common", columns, rows)
    if classes is not None:
        by_class = sorted(compared.classes.items(), key=lambda item: item[1].iou.mean)[:_CLASSES_SHOWN]
        table = [(classes.name(label), each.iou.count, *_rounded(each.iou)[:2]) for label, each in by_class]
        console.table(f"by class, {compared.main_k} best, least first", ("class", "images", "IoU", "std"), table)
        _more(len(compared.classes))
    if compared.worst:
        listed = [(shown(row.key, 60), shown(row.shard, 60), round(row.iou, 3)) for row in compared.worst]
        console.table(f"least overlap, {compared.main_k} best", ("image", "shard", "IoU"), listed)


def merge(files: Files, out: Out, dry_run: DryRun = False, json: Json = False) -> None:
    """One file of the shards of several, made in the same way by different labs or machines."""
    from dlth.tickets.derive.edit import merge as merge_files

    write(merge_files([opened(path) for path in files]), out, dry_run, json)


def subset(
    file: File,
    out: Out,
    keys: Annotated[Path | None, typer.Option(help="A text file with the keys to keep, one a line.")] = None,
    keys_of: Annotated[
        Path | None, typer.Option(help="Keep the rows whose keys stand in this ticket file too.")
    ] = None,
    class_: Classes = None,
    data: Labelled = None,
    split: Split = None,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Some of a file's rows: by key, by class, or those that another file has too."""
    from dlth.tickets.derive import edit

    if sum(choice is not None for choice in (keys, keys_of, class_)) != 1:
        raise InputError("say which rows to keep with one of --keys, --keys-of and --class")
    store = opened(file)
    if keys is not None:
        draft = edit.subset_by_keys(store, _keys(keys, store))
    elif keys_of is not None:
        draft = edit.common_rows(store, opened(keys_of))
    else:
        from dlth.data.joining.row_labels import class_number

        classes = _classes(data, split, store)
        if classes is None:
            raise InputError("--class needs --data: the labels stand in the shards, not in the ticket file")
        numbers = [class_number(text, classes.names) for text in class_ or ()]
        draft = edit.subset_by_classes(store, numbers, classes.labels)
    write(draft, out, dry_run, json)


def union(
    files: Files, out: Out, keep: Keep = None, tokens: Tokens = None, dry_run: DryRun = False, json: Json = False
) -> None:
    """Tickets of what any of the files ranks high: the union of their n best patches is a prefix, for every n."""
    from dlth.tickets.derive.algebra import union as unite

    stores = [opened(path) for path in files]
    write(unite(stores, _count(stores[0], keep, tokens)), out, dry_run, json)


def intersect(
    files: Files, out: Out, keep: Keep = None, tokens: Tokens = None, dry_run: DryRun = False, json: Json = False
) -> None:
    """Tickets of what all files rank high: the intersection of their n best patches is a prefix, for every n."""
    from dlth.tickets.derive.algebra import intersection

    stores = [opened(path) for path in files]
    write(intersection(stores, _count(stores[0], keep, tokens)), out, dry_run, json)


def inverse(file: File, out: Out, dry_run: DryRun = False, json: Json = False) -> None:
    """Tickets of exactly the patches that a file's tickets leave out, the worst first."""
    from dlth.tickets.derive.algebra import inverse as invert

    write(invert(opened(file)), out, dry_run, json)


def control(
    file: File,
    out: Out,
    kind: Annotated[str, typer.Option(help="One of random, centre, edges, inverse, other-image.")],
    seed: Annotated[int, typer.Option(parser=integer, help="Seed of random and other-image.")] = 0,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """A control: as many patches of the same images, chosen at random, by place, backwards, or by another image."""
    from dlth.tickets.derive.controls import control as make_control

    write(make_control(opened(file), kind, seed), out, dry_run, json)  # type: ignore[arg-type]


def write(draft: Draft, out: Path, dry_run: bool, json: bool, facts: dict[str, object] | None = None) -> None:
    """Write a draft and say what it is; with `dry_run` only say it."""
    header = draft.header
    told: dict[str, Any] = {
        "file": str(out),
        "made by": header.extensions["derived"]["operation"],
        "rows": draft.num_rows,
        "shards": len(draft.shards),
        "kept": f"{header.k} of {header.grid.num_patches} patches, form {header.form}",
        **(facts or {}),
    }
    if dry_run:
        console.result("dry run: nothing is written", told, json)
        return
    with console.counting("write", len(draft.shards), "shards", quiet=json) as counter:
        store = draft.write(out, counter)
    told["identity"] = store.identity
    if json:
        console.as_json(told)
        return
    for name, value in (facts or {}).items():
        console.note(f"{name}: {value}")
    console.note(
        f"{shown(out)}: {store.num_rows:,} rows in {len(store.shards):,} shards, {header.k} of"
        f" {header.grid.num_patches} patches kept; its identity is {store.identity}"
    )


def _rounded(spread: Any) -> list[float]:
    """Mean, standard deviation, least, 5th, 50th and 95th percentile."""
    return [round(value, 3) for name, value in vars(spread).items() if name != "count"]


def _correlation(spread: Any) -> str:
    if spread is None:
        return "needs all patches ranked in both files"
    return f"{spread.mean:.3f} ± {spread.std:.3f}, least {spread.least:.3f} (Spearman's, all patches)"


def _count(store: TicketStore, keep: str | None, tokens: int | None) -> int | None:
    """The number of patches that --keep or --tokens asks for."""
    if keep is not None and tokens is not None:
        raise InputError("--keep and --tokens say the same thing; give one of them")
    return tokens if keep is None else num_kept(keep, store.header.grid.num_patches)


def _classes(data: str | None, split: str | None, store: TicketStore) -> Any:
    if data is None:
        return None
    from dlth.data.joining.row_labels import row_classes

    classes = row_classes(data, split, store)
    console.note(classes.coverage)
    return classes


def _keys(path: Path, store: TicketStore) -> Sequence[str]:
    """A list of keys, bounded by what the file can have of them; room is left for empty lines and keys named twice."""
    lines = 2 * store.num_rows + 1_000
    try:
        return named_lines(path, lines * (store.layout.key_width + 2), lines, "list of keys")
    except MissingFileError as error:
        raise InputError(f"{shown(path)} cannot be read as a list of keys: {error}") from error


def _more(total: int) -> None:
    if total > _CLASSES_SHOWN:
        console.note(f"{total - _CLASSES_SHOWN} more classes; --json lists all")
