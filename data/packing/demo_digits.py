"""The demo's images: one yellow handwritten digit on a canvas cluttered with grey pieces of others.

Small enough for two cores, and the patches that matter are known, so that a ticket's recall can be scored. A canvas is
64 px, a patch 8 px: 8 x 8 patches. The digit takes 16 px and lies on the grid, so it fills exactly 2 x 2 patches; every
patch holds the quarter of some grey digit, so that ink alone tells nothing. Rejected: digits that move freely by the
pixel, which a small ViT does not learn within minutes (18 to 20 % after the epochs that give 92 % here).

Digits are scikit-learn's 1,797 (8 x 8, from UCI); those of the validation images, clutter included, are used in no
training image.
"""

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dlth.data.packing.pack import PackReport, pack_samples
from dlth.data.packing.samples import Sample
from dlth.tickets.errors import InputError
from dlth.tickets.seeding import generator
from dlth.tickets.store.disk import write_files

CANVAS, PATCH, GRID, DIGIT = 64, 8, 8, 16
"""Pixels of a canvas and of a patch, patches along a canvas, pixels of a digit."""
NUM_CLASSES = 10
INFORMATIVE = "informative.json"
QUALITY = 92
INK = np.array([255, 220, 40], np.float32)
CLUTTER = (60, 150)  # grey of the clutter's ink, drawn for each patch
NOISE = 6.0  # standard deviation of the sensor-like noise, of 255
_HELD_OUT = 360  # digits that only validation images use
_CHUNK = 500  # canvases drawn at once: 75 MB of floats


@dataclass(frozen=True)
class DigitImages:
    """Drawn canvases.

    images: uint8 [count, 64, 64, 3]; labels: int64 [count]; patches: int64 [count, 4], the digit's patches, ascending;
    sources: int64 [count], index of the digit among scikit-learn's
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    patches: NDArray[np.int64]
    sources: NDArray[np.int64]


@dataclass(frozen=True)
class DigitShards:
    """Where `make_digit_shards` wrote, and what."""

    folder: Path
    train: PackReport
    val: PackReport
    informative: Path


def make_digit_shards(
    out: str | Path, num_train: int = 6000, num_val: int = 1500, seed: int = 0, samples_per_shard: int = 1000
) -> DigitShards:
    """Write ``train-*.tar`` and ``val-*.tar`` of real JPEGs as `pack` does, and ``informative.json`` beside them.

    That file maps each key to its 4 informative patches; it is no part of the shards, so nothing can train on it. The
    same arguments give the same bytes; a second call finds them there.
    """
    out = Path(out)
    informative: dict[str, list[int]] = {}
    reports: dict[str, PackReport] = {}
    for split, count in (("train", num_train), ("val", num_val)):
        drawn = draw_digits(split, count, seed)
        with tempfile.NamedTemporaryFile() as spool:
            samples = _encoded(drawn, split, spool)
            reports[split] = pack_samples(samples, out, split=split, samples_per_shard=samples_per_shard, seed=seed)
        informative |= {sample.key: row.tolist() for sample, row in zip(samples, drawn.patches, strict=True)}
    write_files({out / INFORMATIVE: json.dumps(informative).encode()})
    return DigitShards(out, reports["train"], reports["val"], out / INFORMATIVE)


def draw_digits(split: str, count: int, seed: int = 0) -> DigitImages:
    """Draw `count` canvases of a split (``"train"`` or ``"val"``), another set for each seed."""
    quarters, labels, sources = _digit_quarters(split, seed)
    rng = generator("digits", split, seed)
    chosen = rng.integers(len(sources), size=count)
    corner = rng.integers(GRID - 1, size=(count, 2))  # row and column of the digit's first patch
    offsets = np.array([0, 1, GRID, GRID + 1])
    patches = (corner[:, :1] * GRID + corner[:, 1:] + offsets).astype(np.int64)
    images = np.empty((count, CANVAS, CANVAS, 3), np.uint8)
    for start in range(0, count, _CHUNK):
        rows = slice(start, start + _CHUNK)
        images[rows] = _drawn(quarters, chosen[rows], patches[rows], rng)
    return DigitImages(images, labels[chosen], patches, sources[chosen])


def _digit_quarters(split: str, seed: int) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.int64]]:
    """A split's digits: ink from 0 to 1 as float32 [digits, 4 quarters, 8, 8], labels, indices among scikit-learn's."""
    if split not in ("train", "val"):
        raise InputError(f"split {split!r}: digits are drawn for 'train' and 'val'")
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise InputError("the demo's digits are scikit-learn's: install it with pip install 'dlth[demo]'") from error
    digits = load_digits()
    order = generator("digits", "held out", seed).permutation(len(digits.target))
    sources = np.sort(order[:_HELD_OUT] if split == "val" else order[_HELD_OUT:]).astype(np.int64)
    ink = (digits.images[sources] / 16).astype(np.float32).repeat(2, axis=1).repeat(2, axis=2)  # [digits, 16, 16]
    quarters = ink.reshape(-1, 2, PATCH, 2, PATCH).transpose(0, 1, 3, 2, 4).reshape(-1, 4, PATCH, PATCH)
    return quarters, digits.target[sources].astype(np.int64), sources


def _drawn(
    quarters: NDArray[np.float32], chosen: NDArray[np.int64], patches: NDArray[np.int64], rng: np.random.Generator
) -> NDArray[np.uint8]:
    """Canvases uint8 [rows, 64, 64, 3]: grey quarters in every patch, then the chosen digit in yellow in its four."""
    rows = len(chosen)
    places = (rows, GRID * GRID)
    ink = quarters[rng.integers(len(quarters), size=places), rng.integers(4, size=places)]  # [rows, patches, 8, 8]
    grey = rng.uniform(*CLUTTER, size=(*places, 1, 1)).astype(np.float32)
    canvas = np.repeat((ink * grey)[..., None], 3, axis=-1)
    at = np.arange(rows)[:, None]
    canvas[at, patches] *= 1 - quarters[chosen][..., None]
    canvas[at, patches] += quarters[chosen][..., None] * INK
    canvas += NOISE * rng.standard_normal(canvas.shape, np.float32)
    tiled = canvas.reshape(rows, GRID, GRID, PATCH, PATCH, 3).transpose(0, 1, 3, 2, 4, 5)
    return np.clip(tiled.reshape(rows, CANVAS, CANVAS, 3), 0, 255).astype(np.uint8)


def _encoded(drawn: DigitImages, split: str, spool: IO[bytes]) -> list[Sample]:
    """Append every canvas as a JPEG to `spool`, and say where each one lies."""
    samples: list[Sample] = []
    for number, (image, label) in enumerate(zip(drawn.images, drawn.labels, strict=True)):
        key, start = f"{split}_{number:06d}", spool.tell()
        Image.fromarray(image).save(spool, "JPEG", quality=QUALITY)
        samples.append(Sample(key, "jpg", str(label), key, spool.name, start, spool.tell() - start))
    spool.flush()
    return samples
