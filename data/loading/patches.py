"""Which patches of each image a student sees: the ticket's, as many random ones, or all.

All arms go the same way, so that they differ in the ranking alone, in one pass a batch (sample by sample, projection
alone would cost 15 % of decoding):

    ranking in some frame → moved to the view drawn → mixed as the pixels are → hidden patches demoted → the first k

A step needs each patch's rank after the step before, so each that changes anything sorts once. Rejected: carrying
scores through to a single sort. A selector in the loop has ranks of the mixed image alone to demote, and by scores 2 to
6 % of the patches kept would be others (DeiT's augmentation and mixing, 68 of 196 kept).

The random arm draws a ranking of the whole image for each (seed, epoch, key), or, fixed, for each (seed, key): a ticket
file without content, made anew each epoch, on the grid of the file that the other arm has. Drawn in the view, as the
authors' random arm and the random tokens of an evaluation are, it is not moved, and drawn in the mixed one. Rejected:
drawing in the view by default, which keeps a twelfth of its area hidden where a ticket keeps a hundredth, so that the
arms differ in more than content.

Axes: B images of a batch, P patches of the grid.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import compress
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from dlth.data.images.mixing import BatchMix, MixPlan, mix_patches, mix_rankings
from dlth.data.images.visibility import demote
from dlth.data.joining.join import NO_TICKET, Join
from dlth.tickets.errors import InputError, MissingTicketError, shown
from dlth.tickets.format.header import ViewSpec
from dlth.tickets.ranking.grid import Grid
from dlth.tickets.ranking.projection import project
from dlth.tickets.ranking.view import View
from dlth.tickets.seeding import Part, generator
from dlth.tickets.store.ticket_store import TicketStore

Arm = Literal["ticket", "random", "dense"]
ARMS: tuple[Arm, ...] = ("ticket", "random", "dense")
RandomTokens = Literal["epoch", "fixed"]
DrawnIn = Literal["image", "view"]

Ranking = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Showing:
    """One decoded sample as it will be shown: whose it is, and what its pixels are of.

    `sample_id` and `key` of the image; `size` (height, width) of the decoded image in pixels; `view` of the pixels;
    `hidden` float64 [P]: share of each patch that shows nothing of the image, or None; `number`: which of the image's
    views of the epoch this is, from 0.
    """

    sample_id: int
    key: str
    size: tuple[int, int]
    view: View
    hidden: NDArray[np.float64] | None = None
    number: int = 0


def later(view: int) -> tuple[int, ...]:
    """What names an image's further views in an epoch beside the first, whose draws are named by the epoch alone."""
    return (view,) if view else ()


