"""Tickets on their images: where the ticket arm is right and wrong most surely, and where arms or selectors disagree.

Only evidence that comes with its images (`ValidationImages`) is drawn.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dlth.pipeline.evidence.arm_key import ArmKey
from dlth.pipeline.evidence.evidence import DENSE, Evidence, shared_images
from dlth.pipeline.evidence.finished_run import FinishedRun
from dlth.pipeline.evidence.informative import INFORMATIVE
from dlth.pipeline.evidence.validation_images import Known, ValidationImages
from dlth.pipeline.pages import figures
from dlth.pipeline.pages.gallery import Card, Gallery
from dlth.pipeline.pages.report import Picture, Section, Table
from dlth.pipeline.pages.show import Choice, gallery_of
from dlth.tickets import TicketStore, num_kept
from dlth.tickets.errors import shown
from dlth.tickets.ranking.ranks import num_shared

NUM_DRAWN = 6
"""Images of each kind."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class PerImage:
    """What an arm came to on each image, axis N images: share of seeds that were right, and mean loss over seeds."""

    right: Floats
    loss: Floats

    @classmethod
    def of(cls, runs: Sequence[FinishedRun], rows: Sequence[NDArray[np.int64]]) -> "PerImage":
        """Of runs on the tokens that they are judged on, whose `rows` are of the same images; loss may be NaN."""
        right = [run.images[f"{run.judged_on}_top1"][at] for run, at in zip(runs, rows, strict=True)]
        loss = [run.images[f"{run.judged_on}_loss"][at] for run, at in zip(runs, rows, strict=True)]
        return cls(np.mean(right, axis=0), np.mean(loss, axis=0, dtype=np.float64))


def best(arm: PerImage, num: int) -> NDArray[np.int64]:
    """Int64 [<= num]: images right in every seed, least loss first; ties to the first image."""
    order = np.lexsort((np.nan_to_num(arm.loss, nan=np.inf), -arm.right))
    return order[arm.right[order] == 1.0][:num]


def worst(arm: PerImage, num: int) -> NDArray[np.int64]:
    """Int64 [<= num]: images wrong in most seeds, most loss first; none that is right in every seed."""
    order = np.lexsort((-np.nan_to_num(arm.loss, nan=np.inf), arm.right))
    return order[arm.right[order] < 1.0][:num]


def disagreed(one: PerImage, two: PerImage, num: int) -> NDArray[np.int64]:
    """Int64 [<= num]: images that one arm gets right in more seeds than the other, the largest difference first."""
    apart = np.abs(one.right - two.right)
    order = np.lexsort((-np.abs(np.nan_to_num(one.loss - two.loss)), -apart))
    return order[apart[order] > 0][:num]


def tickets_section(evidence: Evidence) -> Section | None:
    """Pictures of single images; None without these, or without a judged run of the ticket arm.

    Raises DlthError for images that are not the runs', or none of which can be read.
    """
    images = evidence.images
    if images is None or not any(key.arm == "ticket" for key in evidence.judged):
        return None
    arms = {key: list(runs.values()) for key, runs in evidence.judged.items() if key.arm == "ticket"}
    arms = {key: runs for key, runs in arms.items() if all(_evaluated_on(run, images.store) for run in runs)}
    if not arms:
        text = f"None are drawn: the runs were evaluated on other tickets than {images.store.identity[:16]}."
        return Section("Tickets drawn", texts=(text,))
    key = next((key for key, runs in arms.items() if runs[0].result.k == images.store.header.k), next(iter(arms)))
    dense = list(evidence.judged.get(ArmKey(DENSE, variant=key.variant), {}).values())
    k, kinds = _num_drawn(arms[key][0], images.store), _kinds(arms[key], dense)
    wanted = sorted({image for drawn, _ in kinds.values() for image in drawn})
    if not wanted:
        return None
    gallery = gallery_of(images.store, images.index, Choice(len(wanted), tuple(wanted)), images.other)
    cards = {card.key: card for card in gallery.cards}
    pictures = []
    for name, (drawn, what) in kinds.items():
        told = [(cards[image], text) for image, text in drawn.items() if image in cards]
        if told:
            pictures.append(_picture(name, what, told, gallery, k, images.known))
    if images.other is not None:
        pictures.append(_between_selectors(images, k))
    text = (
        f"Validation images of {shown(key)}: the picture, and the {k} patches of {gallery.grid.num_patches} that its"
        " ticket keeps."
    )
    return Section("Tickets drawn", texts=(text,), pictures=tuple(pictures))


def _kinds(runs: Sequence[FinishedRun], dense: Sequence[FinishedRun]) -> dict[str, tuple[dict[str, str], str]]:
    """For each kind of picture the images by key, with what is said of each, and what the kind is."""
    rows = shared_images([*runs, *dense])
    first = runs[0].images
    if "without_ticket" in first:
        has = ~first["without_ticket"][rows[0]]
        rows = [of_run[has] for of_run in rows]
    keys = first["keys"][rows[0]].tolist()
    ticket = PerImage.of(runs, rows[: len(runs)])
    places = {
        "best": (best(ticket, NUM_DRAWN), "right in every seed, with the least loss"),
        "worst": (worst(ticket, NUM_DRAWN), "wrong in the most seeds, with the most loss"),
    }
    told = [_told(ticket, "right", len(runs))]
    if dense:
        other = PerImage.of(dense, rows[len(runs) :])
        places["disagreed"] = disagreed(ticket, other, NUM_DRAWN), "right in more seeds by one of the two arms"
        told = [_told(ticket, "ticket", len(runs)), _told(other, "dense", len(dense))]
    return {
        kind: ({keys[at]: "; ".join(tell(at) for tell in told) for at in chosen}, what)
        for kind, (chosen, what) in places.items()
    }


