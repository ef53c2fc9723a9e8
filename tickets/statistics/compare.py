"""How far two ticket files agree, image by image.

For each k: the share of a ticket that the other file keeps too, |A ∩ B| / k, and the intersection over union,
|A ∩ B| / (2k - |A ∩ B|), of the two files' k best patches; tickets drawn at random would share k / P. Where both files
rank all patches also Spearman's rank correlation, 1 - 6 sum d² / (P (P² - 1)) with d the difference of a patch's ranks.

Every figure comes with its spread over the images. Overlaps are counts from 0 to k, so their whole distribution is kept
as a histogram and quantiles are exact in constant memory; rank correlations are rounded to four digits for the same
reason.
"""

import heapq
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from dlth.tickets.arguments import listed, whole_number
from dlth.tickets.callbacks import Progress
from dlth.tickets.derive.draft import check_same_frame
from dlth.tickets.derive.pairing import Pairing
from dlth.tickets.errors import InputError
from dlth.tickets.ranking.budget import num_kept
from dlth.tickets.ranking.ranks import rank_matrix
from dlth.tickets.store.labels import NO_LABEL, Labels, RowLabels
from dlth.tickets.store.ticket_store import TicketStore, open_stores

KEEPS = ("0.1", "0.25", "0.5", "0.7", "0.9")
_RHO_STEPS = 10_000

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Spread:
    """A distribution over images: mean, standard deviation, least, 5th, 50th and 95th percentile; NaN when empty."""

    count: int
    mean: float
    std: float
    least: float
    p05: float
    median: float
    p95: float


@dataclass(frozen=True)
class Overlap:
    """Agreement of the k best patches; `chance` is the share that random tickets would have in common."""

    k: int
    chance: float
    share: Spread
    iou: Spread


@dataclass(frozen=True)
class WorstRow:
    """One image whose tickets agree little, with its shard in the first file."""

    key: str
    shard: str
    share: float
    iou: float
    rank_correlation: float | None


@dataclass(frozen=True)
class ClassAgreement:
    """Agreement of one class's images at the comparison's main k."""

    iou: Spread
    rank_correlation: Spread | None


@dataclass(frozen=True)
class Comparison:
    """Two files side by side.

    `num_matched` rows have the same key, of which `num_compared` have a ticket in both files and
    `num_other_bytes` were made from images with other encoded bytes; `only_first` and `only_second` rows are
    in one file alone. `overlaps` ascend in k; `main_k` is that of `classes` and `worst` (lowest overlap first).
    """

    num_matched: int
    num_compared: int
    num_other_bytes: int
    only_first: int
    only_second: int
    main_k: int
    overlaps: tuple[Overlap, ...]
    rank_correlation: Spread | None
    classes: dict[int, ClassAgreement]
    worst: tuple[WorstRow, ...]


def compare(
    first: TicketStore,
    second: TicketStore,
    ks: tuple[int, ...] | None = None,
    labels: Labels | None = None,
    num_worst: int = 10,
    progress: Progress | None = None,
) -> Comparison:
    """Compare two files, their rows matched by key; by class where `labels` of the first file's rows are given.

    `ks`: counts of patches to compare at (by default those of keep 0.1 to 0.9 and the first file's own k); the main one
    is the first file's own k where both files hold it, else the largest. Raises MismatchError when grid or view differ.
    """
    check_same_frame(open_stores([first, second]))
    num_worst = whole_number(num_worst, "the number of images to list", 0)
    held = min(first.num_patches_stored, second.num_patches_stored)
    counts = _chosen(ks, first, second, held)
    main_k = first.header.k if first.header.k in counts else counts[-1]
    ranked = first.header.form == second.header.form == "full" and first.header.grid.num_patches > 1
    state = _State(counts, main_k, first.header.grid.num_patches, ranked, num_worst)
    row_labels = None if labels is None else RowLabels(labels, first)
    pairing = Pairing(first, second)
    for shard_index, shard in enumerate(first.shards):
        ours = first.read(shard_index)
        theirs, paired = pairing.rows(shard_index)
        both = np.flatnonzero(paired & ~ours.skipped & ~theirs.skipped)
        state.matched += int(paired.sum())
        state.other_bytes += int((paired & (ours.images != theirs.images).any(axis=1)).sum())
        groups = np.full(len(both), NO_LABEL) if row_labels is None else row_labels.of(shard_index)[both]
        keys = [ours.keys[row] for row in both]
        state.add(ours.patches[both], theirs.patches[both], groups, keys, shard.name)
        if progress is not None:
            progress(shard_index + 1, len(first.shards))
    return state.result(first.num_rows, second.num_rows)


class _Tally:
    """A histogram over known values; every statistic comes from it."""

    def __init__(self, values: Floats) -> None:
        self.values = values
        self.counts = np.zeros(len(values), dtype=np.int64)

    def add(self, places: NDArray[np.int64]) -> None:
        self.counts += np.bincount(places, minlength=len(self.counts))

    def spread(self, values: Floats | None = None) -> Spread:
        """The distribution; `values` replaces the values by a rising function of them."""
        values = self.values if values is None else values
        total = int(self.counts.sum())
        if total == 0:
            return Spread(0, *[float("nan")] * 6)
        mean = float((self.counts * values).sum() / total)
        variance = float((self.counts * (values - mean) ** 2).sum() / total)
        reached = np.cumsum(self.counts)
        least, *quantiles = (
            float(values[np.searchsorted(reached, max(share * total, 1))]) for share in (0.0, 0.05, 0.5, 0.95)
        )
        return Spread(total, mean, variance**0.5, least, *quantiles)


