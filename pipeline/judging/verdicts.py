"""The paper's clauses, each held against the runs of a study: holds, fails, or not decided with so many seeds.

A clause is one claim over all keeps of a study. To look at four keeps and tell of the one that came out is to test four
times, so p-values are corrected over the keeps of a clause by Holm's procedure (Scand. J. Stat. 6, 1979), which asks
nothing of how the keeps depend on each other; they share the dense arm. Modes and variants of settings are questions of
their own, as are the three clauses, and are not corrected for each other. A clause about weights is likewise one claim
over all shares of the weights that an arm was pruned to; what patches do at each of these is a question of its own.

Each keep can end in two ways, "holds" and "fails", and each way is a test; the tests of each way are a family. So a
clause says "holds" of any keep where it does not, or "fails" where it does not, as seldom as of a single one: at most
in 2.5 % of studies each for "better than" (one side of a two-sided test), in 5 % and 2.5 % for "as good as".
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray

from dlth.pipeline.evidence.arm_key import (
    CONTROL,
    LT,
    ONE_SHOT,
    PRUNED,
    RANDOM_MASK,
    RR,
    UNPRUNED,
    ArmKey,
    by_weights,
    pairs,
    stands_in,
)
from dlth.pipeline.judging.arm_comparison import LEVEL, SEEDS_FOR_ARMS, Comparison, Outcome, compare_arms
from dlth.pipeline.judging.power import POWER, MoreSeeds, more_seeds
from dlth.tickets.errors import MismatchError

Hits = Mapping[ArmKey, Mapping[int, NDArray[np.bool_]]]
"""Per arm and seed bool [N], or [draws, N]: which validation images were right, on the tokens that the arm is judged
by.
"""


@dataclass(frozen=True)
class Clause:
    """A claim about two arms, such as "ticket as good as dense"."""

    first: str
    claim: Literal["as good as", "better than"]
    second: str

    def __str__(self) -> str:
        return f"{self.first} {self.claim} {self.second}"

    @property
    def of_weights(self) -> bool:
        """Whether it is about which weights remain, and not about which patches."""
        return self.first in PRUNED


PAPER = (
    Clause("ticket", "as good as", "dense"),
    Clause("ticket", "better than", "random"),
    Clause("dense", "better than", "random"),
)
"""The lottery ticket hypothesis for inputs: LT ≈ dense > RC."""
WEIGHTS = (
    Clause(LT, "better than", RR),
    Clause(LT, "as good as", RR),
    Clause(LT, "as good as", UNPRUNED),
    Clause(LT, "better than", RANDOM_MASK),
    Clause(LT, "better than", ONE_SHOT),
)
"""The lottery ticket hypothesis for weights: LT ≈ unpruned > RR; a ticket is mask and first weights together."""


@dataclass(frozen=True)
class ClauseVerdict:
    """What the runs say of a clause at one keep, mode and variant, and share of the weights.

    first, second: the two arms; seeds: those that both have, which are compared
    top1: mean accuracy of the two in percent; comparison: of the two, about arms from three seeds on, about these very
        models below; both None where no seed is shared
    p_value: of the way that the difference leans to, "holds" or "fails"; None below three seeds
    p_holm: the same, corrected over the keeps of the clause, or its shares of weights; decided where it is below 0.05
    num_keeps: over how many of these was corrected; those with too few seeds count
    more_seeds: what would decide it; None where it is decided
    """

    clause: Clause
    first: ArmKey
    second: ArmKey
    seeds: tuple[int, ...]
    outcome: Outcome
    top1: tuple[float, float] | None
    comparison: Comparison | None
    p_value: float | None
    p_holm: float | None
    num_keeps: int
    more_seeds: MoreSeeds | None

    @property
    def text(self) -> str:
        """The verdict in a few sentences, with its figures."""
        return " ".join(filter(None, (f"{_claimed(self)}: {self.outcome}.", _figures(self), _outlook(self))))


def judge(hits: Hits, margin: float, apart: Collection[tuple[ArmKey, ArmKey]] = ()) -> tuple[ClauseVerdict, ...]:
    """Hold the paper's clauses on patches, the ticket arm's better than each control, and the clauses on weights
    against the runs of a study.

    Args:
        hits: bool [N] per arm and seed, or [draws, N] where a seed has several of them, all seeds of the arm as many,
            under the key of its first; the same images in the same order everywhere
        margin: points within which "as good as" takes two accuracies for equal, named before the runs were seen
        apart: arms of which one stands in beside the other (`stands_in`), and that differ in more than the arm: no
            verdict holds one against the other
    Returns:
        A verdict for each clause and each keep, mode, variant and share of the weights that both arms were run with, in
        the clauses' order.
    Raises:
        MismatchError: different numbers of images, or seeds of an arm with different numbers of draws
        InputError: arrays that are not bool [N] or [draws, N], or a margin that is not above 0 and up to 100.
    """
    if len({np.shape(images)[-1:] for runs in hits.values() for images in runs.values()}) > 1:
        raise MismatchError("runs were evaluated on different numbers of images. Give those that all of them saw.")
    for arm, runs in hits.items():
        if len({np.shape(images)[:-1] for images in runs.values()}) > 1:
            raise MismatchError(f"{arm}: some seeds have more draws than others. Give as many of each.")
    controls = sorted({key.arm for key in hits if key.arm.startswith(CONTROL)})
    clauses = (*PAPER, *(Clause("ticket", "better than", control) for control in controls), *WEIGHTS)
    return tuple(verdict for clause in clauses for verdict in _judged(hits, clause, margin, apart))


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for their number: the smallest times n, the next times n - 1, …, none below one before it."""
    order = sorted(range(len(p_values)), key=lambda place: p_values[place])
    corrected, most = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(order):
        most = max(most, min(1.0, (len(p_values) - rank) * p_values[place]))
        corrected[place] = most
    return corrected


