"""Which images a gallery shows, and everything it says of them: from ticket files and shards to a `Gallery`.

One file: images evenly spread over it. Two files: those whose tickets agree least, out of at most MAX_COMPARED evenly
spread ones, so that a comparison of two files of ImageNet's size takes seconds. Rankings that lie in another frame
(other grid, crop instead of whole image) are projected into the first file's before they are compared.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torchvision.transforms.v2 import functional as F

from dlth.data.images.decode import BadImageError, image_size
from dlth.data.images.views import check_view, render
from dlth.data.joining.join import Join, join
from dlth.data.joining.row_labels import class_number
from dlth.data.loading.crashes import Crashed, decode_sample
from dlth.data.loading.workers import Pool
from dlth.data.shards.classes import class_names
from dlth.data.shards.identity import content_hash, spread
from dlth.data.shards.index import ShardIndex
from dlth.pipeline.pages.gallery import Card, Gallery
from dlth.tickets import TicketHeader, TicketStore, View, ViewSpec, num_kept, project
from dlth.tickets.callbacks import Note
from dlth.tickets.errors import InputError, MismatchError, shown
from dlth.tickets.ranking.ranks import num_shared

MAX_COMPARED = 20_000
MAX_SHOWN = 2_000
MAX_SIDE = 448
"""Pixels of a picture's longer side in the page; larger views are drawn smaller."""
_CHUNK = 256

Ids = np.ndarray
"""int64 [images], positions in the index."""


@dataclass(frozen=True)
class Choice:
    """What to show: at most `num` images, of these keys or classes (names or numbers) where any are given, at `keep`
    (of all patches; None: the file's own).
    """

    num: int = 60
    keys: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    keep: str | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.num <= MAX_SHOWN:
            raise InputError(f"--num {self.num}: a page shows 1 to {MAX_SHOWN} images")


def gallery_of(
    store: TicketStore,
    index: ShardIndex,
    choice: Choice,
    other: TicketStore | None = None,
    files: Sequence[tuple[str, Mapping[str, object]]] = (),
    note: Note = lambda text: None,
) -> Gallery:
    """The chosen images with their tickets, and with those of a second file where one is given.

    `files`: a name and facts of each file, to be told on the page. `note` is told of coverage and of images that cannot
    be read. Raises MismatchError (files for other images; a keep above what they hold; frames that cannot be compared),
    MissingTicketError (a key without a ticket), InputError (nothing to show).
    """
    check_view(store.header.view)
    joins = [join(index, each, missing="skip") for each in (store, other) if each is not None]
    for each in joins:
        note(str(each.coverage))
        if each.store.header.form == "mask":
            note(f"{shown(each.store.path.name)} has no order (form 'mask'): shades and smaller keeps mean nothing")
    names = class_names(index)
    candidates = _candidates(index, joins, choice, names)
    k = _kept([each.store.header for each in joins], choice)
    if other is None:
        ids, how = spread(candidates, choice.num), f"of {len(candidates):,}, evenly spread over the file"
    else:
        compared = spread(candidates, MAX_COMPARED)
        ids = _least_shared(index, joins, compared, k, choice.num)
        how = f"whose tickets agree least, of {len(compared):,} compared"
    cards = list(_cards(index, joins, ids, names, note))
    if not cards:
        raise InputError("none of the chosen images can be read")
    header, dataset = store.header, store.header.dataset
    title = " ".join(text for text in (dataset.name, dataset.split) if text) or store.path.name
    lead = f"{len(cards):,} images {how}. {shown(header.selector.model)} kept {header.k} of {header.grid.num_patches}"
    return Gallery(title, f"{lead} patches.", header.grid, k, cards, files)


def _candidates(index: ShardIndex, joins: Sequence[Join], choice: Choice, names: Sequence[str]) -> Ids:
    """Images that every file has a ticket for, narrowed to the chosen keys and classes."""
    fits = np.all([each.ticket_row >= 0 for each in joins], axis=0)
    if choice.keys:
        store = joins[0].store
        places = [store.row_number(*store.find(key)) for key in choice.keys]
        fits &= np.isin(joins[0].ticket_row, places)
    if choice.classes:
        fits &= np.isin(index.label, [class_number(text, names) for text in choice.classes])
    ids = np.flatnonzero(fits)
    if not len(ids):
        raise InputError("no image of these shards has a ticket and fits the chosen keys and classes")
    return ids


