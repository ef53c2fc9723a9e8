"""What the tickets of a file look like as a whole, in one pass over its shards.

Let f(p) be the share of tickets that keep patch p, k the patches a ticket keeps, P the patches of the grid.

* centre bias = (mean of f over the central quarter of the view) / (k / P). The central quarter is the box with half the
  view's width and half its height around the centre; patches count by the share of their area in it. 1: as often as
  anywhere; 2: twice as often as tickets spread evenly would.
* entropy of positions = -sum q(p) log2 q(p) with q = f / k, in bits, and as a share of log2 P. A share of 1: every
  position is kept equally often; low: the same positions in every image.
* fragile rows: those whose gap (score of the k-th patch minus that of the next) is below a threshold, so that another
  library version or precision may choose otherwise. Rows whose cut no score decided have the gap infinity.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dlth.tickets.arguments import whole_number
from dlth.tickets.callbacks import Progress
from dlth.tickets.format.rows import ShardTickets
from dlth.tickets.ranking.grid import Grid
from dlth.tickets.ranking.projection import covered
from dlth.tickets.store.labels import Labels, RowLabels
from dlth.tickets.store.ticket_store import TicketStore, open_store

THRESHOLDS = (1e-6, 1e-5, 1e-4, 1e-3)

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]


@dataclass(frozen=True)
class PositionStats:
    """Tickets of one group of rows; NaN where the group has none. `fragile`: share of rows by gap threshold."""

    num_tickets: int
    centre_bias: float
    entropy_bits: float
    entropy_share: float
    fragile: dict[float, float]


@dataclass(frozen=True, eq=False)
class TicketStats:
    """Statistics of the first k patches of every ticket.

    `num_rows` images, of which `num_skipped` have no ticket; `frequency` float64 [P], the share of tickets that keep
    each patch; `positions_used`, patches that any ticket keeps; `unscored`, share of tickets whose cut no score
    decided; `overall`; `classes`, by label, ascending.
    """

    num_rows: int
    num_skipped: int
    k: int
    frequency: Floats
    positions_used: int
    unscored: float
    overall: PositionStats
    classes: dict[int, PositionStats]

    @property
    def alike(self) -> bool:
        """Whether several images have tickets, all of the same patches and not of all patches."""
        return self.overall.num_tickets > 1 and self.positions_used == self.k < len(self.frequency)


def ticket_stats(
    store: TicketStore,
    labels: Labels | None = None,
    k: int | None = None,
    thresholds: tuple[float, ...] = THRESHOLDS,
    progress: Progress | None = None,
) -> TicketStats:
    """Statistics of a file's tickets cut to `k` (the header's by default), by class where `labels` are given.

    Gaps are those at the header's k whatever `k` says. Memory grows with the classes, not with the rows. Raises
    InputError (k, labels) and DamageError.
    """
    k = open_store(store).header.k if k is None else whole_number(k, "k", 1, store.num_patches_stored)
    store.header.check_serves(k)
    overall = _Counts(store.header.grid, k, thresholds)
    by_class = _Counts(store.header.grid, k, thresholds)
    row_labels = None if labels is None else RowLabels(labels, store)
    for shard_index in range(len(store.shards)):
        tickets = store.read(shard_index)
        overall.add(tickets, np.zeros(tickets.num_rows, dtype=np.int64))
        if row_labels is not None:
            by_class.add(tickets, row_labels.of(shard_index))
        if progress is not None:
            progress(shard_index + 1, len(store.shards))
    whole = overall.stats(0)
    return TicketStats(
        num_rows=store.num_rows,
        num_skipped=store.num_skipped,
        k=k,
        frequency=overall.kept[0] / max(whole.num_tickets, 1),
        positions_used=int((overall.kept[0] > 0).sum()),
        unscored=float(overall.unscored / max(whole.num_tickets, 1)),
        overall=whole,
        classes={label: by_class.stats(label) for label in map(int, np.flatnonzero(by_class.rows))},
    )


def central_area(grid: Grid) -> Floats:
    """Float64 [P]: the share of each patch's area that lies in the central quarter of the view."""
    share: Floats = covered(np.array([[0.25, 0.25, 0.75, 0.75]]), grid)[0]
    return share


class _Counts:
    """Running counts by group: `kept` [groups, P], `rows` [groups], `fragile` [groups, thresholds]."""

    def __init__(self, grid: Grid, k: int, thresholds: tuple[float, ...]) -> None:
        self.grid, self.k, self.thresholds = grid, k, thresholds
        self.kept: Counts = np.zeros((1, grid.num_patches), dtype=np.int64)
        self.rows: Counts = np.zeros(1, dtype=np.int64)
        self.fragile: Counts = np.zeros((1, len(thresholds)), dtype=np.int64)
        self.unscored = 0

    def add(self, tickets: ShardTickets, groups: Counts) -> None:
        """Count one shard's tickets; `groups` int64 [rows], -1 for none."""
        chosen = ~tickets.skipped & (groups >= 0)
        if not chosen.any():
            return
        groups, gap = groups[chosen], tickets.gap[chosen]
        self._grow(int(groups.max()) + 1)
        num_groups, num_patches = self.kept.shape
        places = groups[:, None] * num_patches + tickets.patches[chosen, : self.k]
        self.kept += np.bincount(places.ravel(), minlength=self.kept.size).reshape(self.kept.shape)
        self.rows += np.bincount(groups, minlength=num_groups)
        for column, threshold in enumerate(self.thresholds):
            self.fragile[:, column] += np.bincount(groups[gap < threshold], minlength=num_groups)
        self.unscored += int(np.isinf(gap).sum())

    def stats(self, group: int) -> PositionStats:
        """The statistics of one group."""
        rows = int(self.rows[group])
        if rows == 0:
            return PositionStats(0, np.nan, np.nan, np.nan, dict.fromkeys(self.thresholds, np.nan))
        num_patches = self.grid.num_patches
        area = central_area(self.grid)
        frequency = self.kept[group] / rows
        share = frequency[frequency > 0] / self.k
        entropy = float(-(share * np.log2(share)).sum())
        return PositionStats(
            num_tickets=rows,
            centre_bias=float((area * frequency).sum() / area.sum() * num_patches / self.k),
            entropy_bits=entropy,
            entropy_share=entropy / np.log2(num_patches) if num_patches > 1 else 1.0,
            fragile={
                threshold: float(count / rows)
                for threshold, count in zip(self.thresholds, self.fragile[group], strict=True)
            },
        )

    def _grow(self, num_groups: int) -> None:
        more = num_groups - len(self.rows)
        if more > 0:
            self.kept = np.pad(self.kept, ((0, more), (0, 0)))
            self.rows = np.pad(self.rows, (0, more))
            self.fragile = np.pad(self.fragile, ((0, more), (0, 0)))
