"""`dlth tickets …`: look at a ticket file, check it."""

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from dlth.pipeline.cli import console
from dlth.pipeline.cli.options import File, Json, checked
from dlth.tickets import TicketStore
from dlth.tickets.ascii_digits import ascii_only
from dlth.tickets.callbacks import Progress
from dlth.tickets.errors import DamageError, DlthError, InputError, SignatureError, shown
from dlth.tickets.format import provenance
from dlth.tickets.store.kinds import open_file
from dlth.tickets.store.label_store import LabelStore
from dlth.tickets.store.stored_file import StoredFile


def info(
    file: File,
    key: Annotated[str | None, typer.Option(help="Draw this image's ticket instead of the first one's.")] = None,
    json: Json = False,
) -> None:
    """Show what a ticket file is: header, coverage, and one image's ticket drawn."""
    store = open_file(file)
    facts = describe_labels(store) if isinstance(store, LabelStore) else describe(store)
    if json:
        console.as_json(facts | {"header": store.header.to_json()})
        return
    console.result(f"{store.NOUN} file {shown(file)}", facts)
    if isinstance(store, LabelStore):
        return
    if not key and store.num_skipped == store.num_rows:
        console.note("every image was skipped as a bad one: there is no ticket to draw")
        return
    shard, row = store.find(key) if key else _first_ticket(store)
    rows = store.read(shard)
    shades = "■ kept" if store.header.form == "mask" else "■ the best third … □ the last"
    console.write(f"\nticket of {shown(rows.keys[row])} ({store.header.k} patches, {shades}):")
    console.write(draw(rows.patches[row], store))


def verify(
    file: File,
    subset: Annotated[str | None, typer.Option(help="Check part N of T of the shards only, e.g. 1/10.")] = None,
    key: Annotated[Path | None, typer.Option(help="Check the signature too, with this public key (PEM).")] = None,
    signature: Annotated[Path | None, typer.Option(help="The signature (<FILE>.sig if not given).")] = None,
    json: Json = False,
) -> None:
    """Read every byte of a ticket file and check it; exit code 1 and the damage's name if something is wrong."""
    part = _part(subset)
    damage: list[DlthError]
    notes: list[str] = []
    try:
        store = open_file(file)
        with console.counting("verify", len(store.shards), "shards", quiet=json) as counter:
            damage = [*_signature(store, key, signature), *_findings(store, counter, part, notes)]
        identity, rows = store.identity, store.num_rows
    except DamageError as error:
        damage, identity, rows = [error], "", 0
    checked(
        damage, {"ok": not damage, "identity": identity, "rows": rows, "subset": subset, "notes": notes}, json, notes
    )
    if not json:
        signed = f" and signed with {shown(key)}" if key else ""
        console.note(
            f"{shown(file)} is whole{signed}: {rows:,} rows in {len(store.shards):,} shards, identity {identity}"
        )


def _findings(
    store: TicketStore | LabelStore, counter: Progress, part: tuple[int, int] | None, notes: list[str]
) -> list[DamageError]:
    """What the full check of a file says; of tickets also what is odd."""
    if isinstance(store, LabelStore):
        return store.verify(counter, part)
    return store.verify(counter, part, notes.append)


def _signature(store: StoredFile, key: Path | None, signature: Path | None) -> list[SignatureError]:
    """What is wrong with the signature, where one is to be checked."""
    if key is None:
        if signature is not None:
            raise InputError("--signature needs --key, the public key of whoever signed")
        return []
    from dlth.data.sharing import signing

    try:
        signing.check_signature(store, key, signature or signing.beside(store.path))
    except SignatureError as error:
        return [error]
    return []


