"""Pictures and shards: real JPEGs in real tars, made in a second; the same arguments give the same bytes."""

import io
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image


@dataclass(frozen=True)
class Shards:
    """What `write_shards` wrote: paths in order, and each shard's keys and labels by row."""

    folder: Path
    paths: tuple[Path, ...]
    keys: tuple[tuple[str, ...], ...]
    labels: tuple[tuple[int, ...], ...]

    @property
    def spec(self) -> str:
        """A shard spec that `dlth.data.open_index` takes: the folder."""
        return str(self.folder)

    @property
    def all_keys(self) -> list[str]:
        return [key for keys in self.keys for key in keys]


def make_picture(seed: int, height: int = 48, width: int = 64) -> np.ndarray:
    """A smooth colourful image with a bright square: uint8 [height, width, 3], another for each seed."""
    rng = np.random.default_rng(seed)
    rows, columns = np.linspace(0, 1, height)[:, None, None], np.linspace(0, 1, width)[None, :, None]
    pixels = rng.uniform(0, 110, 3) + rows * rng.uniform(-60, 90, 3) + columns * rng.uniform(-60, 90, 3)
    top, left = rng.integers(0, max(1, height * 2 // 3)), rng.integers(0, max(1, width * 2 // 3))
    pixels[top : top + height // 3, left : left + width // 3] = rng.uniform(150, 255, 3)
    return np.clip(pixels + rng.normal(0, 4, (height, width, 3)), 0, 255).astype(np.uint8)


def make_image(pixels: np.ndarray, kind: str = "JPEG", mode: str | None = None, **options: object) -> bytes:
    """Encode uint8 pixels with Pillow; `mode` converts first ("L", "CMYK", "P", ...)."""
    image = Image.fromarray(pixels)
    buffer = io.BytesIO()
    (image.convert(mode) if mode else image).save(buffer, kind, **options)
    return buffer.getvalue()


def make_tar(path: Path, members: Iterable[tuple[str, bytes]], tar_format: int = tarfile.USTAR_FORMAT) -> Path:
    """Write a plain tar with fixed times, so that the same members give the same bytes."""
    with tarfile.open(path, "w", format=tar_format) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def write_shards(
    folder: Path,
    num_shards: int = 2,
    per_shard: int | Iterable[int] = 6,
    *,
    num_classes: int = 4,
    size: tuple[int, int] = (48, 64),
    split: str = "train",
    seed: int = 0,
    quality: int = 90,
) -> Shards:
    """Shards of real JPEGs in `folder/split`, WebDataset style (key.jpg, key.cls).

    `per_shard` may be a sequence with one number per shard. Keys look like ImageNet's (``n00000003_17``), labels go
    round `num_classes`; `size` is (height, width) of every image; `split` starts each shard name too.
    """
    rows = [per_shard] * num_shards if isinstance(per_shard, int) else list(per_shard)
    root = folder / split
    root.mkdir(parents=True, exist_ok=True)
    paths, keys, labels, count = [], [], [], 0
    for shard, num_rows in enumerate(rows):
        members, shard_keys, shard_labels = [], [], []
        for _ in range(num_rows):
            label = count % num_classes
            key = f"n{label:08d}_{seed * 100_000 + count}"
            image = make_image(make_picture(seed * 100_000 + count, *size), quality=quality)
            members += [(f"{key}.jpg", image), (f"{key}.cls", str(label).encode())]
            shard_keys.append(key)
            shard_labels.append(label)
            count += 1
        paths.append(make_tar(root / f"{split}-{shard:06d}.tar", members))
        keys.append(tuple(shard_keys))
        labels.append(tuple(shard_labels))
    return Shards(root, tuple(paths), tuple(keys), tuple(labels))
