"""Simulated studies whose truth is known: how often do intervals miss it, and tests find what is not there?

    python tests/pipeline/judging/null_studies.py [--studies 1000]

prints the first two tables of docs/statistics.md; how a result comes about is told in `makers.known_arms`.
"""

import argparse
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

from makers.known_arms import draw_ease, draw_runs

from dlth.pipeline import compare_arms

SPREADS = (0.0, 0.2, 1.0, 2.0)
"""Standard deviation of a run's accuracy, in points."""


@dataclass(frozen=True)
class Study:
    """Two arms with `seeds` runs each on the same images, of the second so many `draws` of each seed; `gap` is the true
    difference of the arms, in points.
    """

    seeds: int
    images: int
    spread: float
    interaction: bool
    gap: float = 0.0
    accuracy: float = 0.9
    draws: int = 1

    def draw(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, float]:
        """Both arms' results, bool [seeds, images], the second's [seeds, draws, images] if there are several, and the
        true difference of these very models in points.
        """
        ease_N = draw_ease(rng, self.images)
        first, second = (
            draw_runs(rng, ease_N, self.seeds, accuracy, self.spread, self.interaction, draws)
            for accuracy, draws in ((self.accuracy + self.gap / 100, 1), (self.accuracy, self.draws))
        )
        return first[0], second[0], first[1] - second[1]


@dataclass(frozen=True)
class Tally:
    """Shares of studies in percent: interval missed the truth, p < 0.05, equivalent; mean half-width in points."""

    missed: float
    found: float
    equivalent: float
    half_width: float


def tally(study: Study, count: int, seed: int = 0, margin: float = 1.0) -> Tally:
    """Draw and compare `count` studies."""
    rng = np.random.default_rng([seed, study.seeds, study.images, int(10 * study.spread), study.interaction])
    rows = []
    for _ in range(count):
        first, second, models = study.draw(rng)
        came = compare_arms(first, second, margin)
        truth = study.gap if came.about == "arms" else models
        missed = not came.low <= truth <= came.high
        rows.append((missed, came.p_value < 0.05, came.equivalent, (came.high - came.low) / 200))
    return Tally(*(100 * np.array(rows, float).mean(axis=0)))


def table(count: int, images: Iterable[int] = (1_500, 50_000)) -> str:
    """The first table of docs/statistics.md."""
    lines = ["| images | seeds | about | " + " | ".join(f"spread {spread:g}" for spread in SPREADS) + " |"]
    lines += ["|" + "---|" * (3 + len(SPREADS))]
    for number in images:
        for seeds in (1, 2, 3, 5, 10):
            cells = []
            for spread in SPREADS:
                with_, without = (tally(Study(seeds, number, spread, it), count) for it in (True, False))
                cells.append(f"{with_.missed:.1f}, {without.missed:.1f} (±{with_.half_width:.2f})")
            about = "arms" if seeds >= 3 else "models"
            lines.append(f"| {number:,} | {seeds} | {about} | " + " | ".join(cells) + " |")
            print(lines[-1], flush=True)
    return "\n".join(lines)


def draws_table(count: int) -> None:
    """The table of docs/statistics.md on draws: one run of a seed against several draws of it, 1,500 images."""
    print("| seeds | draws | about | " + " | ".join(f"spread {spread:g}" for spread in SPREADS) + " |")
    print("|" + "---|" * (3 + len(SPREADS)))
    for seeds, draws in ((seeds, draws) for seeds in (1, 2, 3, 5) for draws in (1, 2, 5)):
        came = [tally(Study(seeds, 1_500, spread, True, draws=draws), count) for spread in SPREADS]
        cells = [f"{each.missed:.1f} (±{each.half_width:.2f})" for each in came]
        about = "arms" if seeds >= 3 else "models"
        print(f"| {seeds} | {draws} | {about} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--studies", type=int, default=1000)
    studies = parser.parse_args().studies
    print(table(studies))
    draws_table(studies)