def describe(store: TicketStore) -> dict[str, Any]:
    """The facts of a ticket file that a person asks for first."""
    header = store.header
    skipped = sum(shard.skipped for shard in store.shards)
    patches = header.grid.num_patches
    return {
        "identity": store.identity,
        "tickets are": provenance.describe(header),
        "format": f"{header.format} {header.version}, form {header.form}",
        "dataset": " ".join(part for part in (header.dataset.name, header.dataset.split) if part) or "-",
        "coverage": f"{store.num_rows - skipped:,} of {store.num_rows:,} images have a ticket, {skipped:,} skipped",
        "shards": len(store.shards),
        "grid": f"{header.grid.rows}x{header.grid.cols} patches of {header.patch_size} px",
        "kept": f"{header.k} of {patches} patches (keep {header.keep}, stage keep {header.stage_keep[:6] or '-'})",
        "stored": {
            "full": "all patches, best first",
            "top": f"the {header.k} best, best first",
            "mask": f"the {header.k} best, without order",
        }[header.form],
        **({"cannot give": "; ".join(header.lost)} if header.lost else {}),
        "view": f"{header.view.kind}, {header.view.height}x{header.view.width}, {header.view.interpolation}",
        "selector": f"{header.selector.model}, weights {header.selector.weights_sha256[:16]}"
        f" ({shown(header.selector.weights_source)})",
        **({"ranker": provenance.ranker_of(header)} if header.selector.heads != "none" else {}),
        "selection blocks": ", ".join(map(str, header.selector.blocks)),
        "precision": f"{header.selector.block_dtype} blocks, {header.selector.score_dtype} scores",
        "made with": ", ".join(f"{shown(name)} {shown(text)}" for name, text in header.versions.items()),
        "creator": shown(header.creator) or "-",
        "licence": shown(header.license) or "-",
    }


def describe_labels(store: LabelStore) -> dict[str, Any]:
    """The facts of a token label file that a person asks for first."""
    header, sound = store.header, store.num_rows - store.num_skipped
    source = shown(header.annotator.weights_source)
    return {
        "identity": store.identity,
        "labels are": f"{shown(header.annotator.model)}, weights {header.annotator.weights_sha256[:16] or 'unknown'}"
        f" ({source})",
        "format": f"{header.format} {header.version}",
        "dataset": " ".join(part for part in (header.dataset.name, header.dataset.split) if part) or "-",
        "coverage": f"{sound:,} of {store.num_rows:,} images have labels, {store.num_skipped:,} skipped",
        "shards": len(store.shards),
        "grid": f"{header.grid.rows}x{header.grid.cols} cells",
        "stored": f"the {header.num_best} best of {header.num_classes} classes of each cell, and their scores",
        "view": f"{header.view.kind}, {header.view.height}x{header.view.width}, {header.view.interpolation}",
        "precision": header.annotator.dtype,
        "made with": ", ".join(f"{shown(name)} {shown(text)}" for name, text in header.versions.items()),
        "creator": shown(header.creator) or "-",
        "licence": shown(header.license) or "-",
    }


def draw(ranking: np.ndarray, store: TicketStore) -> str:
    """A ticket as text, one character a patch: shade is order where there is one, a dot is a patch that is not kept."""
    grid, k = store.header.grid, store.header.k
    cells = np.full(grid.num_patches, "· ")
    shades = ("■ ",) if store.header.form == "mask" else ("■ ", "▣ ", "□ ")
    for position, patch in enumerate(ranking[:k]):
        cells[patch] = shades[position * len(shades) // k]
    return "\n".join("  " + "".join(row).rstrip() for row in cells.reshape(grid.rows, grid.cols))


def _first_ticket(store: TicketStore) -> tuple[int, int]:
    for shard in range(len(store.shards)):
        good = np.flatnonzero(~store.read(shard).skipped)
        if len(good):
            return shard, int(good[0])
    return 0, 0


def _part(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    try:
        part, total = (int(ascii_only(number)) for number in text.split("/"))
    except ValueError as error:
        raise InputError(f"--subset {shown(text)!r}: expected N/T, e.g. 1/10.") from error
    if not 1 <= part <= total:
        raise InputError(f"--subset {shown(text)}: N must lie between 1 and T.")
    return part, total
