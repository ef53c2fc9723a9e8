"""`dlth tickets shrink`, `pack`, `unpack`, `push`, `pull` and `sign`: ticket files on their way to other labs."""

from pathlib import Path
from typing import Annotated, Any

import typer

from dlth.pipeline.cli import console
from dlth.pipeline.cli.options import DryRun, File, Json, Out
from dlth.pipeline.cli.ticket_tools import write
from dlth.tickets import TicketStore
from dlth.tickets.errors import InputError, shown
from dlth.tickets.exchange.archive import Archive, pack_into
from dlth.tickets.exchange.archive import unpack as unpack_archive
from dlth.tickets.store.disk import new_file
from dlth.tickets.store.kinds import open_file
from dlth.tickets.store.label_store import LabelStore

Packed = Annotated[Path, typer.Argument(help="The packed ticket file (tickets.zarr.zip).")]


def shrink(
    file: File,
    out: Out,
    form: Annotated[str, typer.Option(help="top: the best patches in order. mask: the best patches as a set.")],
    keep: Annotated[str | None, typer.Option(help="Share of all patches to keep; the file's own if not given.")] = None,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Write the same tickets in a smaller form; what that form cannot give any more is said and stands in the file."""
    from dlth.tickets.derive.shrink import SMALL_FORMS
    from dlth.tickets.derive.shrink import shrink as shrunk

    if form not in SMALL_FORMS:
        raise InputError(f"--form {shown(form)!r}: must be one of {', '.join(SMALL_FORMS)}")
    draft = shrunk(TicketStore(file), form, keep)
    write(draft, out, dry_run, json, {"cannot give": "; ".join(draft.header.lost)})


def pack(
    file: File,
    out: Annotated[Path | None, typer.Option(help="The zip to write (<FILE>.zip if not given).")] = None,
    card: Annotated[bool, typer.Option(help="Write a README.md for data hubs beside it.")] = True,
    json: Json = False,
) -> None:
    """Make one file of a ticket file, to send: the same bytes for the same tickets, from everyone."""
    from dlth.data.sharing.share import CARD, put_beside
    from dlth.tickets.exchange.card import card as card_text

    store = open_file(file)
    target = out or store.path.with_name(f"{store.path.name}.zip")
    with console.counting("pack", store.num_files, "files", quiet=json) as counter, new_file(target) as packed:
        pack_into(packed, store, counter)
        size = packed.tell()
        # before the file has its name, so that a card for which there is no room bars no second try
        if card and not isinstance(store, LabelStore):
            text = card_text(store, target.name, size).encode()
            put_beside(str(target.absolute().parent / CARD), text, console.note)
    _say({"file": str(target), "bytes": size, "identity": store.identity}, json)


def unpack(
    file: Packed,
    out: Annotated[Path | None, typer.Option(help="The ticket file to write (<FILE> without .zip).")] = None,
    json: Json = False,
) -> None:
    """Check every byte of a packed ticket file, then write it as a folder."""
    if out is None and file.suffix != ".zip":
        raise InputError(f"{shown(file)} does not end in .zip: say where to unpack it (--out)")
    target = out or file.with_suffix("")
    with Archive(file) as archive, console.counting("unpack", 2 * archive.num_files, "files", quiet=json) as counter:
        store = unpack_archive(archive, target, counter)
    _say({"file": str(target), "rows": store.num_rows, "identity": store.identity}, json)


def push(
    file: Annotated[Path, typer.Argument(help="The ticket file, a folder or packed.")],
    to: Annotated[str, typer.Argument(help="Folder or .zip address: hf://datasets/lab/name, s3://…, gs://…, a path.")],
    json: Json = False,
) -> None:
    """Send a ticket file with its card, and its signature if there is one; nothing is overwritten."""
    from dlth.data.sharing.share import push as send

    with console.counting("push", 0, "bytes", quiet=json) as counter:
        sent = send(file, to, console.note, counter)
    facts = {"url": sent.url, "bytes": sent.num_bytes, "identity": sent.identity, "beside": list(sent.beside)}
    if json:
        console.as_json(facts | {"pinned": sent.pinned})
        return
    beside = ", ".join(map(shown, sent.beside)) or "nothing beside"
    console.note(f"{sent.num_bytes:,} bytes sent, with {beside}. To fetch it:")
    console.write(f"dlth tickets pull {shown(sent.pinned, console.LONGEST)}")


def pull(
    address: Annotated[str, typer.Argument(help="Address of a packed ticket file; #identity=… takes that one alone.")],
    out: Annotated[
        Path | None, typer.Option(help="The ticket file to write, a folder; packed if it ends in .zip.")
    ] = None,
    json: Json = False,
) -> None:
    """Fetch a ticket file, going on where a broken transfer stopped; it gets its name once all of it was checked."""
    from dlth.data.sharing.share import pinned
    from dlth.data.sharing.share import pull as fetch

    url = pinned(address)[0].partition("?")[0]
    target = out or Path(url.rpartition("/")[2].removesuffix(".zip") or "tickets.zarr")
    with console.counting("pull", 0, "bytes", quiet=json) as counter:
        identity = fetch(address, target, counter, console.note)
    _say({"file": str(target), "identity": identity}, json)


def sign(
    file: File,
    key: Annotated[Path, typer.Option(help="Private key, PEM, elliptic curve; its password in $DLTH_KEY_PASSWORD.")],
    out: Annotated[Path | None, typer.Option(help="The signature to write (<FILE>.sig if not given).")] = None,
    json: Json = False,
) -> None:
    """Sign a ticket file with a key; the signature lies beside it, its identity stays what it is."""
    from dlth.data.sharing import signing

    store = open_file(file)
    target = out or signing.beside(store.path)
    signing.sign(store, key, target)
    _say({"signature": str(target), "identity": store.identity}, json)


def fetched(*specs: str | None) -> None:
    """Bring tickets that are named by address into the cache, with progress, before something needs them."""
    from dlth.data.remote.addresses import is_remote
    from dlth.data.sharing.ticket_cache import local_tickets

    for spec in specs:
        if spec is not None and is_remote(spec):
            with console.counting("tickets", 0, "bytes") as counter:
                local_tickets(spec, counter)


def _say(facts: dict[str, Any], json: bool) -> None:
    console.result(str(next(iter(facts.values()))), facts, json)