@dataclass(frozen=True)
class _Pair:
    """Two arms of a clause, and their comparison over the seeds that both have."""

    first: ArmKey
    second: ArmKey
    seeds: tuple[int, ...]
    top1: tuple[float, float] | None = None
    came: Comparison | None = None

    @classmethod
    def of(cls, hits: Hits, first: ArmKey, second: ArmKey, margin: float | None) -> Self:
        seeds = tuple(sorted(hits[first].keys() & hits[second].keys()))
        if not seeds:
            return cls(first, second, seeds)
        one, other = (np.stack([hits[arm][seed] for seed in seeds]) for arm in (first, second))
        came = compare_arms(one, other, margin)
        return cls(first, second, seeds, (100 * float(one.mean()), 100 * float(other.mean())), came)

    @property
    def leans_to_hold(self) -> bool:
        """Whether the clause holds if the difference is as seen."""
        if self.came is None:
            return True
        return self.came.difference > 0 if self.came.margin is None else abs(self.came.difference) < self.came.margin

    @property
    def ways(self) -> tuple[float, float]:
        """P-values of "holds" and of "fails"; too few seeds show neither."""
        if self.came is None or self.came.about == "models":
            return 1.0, 1.0
        if self.came.equivalence_p_value is not None and self.came.beyond_p_value is not None:
            return self.came.equivalence_p_value, self.came.beyond_p_value
        return (self.came.p_value, 1.0) if self.leans_to_hold else (1.0, self.came.p_value)


def _judged(
    hits: Hits, clause: Clause, margin: float, apart: Collection[tuple[ArmKey, ArmKey]]
) -> Iterator[ClauseVerdict]:
    """The verdicts of a clause: one family of keeps for each mode, variant and share of the weights; of a clause about
    weights one family of shares for each arm, keep, mode and variant.
    """
    families: dict[ArmKey, list[_Pair]] = {}
    for (first, second), key in pairs(clause.first, clause.second, hits).items():
        if (first, second) not in apart:
            pair = _Pair.of(hits, first, second, margin if clause.claim == "as good as" else None)
            families.setdefault(key.unpruned if clause.of_weights else replace(key, arm="", keep=""), []).append(pair)
    for family in sorted(families, key=lambda key: (key.arm, key.keep, key.mode, key.variant, by_weights(key))):
        yield from _corrected(clause, families[family])


