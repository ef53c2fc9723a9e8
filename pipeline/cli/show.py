"""`dlth tickets show`: look at tickets on their images, and at where two ticket files differ."""

from pathlib import Path
from typing import Annotated

import typer

from dlth.pipeline.cli import console
from dlth.pipeline.cli.flags import integer
from dlth.pipeline.cli.options import Classes, File, Json, Shards, Split
from dlth.pipeline.cli.ticket_info import describe
from dlth.tickets import TicketStore
from dlth.tickets.errors import shown


def show(
    file: File,
    data: Shards,
    out: Annotated[Path, typer.Option(help="Folder for gallery.html and the sheets.")] = Path("gallery"),
    split: Split = None,
    keys: Annotated[list[str] | None, typer.Option(help="Show these images; may be given several times.")] = None,
    class_: Classes = None,
    num: Annotated[
        int, typer.Option(parser=integer, help="Images to show, at most; evenly spread, or the least agreeing.")
    ] = 60,
    against: Annotated[
        Path | None, typer.Option(help="A second ticket file: show where the two differ, least overlap first.")
    ] = None,
    keep: Annotated[
        str | None, typer.Option(help="Share of the patches kept at first; the file's own if not given.")
    ] = None,
    sheets: Annotated[bool, typer.Option(help="Draw PNG sheets beside the page.")] = True,
    json: Json = False,
) -> None:
    """Draw tickets on their images: one HTML page that needs no network, and PNG sheets."""
    from dlth.data.shards.index import open_index

    stores = [TicketStore(path) for path in (file, against) if path is not None]
    index = open_index(data, split=split)
    from dlth.pipeline.pages.gallery import write_gallery  # images are decoded by torchvision
    from dlth.pipeline.pages.show import Choice, gallery_of

    choice = Choice(num, tuple(keys or ()), tuple(class_ or ()), keep)
    letters = ("A: ", "B: ") if against else ("",)
    facts = [
        (f"{letter}{shown(store.path.name)}", describe(store)) for letter, store in zip(letters, stores, strict=True)
    ]
    other = stores[1] if against else None
    gallery = gallery_of(stores[0], index, choice, other, facts, note=console.note)
    written = write_gallery(gallery, out, with_sheets=sheets)
    if json:
        console.as_json({"images": len(gallery.cards), "k": gallery.k, "page": written[0], "sheets": written[1:]})
        return
    console.note(
        f"{len(gallery.cards)} images: {shown(written[0])}" + (f" and {len(written) - 1} sheets" if sheets else "")
    )
