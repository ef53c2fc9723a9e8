"""What is measured and at which size: all of it on a GPU, the same code on a CPU with a model of two blocks."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Scope:
    """The size of everything.

    `models`: name in the tables -> settings of `dlth train`, the most important first; `batch` images at most;
    `compiler`: backend with which steps and selectors are measured compiled, too, None if they are not. Candidates take
    turns `rounds` times, each for `least` seconds or one call. `matmul`: side of the square matrices; `copied`: MiB of
    a copy. `num_images` JPEGs of `jpeg` (width, height) pixels, `distinct` of them different; `view`: side in pixels of
    what tickets are of, which has patches of `patch`; `workers` of a run at most.
    """

    models: Mapping[str, Mapping[str, Any]]
    keeps: tuple[str, ...]
    batch: int
    compiler: str | None
    rounds: int
    least: float
    matmul: int
    copied: int
    num_images: int
    distinct: int
    jpeg: tuple[int, int]
    view: int
    patch: int
    workers: int


FULL = Scope(
    models={"DeiT-S": {"model": "deit_small"}, "DeiT-T": {"model": "deit_tiny"}, "DeiT-B": {"model": "deit_base"}},
    keeps=("0.9", "0.7", "0.5"),
    batch=256,
    compiler="inductor",
    rounds=5,
    least=0.2,
    matmul=8192,
    copied=1024,
    num_images=96 * 256,
    distinct=128,
    jpeg=(500, 375),
    view=224,
    patch=16,
    workers=16,
)
"""What a GPU is measured with: 96 steps of 256 images, a third of which pass before a run has found its pace."""

_TWO_BLOCKS = {"patch_size": 8, "embed_dim": 32, "depth": 4, "num_heads": 2}
TINY = Scope(
    models={"tiny": {"model": "vit_tiny_patch16_224", "model_kwargs": _TWO_BLOCKS, "img_size": 32}},
    keeps=("0.9", "0.7", "0.5"),
    batch=4,
    compiler=None,
    rounds=1,
    least=0.0,
    matmul=128,
    copied=1,
    num_images=32,
    distinct=8,
    jpeg=(64, 48),
    view=32,
    patch=8,
    workers=1,
)
"""What shows on a CPU that all of it runs; its numbers say nothing."""