def _corrected(clause: Clause, pairs: Sequence[_Pair]) -> Iterator[ClauseVerdict]:
    """The verdicts of a family, each way of them corrected by itself."""
    holds, fails = (holm(p_values) for p_values in zip(*(pair.ways for pair in pairs), strict=True))
    for place, pair in enumerate(pairs):
        outcome: Outcome = "holds" if holds[place] < LEVEL else "fails" if fails[place] < LEVEL else "not decided"
        way, corrected = (0, holds) if pair.leans_to_hold else (1, fails)
        known = len(pair.seeds) >= SEEDS_FOR_ARMS
        undecided = sum(p_value >= LEVEL for p_value in corrected)  # Holm's next step is at this part of the level
        yield ClauseVerdict(
            clause=clause,
            first=pair.first,
            second=pair.second,
            seeds=pair.seeds,
            outcome=outcome,
            top1=pair.top1,
            comparison=pair.came,
            p_value=pair.ways[way] if known else None,
            p_holm=corrected[place] if known else None,
            num_keeps=len(pairs),
            more_seeds=_missing(pair.came, LEVEL / undecided) if outcome == "not decided" else None,
        )


def _missing(came: Comparison | None, level: float) -> MoreSeeds:
    return MoreSeeds("at least", SEEDS_FOR_ARMS) if came is None else more_seeds(came, level)


def _claimed(verdict: ClauseVerdict) -> str:
    """The claim and where it is made: "ticket as good as dense within 1 point, keep 0.7, projected", or "lt better than
    rr at 0.512 of the weights".
    """
    came, first, second = verdict.comparison, verdict.first, verdict.second
    within = f" within {_points(came.margin)}" if came and came.margin is not None else ""
    if verdict.clause.of_weights:
        arm = str(first.unpruned).removeprefix("dense").removeprefix(", ")  # whose weights they are, if not the dense's
        return f"{verdict.clause}{within}{f', {arm},' if arm else ''} at {first.weights} of the weights"
    sparse, other = (second, first) if first.arm == "dense" else (first, second)
    stand_in = f" (against {other})" if stands_in(first, second) else ""
    return f"{verdict.clause}{within}{str(sparse).removeprefix(sparse.arm)}{stand_in}"


def _figures(verdict: ClauseVerdict) -> str:
    came = verdict.comparison
    if came is None or verdict.top1 is None:
        return "No seed was run with both arms."
    first, second = verdict.top1
    draws = "" if came.num_draws == (1, 1) else f"{came.num_draws[0]} against {came.num_draws[1]} draws of each, "
    seeds = f"{_seeds(came.num_seeds)}, {draws}{came.num_images:,} images"
    text = (
        f"{first:.1f} % against {second:.1f} %, {came.difference:+.2f} points,"
        f" 95 % interval {came.low:+.2f} to {came.high:+.2f}"
    )
    if verdict.p_value is None or verdict.p_holm is None:
        return f"{text}; {seeds}, about these very models."
    tried = f"{verdict.num_keeps} {'shares' if verdict.clause.of_weights else 'keeps'}"
    corrected = f", corrected over {tried} p {_p(verdict.p_holm)}" if verdict.num_keeps > 1 else ""
    better = verdict.outcome == "fails" and verdict.clause.claim == "as good as" and came.difference > 0
    beyond = f" {verdict.clause.first.capitalize()} is better by more than the margin." if better else ""
    return f"{text}, p {_p(verdict.p_value)}{corrected}; {seeds}.{beyond}"


def _outlook(verdict: ClauseVerdict) -> str:
    """What would decide it; empty where it is decided."""
    more, came = verdict.more_seeds, verdict.comparison
    if more is None:
        return ""
    if more.bound == "at least" or came is None or came.run_spread is None:
        needed = f"{_seeds(more.number, 'more ')} {'is' if more.number == 1 else 'are'} needed"
        return f"Arms are not judged below {SEEDS_FOR_ARMS} seeds: at least {needed}."
    if more.bound == "never":
        return f"If the difference is as seen, no number of seeds decides it with {came.num_images:,} images."
    return (
        f"{more.bound.capitalize()} {_seeds(more.number, 'more ')} would decide it with a chance of {100 * POWER:g} %,"
        f" if difference and spread between runs ({_points(came.run_spread)}) are as seen."
    )


def _seeds(number: int, more: str = "") -> str:
    return f"{number} {more}{'seed' if number == 1 else 'seeds'}"


def _points(points: float) -> str:
    return f"{points:.2g} {'point' if f'{points:.2g}' == '1' else 'points'}"


def _p(p_value: float) -> str:
    return "< 0.001" if p_value < 0.001 else f"= {p_value:.2g}"
