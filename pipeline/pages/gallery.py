"""Tickets on their images, as one HTML page and as PNG sheets: values in, pictures out; no file is read here.

The page holds each image once, all rankings as packed bytes, and a script that draws the kept patches over the images
that are on the screen: a slider over keep then costs a few thousand rectangles, not a new picture. Images are encoded
anew, so nothing of a stranger's image file but its pixels gets into the page. Rejected: one picture per keep (a
hundred times the size) and HTML elements for patches (40,000 of them for 200 images).
"""

import base64
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from dlth.pipeline.pages import figures
from dlth.pipeline.pages.page import data_url, render_page
from dlth.tickets import Grid
from dlth.tickets.errors import shown
from dlth.tickets.ranking.ranks import num_shared
from dlth.tickets.store.disk import make_folder, space_errors
from dlth.training.run_files import published, write_text

SHEET = 24
"""Images on one PNG sheet."""


@dataclass(frozen=True, eq=False)
class Card:
    """One image and its ticket.

    image: uint8 [height, width, 3], in the view that the grid divides
    ranking: int [ranked], patches best first
    other: int [ranked], the other file's ranking on the same grid, where two files are compared
    label: class number, -1 for none; name: what the class is called
    gap: score of the k-th patch minus that of the next
    note: a short warning about this image
    """

    key: str
    image: np.ndarray
    ranking: np.ndarray
    other: np.ndarray | None = None
    label: int = -1
    name: str = ""
    gap: float = math.inf
    note: str = ""


@dataclass(frozen=True, eq=False)
class Gallery:
    """What a page shows: cards that agree in grid, number of ranked patches, and in whether they have another ranking.

    k: patches kept at first; files: a name and its facts for each ticket file
    """

    title: str
    lead: str
    grid: Grid
    k: int
    cards: Sequence[Card]
    files: Sequence[tuple[str, Mapping[str, object]]] = field(default=())

    @property
    def compared(self) -> bool:
        """Whether every card has the ranking of a second file."""
        return all(card.other is not None for card in self.cards)


def page(gallery: Gallery) -> str:
    """The whole gallery as the text of one HTML file that needs nothing from outside."""
    compared, first = gallery.compared, gallery.cards[0]
    if compared:
        views = [("diff", "Difference"), ("a", "A"), ("b", "B"), ("image", "Image")]
        large = [("diff", "Difference"), ("a", "A: numbers are ranks"), ("b", "B: numbers are ranks")]
    else:
        views = [("patches", "Patches"), ("order", "Order"), ("image", "Image")]
        large = [("patches", "What the ticket keeps"), ("order", "Order: numbers are ranks")]
    return render_page(
        "gallery.html",
        title=shown(gallery.title),
        lead=gallery.lead,
        files=[
            (shown(name), {fact: shown(value, 1000) for fact, value in facts.items()}) for name, facts in gallery.files
        ],
        other=compared,
        ranked=len(first.ranking),
        k=gallery.k,
        views=views,
        large=large,
        classes=_classes(gallery.cards),
        small=max(first.image.shape[:2]) <= figures.SMALL,
        cards=[_drawn(card) for card in gallery.cards],
        data=_data(gallery),
    )


def sheets(gallery: Gallery) -> list[Figure]:
    """The same as figures of at most SHEET images: image, kept patches, order as shade; compared: A, B, difference."""
    parts = [gallery.cards[start : start + SHEET] for start in range(0, len(gallery.cards), SHEET)]
    kept = f"{gallery.k} of {gallery.grid.num_patches} patches kept"
    names = ["image", kept, "their order (the deepest is the first)"]
    if gallery.compared:
        names = ["image", f"A ({kept})", f"B ({kept})", "in A alone (blue) and in B alone (orange)"]
    return [
        figures.panel_sheet(
            [_panels(card, gallery.k, gallery.grid) for card in part], [_title(card, gallery) for card in part], names
        )
        for part in parts
    ]


def write_gallery(gallery: Gallery, out: Path, with_sheets: bool = True) -> list[Path]:
    """Write `gallery.html` and `sheet-000.png` … to a folder, in the place of earlier ones; returns their paths.

    Each is written whole or not at all. Raises InputError for a place that cannot be such a folder, and as `published`.
    """
    make_folder(out)
    pictures = map(figures.png, sheets(gallery) if with_sheets else ())
    paths = [out / "gallery.html"]
    write_text(paths[0], page(gallery))
    for number, picture in enumerate(pictures):
        paths.append(out / f"sheet-{number:03d}.png")
        with published(paths[-1]) as file:
            file.write(picture)
    with space_errors(out, 0):
        for old in set(out.glob("sheet-[0-9][0-9][0-9].png")) - set(paths):
            old.unlink()
    return paths


def _drawn(card: Card) -> dict[str, object]:
    height, width = card.image.shape[:2]
    kind = "png" if max(height, width) <= figures.SMALL else "jpeg"
    buffer = BytesIO()
    Image.fromarray(card.image).save(buffer, kind, **({"quality": 85} if kind == "jpeg" else {}))
    return {
        "key": shown(card.key),
        "name": shown(card.name),
        "label": card.label,
        "note": card.note,
        "url": data_url(buffer.getvalue(), kind),
        "height": height,
        "width": width,
    }


def _classes(cards: Sequence[Card]) -> list[tuple[int, str, int]]:
    """Number, name and count of each class that occurs."""
    counts = Counter((card.label, card.name) for card in cards if card.label >= 0)
    return [(label, shown(name), count) for (label, name), count in sorted(counts.items())]


def _data(gallery: Gallery) -> dict[str, object]:
    """What the script needs: numbers and packed bytes, no text from outside."""
    width = 1 if gallery.grid.num_patches <= 256 else 2
    data: dict[str, object] = {
        "rows": gallery.grid.rows,
        "cols": gallery.grid.cols,
        "ranked": len(gallery.cards[0].ranking),
        "bytes": width,
        "compared": gallery.compared,
        "gap": [float(f"{card.gap:.4g}") if math.isfinite(card.gap) else None for card in gallery.cards],
        "ranking": _packed([card.ranking for card in gallery.cards], width),
    }
    if gallery.compared:
        data["other"] = _packed([card.other for card in gallery.cards if card.other is not None], width)
    return data


def _packed(rankings: Sequence[np.ndarray], width: int) -> str:
    """Rankings one after another as base64 of little-endian numbers of `width` bytes."""
    return base64.b64encode(np.stack(rankings).astype(f"<u{width}").tobytes()).decode()


def _panels(card: Card, k: int, grid: Grid) -> list[np.ndarray]:
    image, patches = figures.enlarged(card.image), card.ranking[:k]
    kept = figures.outlined(figures.kept_only(image, card.ranking, k, grid), patches, grid)
    if card.other is None:
        return [image, kept, figures.outlined(figures.order_shade(image, card.ranking, k, grid), patches, grid)]
    other = figures.outlined(figures.kept_only(image, card.other, k, grid), card.other[:k], grid)
    return [image, kept, other, figures.difference(image, card.ranking, card.other, k, grid)]


def _title(card: Card, gallery: Gallery) -> str:
    text, k = shown(card.key, 24), gallery.k
    if card.other is None:
        return text
    return f"{text}\n{num_shared(card.ranking[:k], card.other[:k], gallery.grid.num_patches) / k:.0%} shared"
