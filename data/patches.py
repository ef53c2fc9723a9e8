"""Which patches of each image a student sees: the ticket's, as many random ones, or all.

All arms go the same way, so that they differ in the ranking alone: a ranking in some frame, projected to the view that
the augmentation drew (one `project` call per batch: per sample it would cost 15 % of decoding). The random arm draws a
ranking of the whole image for each (seed, epoch, key), or, fixed, for each (seed, key): a ticket file without content,
made anew each epoch. Drawn in the view, as the authors' random arm and the random tokens of an evaluation are, it is
not moved. What the view hides is the loader's matter, for all arms alike. Rejected: drawing in the view by default,
which keeps a twelfth of its area hidden where a ticket keeps a hundredth, so that the arms differ in more than content.

Axes: B images of a batch, P patches of the grid.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from dlth.data.join import NO_TICKET, Join
from dlth.tickets.errors import InputError, MissingTicketError, shown
from dlth.tickets.grid import Grid
from dlth.tickets.project import project
from dlth.tickets.seeding import Part, generator
from dlth.tickets.view import View

Arm = Literal["ticket", "random", "dense"]
ARMS: tuple[Arm, ...] = ("ticket", "random", "dense")
RandomTokens = Literal["epoch", "fixed"]
DrawnIn = Literal["image", "view"]

Ranking = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Frame:
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

    `random_tokens`: random rankings are drawn anew each epoch, or once; `drawn_in`: on the whole image, and then moved
    as a ticket is, or in the view itself.
    """

    arm: Arm
    grid: Grid
    seed: int
    join: Join | None = None
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

    def has_patches(self, frames: Sequence[Frame]) -> NDArray[np.bool_]:
        """Bool [B]: whether the image is shown by a choice of patches, and not whole (dense arm, missing='dense')."""
        if self.arm != "ticket" or self.join is None:
            return np.full(len(frames), self.arm == "random")
        if self.join.coverage.policy != "dense":
            return np.ones(len(frames), dtype=bool)
        chosen: NDArray[np.bool_] = self.join.ticket_row[[frame.sample_id for frame in frames]] != NO_TICKET
        return chosen

    def rankings(self, frames: Sequence[Frame], epoch: int) -> Ranking:
        """Int64 [B, P]: all patches of each frame's view, best first; it says nothing for images that are shown whole.

        With a file of form 'top', whose tickets cannot be moved, [B, ranked]: the best patches alone.
        """
        if self.arm != "ticket" or self.join is None:
            return self._drawn(frames, epoch)
        places = self.join.ticket_row[[frame.sample_id for frame in frames]]
        self._check_missing(frames, places, self.join)
        rankings = np.empty((len(frames), self.join.store.header.ranked), dtype=np.int64)
        for rows, ranked in ((places >= 0, self._tickets), (places < 0, self._drawn)):
            if rows.any():
                chosen = [frames[i] for i in np.flatnonzero(rows).tolist()]
                rankings[rows] = ranked(chosen, epoch)[:, : rankings.shape[1]]
        return rankings

    def _tickets(self, frames: Sequence[Frame], epoch: int) -> Ranking:
        assert self.join is not None
        header, places = self.join.store.header, self.join.ticket_row[[frame.sample_id for frame in frames]]
        if header.view.kind == "whole":
            source = View.whole(header.grid)
        else:
            source = View.stack([header.view.view_of(*frame.size, header.grid) for frame in frames])
        return _moved(self.join.store.patches_at(places), source, frames)

    def _drawn(self, frames: Sequence[Frame], epoch: int) -> Ranking:
        rows = np.stack([self._draw(frame, epoch).permutation(self.grid.num_patches) for frame in frames])
        return rows if self.drawn_in == "view" else _moved(rows, View.whole(self.grid), frames)

    def _draw(self, frame: Frame, epoch: int) -> np.random.Generator:
        draw: tuple[Part, ...] = ("fixed",) if self.random_tokens == "fixed" else (epoch, *later(frame.number))
        return generator(self.seed, "patches", frame.key, *draw)

    def _check_missing(self, frames: Sequence[Frame], places: Ranking, join: Join) -> None:
        policy, missing = join.coverage.policy, np.flatnonzero(places == NO_TICKET)
        if len(missing) and policy in ("error", "skip"):
            key = shown(frames[int(missing[0])].key)
            raise MissingTicketError(f"a ticket was asked for an image that has none (missing='{policy}'): key {key}")


def _moved(rows: NDArray[np.integer], source: View, frames: Sequence[Frame]) -> Ranking:
    """Rankings of `source` in the frames' views."""
    target = View.stack([frame.view for frame in frames])
    matrix = np.broadcast_to(source.matrix, target.matrix.shape)
    if source.grid != target.grid or not np.array_equal(matrix, target.matrix):
        return project(rows, source, target)
    return rows.astype(np.int64)
