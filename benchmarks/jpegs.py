"""Shards of JPEGs that are as large, and as slow to decode, as ImageNet's photographs: 500x375, some 90 kB."""

import sys
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import numpy as np
from makers.pictures import make_image, make_tar
from PIL import Image

CLASSES = 1_000
SIZE = (500, 375)
"""Width and height in pixels, ImageNet's most frequent."""


def write_shards(
    folder: Path,
    num_images: int,
    *,
    shard_rows: int = 128,
    distinct: int | None = None,
    size: tuple[int, int] = SIZE,
) -> None:
    """Tars of `num_images` JPEGs with labels; only `distinct` of them differ, the others are these under other keys."""
    folder.mkdir()
    picture = lru_cache(maxsize=distinct)(lambda number: _picture(number, size)) if distinct else None

    def members(rows: range) -> Iterator[tuple[str, bytes]]:
        for number in rows:
            image = picture(number % distinct) if picture and distinct else _picture(number, size)
            key = f"n{number % CLASSES:08d}_{number}"
            yield f"{key}.jpg", image
            yield f"{key}.cls", str(number % CLASSES).encode()

    for shard, start in enumerate(range(0, num_images, shard_rows)):
        rows = range(start, min(num_images, start + shard_rows))
        make_tar(folder / f"bench-{shard:06d}.tar", members(rows))


def _picture(number: int, size: tuple[int, int]) -> bytes:
    """A JPEG with structure at several scales."""
    rng = np.random.default_rng(number)
    pixels = np.zeros((size[1], size[0], 3))
    for side in (4, 16, 64, 256):
        noise = Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8))
        pixels += np.asarray(noise.resize(size, Image.Resampling.BICUBIC), np.float64) / 4
    return make_image(pixels.astype(np.uint8), quality=92)