@dataclass(frozen=True, eq=False)
class PatchChoice:
    """An arm's rankings. Raises InputError where the arm lacks what it needs.

    `join`: the tickets; of a random arm, those whose grid it draws on, where that is not its own `grid`.
    `random_tokens`: random rankings are drawn anew each epoch, or once; `drawn_in`: on the whole image, and then moved
    as a ticket is, or in the view itself.
    """

    arm: Arm
    grid: Grid
    seed: int
    join: Join[TicketStore] | None = None
    random_tokens: RandomTokens = "epoch"
    drawn_in: DrawnIn = "image"

    def __post_init__(self) -> None:
        if self.arm not in ARMS:
            raise InputError(f"the arm is one of {', '.join(ARMS)}, got {shown(self.arm)!r}")
        if self.random_tokens not in ("epoch", "fixed"):
            raise InputError(f"random tokens are drawn per 'epoch' or 'fixed', got {shown(self.random_tokens)!r}")
        if self.drawn_in not in ("image", "view"):
            raise InputError(f"random tokens are drawn in the 'image' or the 'view', got {shown(self.drawn_in)!r}")
        if self.arm == "ticket" and self.join is None:
            raise InputError("the ticket arm needs a join with a ticket file")

    def has_patches(self, showings: Sequence[Showing]) -> NDArray[np.bool_]:
        """Bool [B]: whether the image is shown by a choice of patches, and not whole (dense arm, missing='dense')."""
        if self.arm == "ticket" and self.join is not None and self.join.coverage.policy == "dense":
            with_ticket: NDArray[np.bool_] = _rows(showings, self.join) != NO_TICKET
            return with_ticket
        return np.full(len(showings), self.arm != "dense")

    def kept(
        self,
        showings: Sequence[Showing],
        epoch: int,
        k: int | None,
        mix: MixPlan | BatchMix | None = None,
        hidden: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Int64 [B, k]: the patches that each showing keeps, best first; it says nothing for images shown whole.

        `mix`: how the pixels mix, None: not at all; `hidden` float32 [B, P]: the shares by which patches are demoted.
        """
        rankings = self.rankings(showings, epoch)
        if mix is not None and self.drawn_in == "image":
            rankings = mix_rankings(rankings, self.grid, mix)
        patches = torch.from_numpy(rankings)
        if hidden is not None:
            patches = demote(patches, hidden)
        return patches[:, :k].contiguous()

    def rankings(self, showings: Sequence[Showing], epoch: int) -> Ranking:
        """Int64 [B, P]: all patches of each showing's view, best first; random ones for images without a ticket.

        With a file of form 'top', whose tickets cannot be moved, [B, ranked]: the best patches alone.
        """
        if self.arm != "ticket" or self.join is None:
            return self._drawn(showings, epoch)
        rows, store = _rows(showings, self.join), self.join.store
        lost = np.flatnonzero(rows == NO_TICKET)
        if lost.size and self.join.coverage.policy in ("error", "skip"):
            key = shown(showings[lost[0]].key)
            raise MissingTicketError(f"a ticket was asked for an image that has none: key {key}")
        ranked = store.header.ranked if store.header.grid == self.grid else self.grid.num_patches
        rankings = np.empty((len(showings), ranked), dtype=np.int64)
        has = rows >= 0
        if has.any():
            rankings[has] = _stored(store, rows[has], list(compress(showings, has)))
        if not has.all():
            rankings[~has] = self._drawn(list(compress(showings, ~has)), epoch)[:, :ranked]
        return rankings

    def _drawn(self, showings: Sequence[Showing], epoch: int) -> Ranking:
        grid = self.grid if self.join is None else self.join.store.header.grid
        rows = np.stack([self._draw(showing, epoch).permutation(grid.num_patches) for showing in showings])
        if self.drawn_in == "image":
            return _moved(rows, View.whole(grid), showings)
        return rows if grid == self.grid else project(rows, View.whole(grid), View.whole(self.grid))

    def _draw(self, showing: Showing, epoch: int) -> np.random.Generator:
        draw: tuple[Part, ...] = ("fixed",) if self.random_tokens == "fixed" else (epoch, *later(showing.number))
        return generator(self.seed, "patches", showing.key, *draw)


def _rows(showings: Sequence[Showing], join: Join[TicketStore]) -> Ranking:
    """Int64 [B]: rows of the ticket file, below 0 for images without one."""
    rows: Ranking = join.ticket_row[[showing.sample_id for showing in showings]]
    return rows


def _stored(store: TicketStore, rows: Ranking, showings: Sequence[Showing]) -> Ranking:
    """Rankings of the ticket file's `rows` int64 [B] in the showings' views."""
    source = source_view(store.header.view, store.header.grid, showings)
    return _moved(store.patches_at(rows), source, showings)


def source_view(view: ViewSpec, grid: Grid, showings: Sequence[Showing]) -> View:
    """Where `view` lies in the showings' images: one for all of them where it is the whole image."""
    if view.kind == "whole":
        return View.whole(grid)
    return View.stack([view.view_of(*showing.size, grid) for showing in showings])


def _moved(rows: NDArray[np.integer], source: View, showings: Sequence[Showing]) -> Ranking:
    """Rankings of `source` in the showings' views."""
    target = View.stack([showing.view for showing in showings])
    matrix = np.broadcast_to(source.matrix, target.matrix.shape)
    if source.grid != target.grid or not np.array_equal(matrix, target.matrix):
        return project(rows, source, target)
    return rows.astype(np.int64)


def hidden_patches(showings: Sequence[Showing], grid: Grid, mix: MixPlan | BatchMix) -> torch.Tensor | None:
    """Float32 [B, P]: the hidden share of each patch after mixing; None where nothing is hidden."""
    if all(showing.hidden is None for showing in showings):
        return None
    nothing = np.zeros(grid.num_patches)
    hidden = np.stack([nothing if showing.hidden is None else showing.hidden for showing in showings])
    return torch.from_numpy(mix_patches(hidden, grid, mix).astype(np.float32))
