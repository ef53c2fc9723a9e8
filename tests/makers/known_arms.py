"""Results of arms whose truth is known: what `compare_arms` and `judge` are held against.

An image is right where its ease (the same for all arms), what the arm makes of it (with `interaction`), the luck of one
run with one image, and the run's own level add up above zero. All are normal, so the truth is known without error: of
arms by construction, of models from their runs' levels.
"""

import math

import numpy as np
from scipy.special import ndtr, ndtri


def draw_ease(rng: np.random.Generator, images: int) -> np.ndarray:
    """How easy each image is, float32 [N]."""
    return math.sqrt(0.7) * rng.standard_normal(images, np.float32)


def draw_runs(
    rng: np.random.Generator, ease_N: np.ndarray, seeds: int, accuracy: float, spread: float, interaction: bool
) -> tuple[np.ndarray, float]:
    """An arm's runs: bool [seeds, N], and the mean of their own true accuracies in points.

    `accuracy` is the arm's as a share, `spread` the standard deviation of its runs' in points.
    """
    taste, luck = (math.sqrt(0.15), math.sqrt(0.15)) if interaction else (0.0, math.sqrt(0.3))
    middle = ndtri(accuracy)
    per_point = np.sqrt(2 * np.pi) * np.exp(middle**2 / 2) / 100  # how far the level moves for a point
    scatter = spread * per_point
    level_S1 = middle * np.sqrt(1 + scatter**2) + scatter * rng.standard_normal((seeds, 1))
    sum_N = ease_N + taste * rng.standard_normal(ease_N.size, np.float32)
    luck_SN = luck * rng.standard_normal((seeds, ease_N.size), np.float32)
    return sum_N + luck_SN > -level_S1.astype(np.float32), 100 * float(ndtr(level_S1).mean())