@dataclass
class _State:
    """Running counts of a comparison."""

    ks: tuple[int, ...]
    main_k: int
    num_patches: int
    ranked: bool
    num_worst: int
    matched: int = 0
    other_bytes: int = 0
    seen: int = 0
    worst: list[tuple[float, int, WorstRow]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.overlaps = {k: _Tally(np.arange(k + 1) / k) for k in self.ks}
        self.rho = _rho_tally()
        self.class_overlap: dict[int, _Tally] = {}
        self.class_rho: dict[int, _Tally] = {}

    def add(
        self,
        ours: NDArray[np.integer],
        theirs: NDArray[np.integer],
        groups: NDArray[np.int64],
        keys: list[str],
        shard: str,
    ) -> None:
        """Count rows [rows, ranked] of both files."""
        left, right = rank_matrix(ours, self.num_patches), rank_matrix(theirs, self.num_patches)
        later = np.maximum(left, right)
        common = {k: (later < k).sum(axis=1) for k in self.ks}
        for k, counts in common.items():
            self.overlaps[k].add(counts)
        rho = _rank_correlation(left, right) if self.ranked else None
        if rho is not None:
            self.rho.add(_rho_place(rho))
        main = common[self.main_k]
        for label in np.unique(groups[groups >= 0]):
            chosen = groups == label
            self.class_overlap.setdefault(int(label), _Tally(np.arange(self.main_k + 1.0))).add(main[chosen])
            if rho is not None:
                self.class_rho.setdefault(int(label), _rho_tally(100)).add(_rho_place(rho[chosen], 100))
        self._keep_worst(main, rho, keys, shard)
        self.seen += len(keys)

    def _keep_worst(self, main: NDArray[np.int64], rho: Floats | None, keys: list[str], shard: str) -> None:
        for row in np.argsort(main, kind="stable")[: self.num_worst]:
            share = float(main[row] / self.main_k)
            worst = WorstRow(
                keys[row], shard, share, share / (2 - share), None if rho is None else round(float(rho[row]), 6)
            )
            # a heap's first is its smallest: what is to be dropped first has the largest overlap, then comes last
            item = (-share, -(self.seen + int(row)), worst)
            if len(self.worst) < self.num_worst:
                heapq.heappush(self.worst, item)
            elif item > self.worst[0]:
                heapq.heapreplace(self.worst, item)

    def result(self, num_first: int, num_second: int) -> Comparison:
        def iou(k: int) -> Floats:
            common = np.arange(k + 1)
            result: Floats = common / (2 * k - common)
            return result

        return Comparison(
            num_matched=self.matched,
            num_compared=self.seen,
            num_other_bytes=self.other_bytes,
            only_first=num_first - self.matched,
            only_second=num_second - self.matched,
            main_k=self.main_k,
            overlaps=tuple(
                Overlap(k, k / self.num_patches, tally.spread(), tally.spread(iou(k)))
                for k, tally in self.overlaps.items()
            ),
            rank_correlation=self.rho.spread() if self.ranked else None,
            classes={
                label: ClassAgreement(
                    self.class_overlap[label].spread(iou(self.main_k)),
                    self.class_rho[label].spread() if self.ranked else None,
                )
                for label in sorted(self.class_overlap)
            },
            worst=tuple(item[2] for item in sorted(self.worst, reverse=True)),
        )


def _rank_correlation(left: NDArray[np.int64], right: NDArray[np.int64]) -> Floats:
    """Spearman's rank correlation of each row of two rank matrices [rows, P]."""
    size = left.shape[1]
    squares: Floats = ((left - right).astype(np.float64) ** 2).sum(axis=1)
    result: Floats = 1.0 - 6.0 * squares / (size * (size**2 - 1))
    return result


def _rho_tally(steps: int = _RHO_STEPS) -> _Tally:
    return _Tally(np.arange(-steps, steps + 1) / steps)


def _rho_place(rho: Floats, steps: int = _RHO_STEPS) -> NDArray[np.int64]:
    return np.rint(rho * steps).astype(np.int64) + steps


def _chosen(ks: tuple[int, ...] | None, first: TicketStore, second: TicketStore, held: int) -> tuple[int, ...]:
    headers = first.header, second.header
    if ks is None:
        wanted = {headers[0].k, *(num_kept(keep, headers[0].grid.num_patches) for keep in KEEPS)}
        ks = tuple(k for k in wanted if all(header.serves(k) for header in headers)) or (headers[1].k,)
    ks = listed(ks, "numbers of patches")
    if not ks:
        raise InputError("say at how many patches to compare, got none")
    ks = tuple(whole_number(k, "k", 1, held) for k in ks)
    for header in headers:
        for k in ks:
            header.check_serves(k)
    return tuple(sorted(set(ks)))