def _between_selectors(images: ValidationImages, k: int) -> Picture:
    """The images whose tickets of two selectors agree least."""
    gallery = gallery_of(images.store, images.index, Choice(NUM_DRAWN), images.other)
    parts = images.store.header.grid.num_patches
    told = [
        (card, f"{num_shared(card.ranking[:k], card.other[:k], parts) / k:.0%} shared")
        for card in gallery.cards
        if card.other is not None
    ]
    return _picture("selectors", "whose tickets two selectors agree on least", told, gallery, k, images.known)


def recall_section(evidence: Evidence) -> Section | None:
    """How many of the patches that are known to matter tickets hold, at each keep of the ticket arm."""
    images = evidence.images
    if images is None or images.known is None:
        return None
    store = images.store
    runs = {key.keep: next(iter(runs.values())) for key, runs in evidence.runs.items() if key.arm == "ticket"}
    kept = {keep: _num_drawn(run, store) for keep, run in runs.items()}
    found = {keep: (k, recall(store, images.known, k)) for keep, k in kept.items() if store.header.serves(k)}
    num_patches = store.header.grid.num_patches
    rows = [(keep, k, share, k / num_patches) for keep, (k, share) in found.items() if share is not None]
    if not rows:
        return None
    formats = {"recall": ".4f", "by chance": ".4f"}
    table = Table(("keep", "patches", "recall", "by chance"), tuple(rows), "recall", formats)
    text = f"Mean share of an image's known patches ({INFORMATIVE}) among those that its validation ticket keeps."
    return Section("Recall", texts=(text,), tables=(table,))


def recall(store: TicketStore, known: Known, k: int) -> float | None:
    """Mean share of an image's known patches among the first k of its ticket; None where no image's are known."""
    shares = []
    for shard in range(len(store.shards)):
        rows = store.read(shard)
        for key, ranking, skipped in zip(rows.keys, rows.patches[:, :k], rows.skipped, strict=True):
            if key in known and not skipped:
                shares.append(np.isin(known[key], ranking).mean())
    return float(np.mean(shares)) if shares else None


def _evaluated_on(run: FinishedRun, store: TicketStore) -> bool:
    return bool(run.result.data.get("val_tickets", "") == store.identity)


def _num_drawn(run: FinishedRun, store: TicketStore) -> int:
    """Patches of the tickets' grid that a run's student keeps: the same share where its own grid is another."""
    header, k = store.header, run.result.k or store.header.k
    if run.result.num_patches != header.grid.num_patches:
        k = num_kept(run.result.keep, header.grid.num_patches)
    return min(k, header.ranked)


def _told(arm: PerImage, name: str, seeds: int) -> Callable[[int], str]:
    """What a title says of an image: in how many seeds an arm was right."""
    return lambda at: f"{name} {round(arm.right[at] * seeds)}/{seeds}"


def _picture(
    kind: str, what: str, drawn: Sequence[tuple[Card, str]], gallery: Gallery, k: int, known: Known | None
) -> Picture:
    """A sheet of some images, and what is to be seen on it."""
    cards = [card for card, _ in drawn]
    names = ["image", f"the {k} patches of its ticket"]
    if gallery.compared:
        names.append("difference to the other selector's (blue: the ticket's alone, orange: the other's)")
    panels = [_panels(card, gallery, k, (known or {}).get(card.key)) for card in cards]
    titles = [f"{shown(card.name or card.key, 24)}\n{told}" for card, told in drawn]
    outlines = "; outlined: the patches that are known to matter" if known else ""
    below = "" if kind == "selectors" else " Below each name: in how many seeds an arm was right."
    caption = f"{kind.capitalize()}: {what}{outlines}.{below}"
    listed = ", ".join(f"{shown(card.name or card.key, 24)} ({told})" for card, told in drawn)
    alt = f"{len(cards)} validation images and their tickets, {what}: {listed}"
    return Picture(f"tickets-{kind}", figures.panel_sheet(panels, titles, names), caption, alt)


def _panels(card: Card, gallery: Gallery, k: int, known: NDArray[np.int64] | None) -> list[NDArray[np.uint8]]:
    image = figures.enlarged(card.image)
    panels = [image, figures.kept_only(image, card.ranking, k, gallery.grid)]
    if card.other is not None:
        panels.append(figures.difference(image, card.ranking, card.other, k, gallery.grid))
    if known is None:
        return [image, *(figures.outlined(panel, card.ranking[:k], gallery.grid) for panel in panels[1:])]
    return [figures.outlined(panel, known, gallery.grid, figures.KNOWN) for panel in panels]
