"""Simulated studies of several keeps: how often do verdicts say what is not so, and find what they were planned for?

    python tests/pipeline/judging/verdict_studies.py [--studies 1000]

prints the tables on verdicts of docs/statistics.md; how a result comes about is told in `makers.known_arms`. All keeps
are held against one dense arm, as in a real study.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

from makers.known_arms import draw_ease, draw_runs

from dlth.pipeline.evidence.arm_key import ArmKey
from dlth.pipeline.judging.arm_comparison import LEVEL, Comparison, Noise, compare_arms
from dlth.pipeline.judging.power import MOST_SEEDS, chance_to_decide, more_seeds
from dlth.pipeline.judging.verdicts import ClauseVerdict, Hits, judge

MARGIN = 1.0


@dataclass(frozen=True)
class Study:
    """The dense arm, and another at as many keeps as there are `gaps`: so many points it is below the dense one.

    other: "random" (is dense better?) or "ticket" (is it as good as dense, within a point?)
    """

    other: str
    gaps: tuple[float, ...]
    seeds: int
    spread: float
    images: int = 10_000
    accuracy: float = 0.8
    interaction: bool = True

    def draw(self, rng: np.random.Generator) -> Hits:
        """The runs of all arms."""
        ease_N = draw_ease(rng, self.images)
        arms = {ArmKey("dense"): 0.0} | {
            ArmKey(self.other, f"0.{9 - place}", "projected"): gap for place, gap in enumerate(self.gaps)
        }
        hits = {}
        for arm, gap in arms.items():
            accuracy = self.accuracy - gap / 100
            runs_SN, _ = draw_runs(rng, ease_N, self.seeds, accuracy, self.spread, self.interaction)
            hits[arm] = dict(enumerate(runs_SN))
        return hits

    def rng(self, seed: int = 0) -> np.random.Generator:
        """Random numbers of this study's own."""
        numbers = [self.seeds, self.images, int(10 * self.spread), *(int(100 * gap) for gap in self.gaps)]
        return np.random.default_rng([seed, self.other == "ticket", *numbers])


@dataclass(frozen=True)
class Rates:
    """Shares of studies in percent.

    any_keep: a verdict `outcome` at any keep; uncorrected: as it would be if each keep were judged alone
    first_keep: a verdict `outcome` at the keep whose gap stands first
    """

    any_keep: float
    uncorrected: float
    first_keep: float


def rates(study: Study, outcomes: Sequence[tuple[str, ...]], count: int) -> list[Rates]:
    """Draw and judge `count` studies; for each group of outcomes, how often a verdict was of it."""
    rng, rows = study.rng(), []
    for _ in range(count):
        verdicts = judge(study.draw(rng), MARGIN)
        said = [(verdict.outcome, _alone(verdict)) for verdict in verdicts]
        rows.append(
            [
                (any(c in group for c, _ in said), any(a in group for _, a in said), said[0][0] in group)
                for group in outcomes
            ]
        )
    return [Rates(*values) for values in 100 * np.array(rows, float).mean(axis=0)]


def _alone(verdict: ClauseVerdict) -> str:
    """What would be said of a keep without the others."""
    assert verdict.comparison is not None
    return verdict.comparison.better if verdict.clause.claim == "better than" else verdict.comparison.as_good


def truth(study: Study) -> Comparison:
    """What three seeds see of the first keep if they show its true difference and spread.

    What luck adds to the spread, and the images' noise, are estimated from 8 times 50 runs of equal level.
    """
    rng, parts = np.random.default_rng(5), []
    margin = MARGIN if study.other == "ticket" else None
    for _ in range(8):
        dense, other = (np.stack(list(runs.values())) for runs in replace(study, seeds=50, spread=0).draw(rng).values())
        came = compare_arms(*((other, dense) if margin else (dense, other)), margin)
        parts.append([variance for variance, _ in came.noise.parts])
    luck, images = np.mean(parts, axis=0).tolist()
    runs = 2 * (study.spread / 100) ** 2 + 50 * luck
    noise = Noise(((runs / 3, 2), (images, study.images + 1)))
    return replace(came, difference=study.gaps[0] * (-1 if margin else 1), noise=noise, num_seeds=3)


