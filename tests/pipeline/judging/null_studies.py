"""Simulated studies whose truth is known: how often do intervals miss it, and tests find what is not there?

    python tests/pipeline/judging/null_studies.py [--studies 1000]

prints the table of docs/statistics.md. An image is right where its ease (the same for both arms), what the arm makes of
it (with `interaction`), the luck of one run with one image, and the run's own level add up above zero. All are normal,
so the truth is known without error: of arms by construction, of models from their runs' levels.
"""

import argparse
import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr, ndtri

from dlth.pipeline import compare_arms

SPREADS = (0.0, 0.2, 1.0, 2.0)
"""Standard deviation of a run's accuracy, in points."""


@dataclass(frozen=True)
class Study:
    """Two arms with `seeds` runs each on the same images; `gap` is the true difference of the arms, in points."""

    seeds: int
    images: int
    spread: float
    interaction: bool
    gap: float = 0.0
    accuracy: float = 0.9

    def draw(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, float]:
        """Both arms' results, bool [seeds, images], and the true difference of these very models in points."""
        taste, luck = (math.sqrt(0.15), math.sqrt(0.15)) if self.interaction else (0.0, math.sqrt(0.3))
        ease_N = math.sqrt(0.7) * rng.standard_normal(self.images, np.float32)
        results, levels = [], []
        for accuracy in (self.accuracy + self.gap / 100, self.accuracy):
            middle = ndtri(accuracy)
            per_point = np.sqrt(2 * np.pi) * np.exp(middle**2 / 2) / 100  # how far the level moves for a point
            scatter = self.spread * per_point
            level_S1 = middle * np.sqrt(1 + scatter**2) + scatter * rng.standard_normal((self.seeds, 1))
            sum_N = ease_N + taste * rng.standard_normal(self.images, np.float32)
            luck_SN = luck * rng.standard_normal((self.seeds, self.images), np.float32)
            results.append(sum_N + luck_SN > -level_S1.astype(np.float32))
            levels.append(100 * ndtr(level_S1).mean())
        return results[0], results[1], levels[0] - levels[1]


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
    """The table of docs/statistics.md."""
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


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--studies", type=int, default=1000)
    print(table(parser.parse_args().studies))