def _kept(headers: Sequence[TicketHeader], choice: Choice) -> int:
    """Patches kept at first, held by every file."""
    grid = headers[0].grid
    held = min(grid.num_patches if header.form == "full" else header.ranked for header in headers)
    k = headers[0].k if choice.keep is None else num_kept(choice.keep, grid.num_patches)
    for header in headers:
        if header.form == "mask":
            header.check_serves(k)
    if k > held and choice.keep is not None:
        raise MismatchError(f"--keep {shown(choice.keep)} means {k} patches, the file holds the {held} best alone")
    return min(k, held)


def _least_shared(index: ShardIndex, joins: Sequence[Join], ids: Ids, k: int, num: int) -> Ids:
    """The `num` ids whose tickets in two files have the fewest patches in common, fewest first."""
    shared = []
    for start in range(0, len(ids), _CHUNK):
        part = ids[start : start + _CHUNK]
        one, two = (_rankings(index, each, part, joins[0].store.header) for each in joins)
        shared.append(num_shared(one[:, :k], two[:, :k], joins[0].store.header.grid.num_patches))
    return ids[np.argsort(np.concatenate(shared), kind="stable")[:num]]


def _rankings(index: ShardIndex, joined: Join[TicketStore], ids: Ids, frame: TicketHeader) -> np.ndarray:
    """The file's rankings [images, ranked] of `ids`, on the grid and in the view of `frame`."""
    rows, header = joined.store.patches_at(joined.ticket_row[ids]), joined.store.header
    if header.grid == frame.grid and _same_view(header, frame):
        return rows
    if header.form != "full":
        raise MismatchError(
            f"{shown(joined.store.path.name)} lies in another frame (grid {header.grid}, view {header.view.kind}) than "
            f"the first file (grid {frame.grid}, view {frame.view.kind}), and holds too few patches to be projected"
        )
    sizes = [image_size(encoded) for encoded in index.read_many(ids.tolist())]
    source, target = (View.stack([each.view.view_of(*size, each.grid) for size in sizes]) for each in (header, frame))
    return project(rows, source, target)


def _same_view(one: TicketHeader, two: TicketHeader) -> bool:
    first, second = ((view.kind, view.height, view.width, view.crop_pct) for view in (one.view, two.view))
    return first == second or one.view.kind == two.view.kind == "whole"


def _cards(index: ShardIndex, joins: Sequence[Join], ids: Ids, names: Sequence[str], note: Note) -> Iterator[Card]:
    """One card for each image that can be read."""
    store = joins[0].store
    rankings = [_rankings(index, each, ids, store.header) for each in joins]
    ranked = min(rows.shape[1] for rows in rankings)
    pictures = Pool(_Pictures(index, store.header.view), workers=1).results(ids.tolist())
    for at, (i, (picture, digest)) in enumerate(zip(ids.tolist(), pictures, strict=True)):
        if isinstance(picture, str):
            note(f"left out: {picture}")
            continue
        label, (shard, row) = int(index.label[i]), store.shard_and_row(int(joins[0].ticket_row[i]))
        same = digest == store.image_hashes(shard)[row].tobytes()
        yield Card(
            key=index.key(i),
            image=picture.permute(1, 2, 0).numpy(),
            ranking=rankings[0][at, :ranked],
            other=rankings[1][at, :ranked] if len(rankings) > 1 else None,
            label=label,
            name=names[label] if 0 <= label < len(names) else f"class {label}" if label >= 0 else "",
            gap=float(store.gap(shard)[row]),
            note="" if same else "not the bytes the ticket was made from",
        )


@dataclass(frozen=True, eq=False)
class _Pictures:
    """A worker's side: a sample in; out its picture uint8 [3, height, width] or what is wrong with it, and its hash."""

    index: ShardIndex
    view: ViewSpec

    def images(self, sample: int) -> list[int]:
        return [sample]

    def __call__(self, sample: int, crashed: Crashed) -> tuple[torch.Tensor | str, bytes]:
        encoded = self.index.read(sample)
        try:
            picture: torch.Tensor | str = _fitted(
                render(decode_sample(self.index, sample, encoded, crashed), self.view)
            )
        except BadImageError as error:
            picture = str(error)
        return picture, content_hash(encoded)


def _fitted(image: torch.Tensor) -> torch.Tensor:
    """The image uint8 [3, height, width], smaller where its longer side is above MAX_SIDE."""
    height, width = image.shape[-2:]
    scale = MAX_SIDE / max(height, width)
    return image if scale >= 1 else F.resize(image, [round(height * scale), round(width * scale)], antialias=True)