def planned(study: Study) -> tuple[Study, float]:
    """The study with the seeds that `more_seeds` asks for if the truth is known, and the chance that it promises."""
    level, known = LEVEL / len(study.gaps), truth(replace(study, gaps=study.gaps[:1]))
    more = more_seeds(known, level)
    assert more.bound == "about"
    return replace(study, seeds=3 + more.number), 100 * chance_to_decide(known, 3 + more.number, level)


@dataclass(frozen=True)
class Grown:
    """Shares in percent: of studies of three seeds decided at once, and after as many more as the verdict asked for;
    `after`: of those that asked for a number, decided then.
    """

    at_once: float
    in_all: float
    after: float


def grown(study: Study, count: int) -> Grown:
    """Draw `count` studies of one keep, judge three seeds, add what is asked for, and judge once more."""
    rng, rows = study.rng(), []
    for _ in range(count):
        hits = replace(study, seeds=MOST_SEEDS).draw(rng)
        first = _of(hits, 3)
        asked = first.more_seeds is not None and first.more_seeds.bound == "about"
        last = _of(hits, 3 + first.more_seeds.number) if first.more_seeds is not None and asked else first
        rows.append((first.outcome != "not decided", last.outcome != "not decided", asked))
    at_once, in_all, asked_for = np.array(rows).T
    return Grown(100 * at_once.mean(), 100 * in_all.mean(), 100 * (in_all & asked_for).sum() / max(1, asked_for.sum()))


def _of(hits: Hits, seeds: int) -> ClauseVerdict:
    (verdict,) = judge({arm: {seed: runs[seed] for seed in range(seeds)} for arm, runs in hits.items()}, MARGIN)
    return verdict


def wrong_table(count: int) -> None:
    """How often verdicts say what is not so, at any keep: of equal arms, and of arms a margin apart."""
    print("| keeps | seeds | spread | different | as good | not as good |\n|---|---|---|---|---|---|")
    for keeps, seeds, spread in ((k, s, p) for k in (1, 4) for s in (3, 5) for p in (0.1, 0.5, 2.0)):
        equal = rates(Study("random", (0.0,) * keeps, seeds, spread), [("holds", "fails")], count)
        apart = rates(Study("ticket", (MARGIN,) * keeps, seeds, spread), [("holds",), ("fails",)], count)
        cells = [f"{came.any_keep:.1f} ({came.uncorrected:.1f})" for came in equal + apart]
        print(f"| {keeps} | {seeds} | {spread:g} | " + " | ".join(cells) + " |", flush=True)


def power_table(count: int) -> None:
    """Whether as many seeds as `more_seeds` asks for decide as often as it says."""
    print("\n| claim | keeps | true difference | spread | seeds | planned | found |\n|---|---|---|---|---|---|---|")
    for other, gap, spread in (
        *(("random", 1.0, 0.5), ("random", 2.0, 0.5), ("random", 2.0, 1.0), ("random", 4.0, 2.0)),
        *(("ticket", 0.0, 0.2), ("ticket", 0.0, 0.5), ("ticket", 3.0, 0.5), ("ticket", 4.0, 1.0)),
    ):
        for keeps in (1, 3):
            rest = (0.0 if other == "random" else MARGIN,) * (keeps - 1)  # of these nothing is to be found
            study, chance = planned(Study(other, (gap, *rest), 3, spread))
            outcome = "holds" if other == "random" or gap < MARGIN else "fails"
            found = rates(study, [(outcome,)], count)[0].first_keep
            claim = "dense better" if other == "random" else "as good" if outcome == "holds" else "not as good"
            print(
                f"| {claim} | {keeps} | {gap:g} | {spread:g} | {study.seeds} | {chance:.0f} | {found:.1f} |", flush=True
            )


def growth_table(count: int) -> None:
    """What comes of studies that begin with three seeds and add what the verdict asks for."""
    print("\n| true difference | spread | decided by 3 seeds | in all | of those that asked |\n|---|---|---|---|---|")
    for gap, spread in ((0.0, 0.5), (0.0, 1.0), (2.0, 0.5), (2.0, 1.0), (4.0, 1.0), (4.0, 2.0)):
        came = grown(Study("random", (gap,), 3, spread), count)
        print(f"| {gap:g} | {spread:g} | {came.at_once:.1f} | {came.in_all:.1f} | {came.after:.1f} |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--studies", type=int, default=1000)
    studies = parser.parse_args().studies
    wrong_table(studies)
    power_table(studies)
    growth_table(studies)
