"""Training views of images with every ranking that is compared in them: the ticket moved there, not moved, and chance.

What training draws, from the same order, by the same augmentation under the same names, and ranked through the same
`PatchChoice`; unlike its batches these keep where each view lies, and all patches, as who compares asks by crop and for
any k. Nothing is mixed: of a mixed picture no crop could be named.

Axes: B images of a batch, P patches of the grid.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from dlth.data.images.augment import Augmentation, augment
from dlth.data.joining.join import Join
from dlth.data.loading.crashes import Crashed
from dlth.data.loading.left_out import LeftOut
from dlth.data.loading.order import Ids, epoch_order
from dlth.data.loading.patches import PatchChoice, Showing
from dlth.data.loading.reader import BadImages, Reader
from dlth.data.loading.sent_images import SentImages
from dlth.data.loading.workers import Pool
from dlth.data.shards.index import ShardIndex
from dlth.tickets import TicketStore
from dlth.tickets.ranking.grid import Grid
from dlth.tickets.ranking.view import determinant

EPOCH = 0
"""Whose views are drawn: those of a run's first epoch."""


@dataclass(frozen=True, eq=False)
class RankedViews(SentImages):
    """Some images, each in one view.

    images: uint8 [B, 3, height, width]; keys: theirs
    moved: int64 [B, P]: the ticket's ranking moved to the view, as the student is given it, best first
    unmoved: int64 [B, P]: the ticket's ranking as it stands in the file
    drawn: int64 [B, P]: a random ranking, as the random arm is given it
    hidden: float32 [B, P]: share of each patch that shows fill or noise, None where nothing does
    area: float64 [B]: share of the image's area that the view shows; mirrored: bool [B]
    """

    images: torch.Tensor
    keys: tuple[str, ...]
    moved: torch.Tensor
    unmoved: torch.Tensor
    drawn: torch.Tensor
    hidden: torch.Tensor | None
    area: NDArray[np.float64]
    mirrored: NDArray[np.bool_]


class RankedViewLoader:
    """The first `num_images` images with tickets that a run of that seed meets, in its first epoch's views; iterating
    gives `RankedViews`, in one order whatever the number of workers.

    The tickets' grid is the views' `grid`. `bad_images`: a corrupt image is an error, or is left out and listed in
    `bad_images`. Raises InputError for augmentation or workers that do not fit.
    """

    def __init__(
        self,
        index: ShardIndex,
        join: Join[TicketStore],
        augmentation: Augmentation,
        grid: Grid,
        seed: int,
        num_images: int,
        *,
        demoted: bool = True,
        window: int,
        batch_size: int,
        workers: int = 0,
        bad_images: BadImages = "error",
    ) -> None:
        left_out = LeftOut.known(index.num_samples, join)
        order = epoch_order(np.diff(index.row_start), seed, EPOCH, window, left_out.missing)
        self._ids = order[~left_out.bad[order]][:num_images]
        self.bad_images: dict[str, str] = {}
        self._index, self._batch_size = index, batch_size
        choices = PatchChoice("ticket", grid, seed, join), PatchChoice("random", grid, seed)
        self._pool = Pool(_Job(index, Reader(index, join, bad_images), augmentation, *choices, seed, demoted), workers)

    @property
    def num_images(self) -> int:
        """Images that are looked at."""
        return len(self._ids)

    def __iter__(self) -> Iterator[RankedViews]:
        """Raises WorkerError, BadImageError, DamageError."""
        starts = range(0, len(self._ids), self._batch_size)
        for batch, bad in self._pool.results(self._ids[start : start + self._batch_size] for start in starts):
            self.bad_images |= {self._index.key(number): problem for number, problem in bad.items()}
            if batch is not None:
                yield batch


@dataclass(frozen=True, eq=False)
class _Job:
    """The worker's side: ids in, their views out."""

    index: ShardIndex
    reader: Reader
    augmentation: Augmentation
    ticket: PatchChoice
    random: PatchChoice
    seed: int
    demoted: bool

    def images(self, ids: Ids) -> Ids:
        return self.reader.wanted(ids)

    def __call__(self, ids: Ids, crashed: Crashed) -> tuple[RankedViews | None, dict[int, str]]:
        images, bad = self.reader.read(ids, crashed)
        good = [(int(number), image) for number, image in zip(ids, images, strict=True) if image is not None]
        return (self._views(good) if good else None), bad

    def _views(self, images: list[tuple[int, torch.Tensor]]) -> RankedViews:
        pixels, showings = [], []
        for number, image in images:
            key = self.index.key(number)
            shown = augment(image, self.augmentation, self.ticket.grid, self.seed, EPOCH, key)
            pixels.append(shown.image)
            showings.append(Showing(number, key, (image.shape[1], image.shape[2]), shown.view, shown.hidden))
        hidden = self._hidden(showings)
        demoted = hidden if self.demoted else None
        moved, drawn = (choice.kept(showings, EPOCH, None, hidden=demoted) for choice in (self.ticket, self.random))
        turns = np.array([determinant(showing.view.matrix) for showing in showings])
        return RankedViews(
            torch.stack(pixels),
            tuple(showing.key for showing in showings),
            moved,
            self._as_stored([showing.sample_id for showing in showings]),
            drawn,
            hidden,
            np.abs(turns),
            turns < 0,
        )

    def _as_stored(self, ids: list[int]) -> torch.Tensor:
        join = self.reader.join
        assert join is not None
        return torch.from_numpy(join.store.patches_at(join.ticket_row[ids]).astype(np.int64))

    def _hidden(self, showings: list[Showing]) -> torch.Tensor | None:
        if all(showing.hidden is None for showing in showings):
            return None
        nothing = np.zeros(self.ticket.grid.num_patches)
        shares = [nothing if showing.hidden is None else showing.hidden for showing in showings]
        return torch.from_numpy(np.stack(shares).astype(np.float32))
