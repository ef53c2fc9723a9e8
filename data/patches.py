"""Which patches of each image a student sees: the ticket's, as many random ones, or all.

All arms go the same way, so that they differ in the ranking alone: a ranking in some frame, projected to the view that
the augmentation drew (one `project` call per batch: per sample it would cost 15 % of decoding), what the view hides
demoted. The random arm draws anew for each (seed, epoch, key), directly in the view; or, fixed, once for each (seed,
key) in the frame of the whole image and then follows the augmentation exactly as a ticket would.

Axes: B images of a batch, P patches of the grid.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from dlth.data.join import BAD_IMAGE, NO_TICKET, Join
from dlth.data.visibility import demote
from dlth.tickets.errors import InputError, MissingTicketError, shown
from dlth.tickets.grid import Grid
from dlth.tickets.project import project
from dlth.tickets.seeding import Part, generator
from dlth.tickets.view import View

Arm = Literal["ticket", "random", "dense"]
ARMS: tuple[Arm, ...] = ("ticket", "random", "dense")
RandomTokens = Literal["epoch", "fixed"]

Ranking = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Frame:
    """One decoded sample as it will be shown: whose it is, and what its pixels are of.

    `sample_id` and `key` of the image; `size` (height, width) of the decoded image in pixels; `view` of the pixels;
    `hidden` float64 [P]: share of each patch that shows nothing of the image, or None.
    """

    sample_id: int
    key: str
    size: tuple[int, int]
    view: View
    hidden: NDArray[np.float64] | None = None


@dataclass(frozen=True, eq=False)
class PatchChoice:
    """An arm's rankings. Raises InputError where the arm lacks what it needs."""

    arm: Arm
    grid: Grid
    seed: int
    join: Join | None = None
    random_tokens: RandomTokens = "epoch"

    def __post_init__(self) -> None:
        if self.arm not in ARMS:
            raise InputError(f"the arm is one of {', '.join(ARMS)}, got {shown(self.arm)!r}")
        if self.random_tokens not in ("epoch", "fixed"):
            raise InputError(f"random tokens are drawn per 'epoch' or 'fixed', got {shown(self.random_tokens)!r}")
        if self.arm == "ticket" and self.join is None:
            raise InputError("the ticket arm needs a join with a ticket file")

    def has_patches(self, frames: Sequence[Frame]) -> NDArray[np.bool_]:
        """Bool [B]: whether the image is shown by a choice of patches, and not whole (dense arm, missing='dense')."""
        if self.arm != "ticket" or self.join is None:
            return np.full(len(frames), self.arm == "random")
        if self.join.coverage.policy != "dense":
            return np.ones(len(frames), dtype=bool)
        return self.join.ticket_row[[frame.sample_id for frame in frames]] >= 0

    def rankings(self, frames: Sequence[Frame], epoch: int) -> Ranking:
        """Int64 [B, P]: all patches of each frame's view, best first; row-major for images that are shown whole.

        With a file of form 'top', whose tickets cannot be moved, [B, ranked]: the best patches alone.
        """
        if self.arm == "ticket" and self.join is not None:
            return self._tickets(frames, epoch, self.join)
        if self.random_tokens == "fixed":
            rows = np.stack([self._random(frame.key, "fixed") for frame in frames])
            return self._moved(rows, View.whole(self.grid), frames)
        return np.stack([self._random(frame.key, epoch) for frame in frames])

    def _tickets(self, frames: Sequence[Frame], epoch: int, join: Join) -> Ranking:
        places = join.ticket_row[[frame.sample_id for frame in frames]]
        header, there = join.store.header, np.flatnonzero(places >= 0).tolist()
        rankings = np.tile(np.arange(header.ranked), (len(frames), 1))
        if there:
            seen = [frames[i] for i in there]
            if header.view.kind == "whole":
                source = View.whole(header.grid)
            else:
                source = View.stack([header.view.view_of(*frame.size, header.grid) for frame in seen])
            rankings[there] = self._moved(stored_rankings(join, places[there]), source, seen)
        for i in np.flatnonzero(places < 0).tolist():
            rankings[i] = self._missing(frames[i], int(places[i]), epoch, join)[: header.ranked]
        return rankings

    def _missing(self, frame: Frame, place: int, epoch: int, join: Join) -> Ranking:
        policy = join.coverage.policy
        if policy == "random" and place == NO_TICKET:
            return self._random(frame.key, epoch)
        if policy == "dense" and place == NO_TICKET:
            return np.arange(self.grid.num_patches)
        why = "was bad when the tickets were made" if place == BAD_IMAGE else f"has none (missing='{policy}')"
        raise MissingTicketError(f"a ticket was asked for an image that {why}: key {shown(frame.key)}")

    def _moved(self, rows: NDArray[np.integer], source: View, frames: Sequence[Frame]) -> Ranking:
        """Rankings in the frames' views, what these hide demoted."""
        target = View.stack([frame.view for frame in frames])
        matrix = np.broadcast_to(source.matrix, target.matrix.shape)
        if source.grid != target.grid or not np.array_equal(matrix, target.matrix):
            rows = project(rows, source, target)
        moved = rows.astype(np.int64)
        hidden = {i: frame.hidden for i, frame in enumerate(frames) if frame.hidden is not None}
        if hidden:
            moved[list(hidden)] = demote(moved[list(hidden)], np.stack(list(hidden.values())))
        return moved

    def _random(self, key: str, *draw: Part) -> Ranking:
        return generator(self.seed, "patches", key, *draw).permutation(self.grid.num_patches)


def stored_rankings(join: Join, places: Ranking) -> NDArray[np.integer]:
    """Unsigned [B, ranked]: the file's rows at `places` int64 [B]; a ticket shard is read once while it is in use."""
    store = join.store
    rows = np.empty((len(places), store.num_patches_stored), dtype=store.layout.patches.dtype)
    shards = places // store.max_rows
    for shard in np.unique(shards):
        at = np.flatnonzero(shards == shard)
        rows[at] = store.patches(int(shard))[places[at] % store.max_rows]
    return rows
