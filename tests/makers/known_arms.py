"""Results of arms whose truth is known: what `compare_arms` and `judge` are held against.

An image is right where its ease (the same for all arms), what the arm makes of it (with `interaction`), the luck of one
run with one image, and the run's own level add up above zero. All are normal, so the truth is known without error: of
arms by construction, of models from their runs' levels. Several draws of a seed have half of a run's level and luck in
common, as fresh weights under one mask do.
"""

import math

import numpy as np
from scipy.special import ndtr, ndtri


def draw_ease(rng: np.random.Generator, images: int) -> np.ndarray:
    """How easy each image is, float32 [N]."""
    return math.sqrt(0.7) * rng.standard_normal(images, np.float32)


def draw_runs(
    rng: np.random.Generator,
    ease_N: np.ndarray,
    seeds: int,
    accuracy: float,
    spread: float,
    interaction: bool,
    draws: int = 1,
) -> tuple[np.ndarray, float]:
    """An arm's runs: bool [seeds, N], or [seeds, draws, N], and the mean of their own true accuracies in points.

    `accuracy` is the arm's as a share, `spread` the standard deviation of its runs' in points.
    """
    taste, luck = (math.sqrt(0.15), math.sqrt(0.15)) if interaction else (0.0, math.sqrt(0.3))
    middle = ndtri(accuracy)
    per_point = np.sqrt(2 * np.pi) * np.exp(middle**2 / 2) / 100  # how far the level moves for a point
    scatter = spread * per_point
    level_SD1 = middle * np.sqrt(1 + scatter**2) + scatter * _of_runs(rng, seeds, draws, 1, np.float64)
    sum_N = ease_N + taste * rng.standard_normal(ease_N.size, np.float32)
    luck_SDN = luck * _of_runs(rng, seeds, draws, ease_N.size, np.float32)
    hits_SDN = sum_N + luck_SDN > -level_SD1.astype(np.float32)
    return hits_SDN if draws > 1 else hits_SDN[:, 0], 100 * float(ndtr(level_SD1).mean())


def _of_runs(rng: np.random.Generator, seeds: int, draws: int, size: int, kind: type[np.floating]) -> np.ndarray:
    """Standard normals [seeds, draws, size]; draws of a seed have half of their variance in common."""
    own = rng.standard_normal((seeds, draws, size), kind)
    if draws == 1:
        return own
    return (math.sqrt(0.5) * (own + rng.standard_normal((seeds, 1, size), kind))).astype(kind)
