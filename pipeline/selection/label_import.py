"""Token labels that others published: a folder of .pt maps becomes a token label file for the shards of their images.

LV-ViT's authors publish one file an image, a tensor [2, 5, 18, 18]: scores, then classes, both float16. A .pt is a
pickle, so it is read by torch's restricted reader alone. A map is an image's whose key has its path or its name.
"""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dlth.data.shards.classes import require_images
from dlth.data.shards.identity import content_hashes
from dlth.data.shards.index import ShardIndex, open_index
from dlth.tickets import DatasetInfo, Preprocessing, ShardSpec, ViewSpec
from dlth.tickets.callbacks import Progress
from dlth.tickets.errors import InputError, LimitError, MissingTicketError, shown
from dlth.tickets.format.label_header import AnnotatorInfo, LabelHeader
from dlth.tickets.format.label_rows import ShardLabels
from dlth.tickets.ranking.grid import Grid
from dlth.tickets.store.disk import reading
from dlth.tickets.store.label_store import LabelStore
from dlth.tickets.store.label_writer import LabelWriter
from dlth.tickets.store.matching import base_name
from dlth.training.models.weights import read_tensor
from dlth.training.runs.result import versions

MAX_MAP_BYTES = 64 << 20
"""A map has 13 kB; one that was saved out of a batch carries the batch along."""
MAX_MAPS = 20_000_000
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class Source(NamedTuple):
    """What is imported: a folder of maps, for the shards `data`; what nothing in a map says is said here."""

    maps: Path
    data: str
    split: str | None
    num_classes: int
    annotator: str
    img_size: int
    allow_missing: bool


@dataclass(frozen=True)
class ImportPlan:
    """What will be written: the header, and each image's map by its path below the folder, empty without one."""

    source: Source
    header: LabelHeader
    index: ShardIndex
    paths: list[str]

    def facts(self) -> dict[str, object]:
        """The plan as a person would read it."""
        header, found = self.header, sum(map(bool, self.paths))
        return {
            "maps": str(self.source.maps),
            "images": f"{self.index.num_samples:,}, {found:,} of them with a map",
            "grid": f"{header.grid} cells",
            "stored": f"the {header.num_best} best of {header.num_classes} classes of each cell",
            "annotator": f"{header.annotator.model}, imported",
        }

    def write(self, out: str | os.PathLike[str], progress: Progress | None = None) -> LabelStore:
        """Write what is missing of `out` and open it; every image is read for its content hash.

        Raises InputError or LimitError for a file that is no such map, and what `LabelWriter` raises.
        """
        shards = [ShardSpec(shard.name, shard.rows) for shard in self.index.shards]
        LabelWriter(out, self.header, shards, self.index.key_width).fill(self._rows, progress)
        return LabelStore(out)

    def _rows(self, shard_index: int) -> ShardLabels:
        header, start = self.header, int(self.index.row_start[shard_index])
        keys = tuple(self.index.keys(shard_index))
        shape = (len(keys), header.num_best, header.grid.rows, header.grid.cols)
        classes, scores = np.zeros(shape, np.uint16), np.zeros(shape, np.float16)
        paths = self.paths[start : start + len(keys)]
        for row, path in enumerate(paths):
            if path:
                classes[row], scores[row] = _read_map(self.source.maps / path, header)
        hashes = content_hashes(self.index, np.arange(start, start + len(keys)))
        return ShardLabels(keys, hashes, classes, scores, skipped=np.array([not path for path in paths], dtype=bool))


def plan(source: Source) -> ImportPlan:
    """Find every image's map, and take the grid from the first.

    Raises:
        DlthError: shards that cannot be read, no maps, or (unless it is allowed) images without one
    """
    index = open_index(source.data, split=source.split)
    require_images(index)
    by_path, by_name = _listed(source.maps)
    keys = [key for shard in range(len(index.shards)) for key in index.keys(shard)]
    paths = [_find(key, by_path, by_name) for key in keys]
    missing = [key for key, path in zip(keys, paths, strict=True) if not path]
    if len(missing) == len(keys):
        raise InputError(
            f"no image of {shown(index.name)} has a map in {shown(source.maps)}: keys are as {shown(keys[0], 60)}, maps"
            f" as {shown(next(iter(by_path), 'none'), 60)}"
        )
    if missing and not source.allow_missing:
        named = ", ".join(shown(key, 60) for key in missing[:10])
        raise MissingTicketError(
            f"{len(missing)} of {len(keys)} images have no map in {shown(source.maps)}: {named}; --allow-missing skips"
            " them"
        )
    first = _map(source.maps / next(filter(None, paths)))
    view = ViewSpec("whole", source.img_size, source.img_size)
    header = LabelHeader(
        grid=Grid(*first.shape[2:]),
        num_best=first.shape[1],
        num_classes=source.num_classes,
        view=view,
        preprocessing=Preprocessing(*_IMAGENET, decoder="unknown"),
        annotator=AnnotatorInfo(source.annotator, "", "imported", "float16"),
        dataset=DatasetInfo("", source.split or "", index.num_samples, index.fingerprint),
        versions=versions(),
        extensions={"maps_sha256": _digest(source.maps, paths)},
    )
    return ImportPlan(source, header, index, paths)


def _listed(folder: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Maps by their path below the folder without .pt, and by their name alone, empty where several have it."""
    by_path: dict[str, str] = {}
    by_name: dict[str, str] = {}
    for path in _walk(folder):
        stem = path.removesuffix(".pt")
        by_path[stem] = path
        name = base_name(stem)
        by_name[name] = "" if name in by_name else path
        if len(by_path) > MAX_MAPS:
            raise LimitError(f"{shown(folder)} holds more than {MAX_MAPS:,} maps")
    return by_path, by_name


def _walk(folder: Path) -> Iterator[str]:
    if not folder.is_dir():
        raise InputError(f"{shown(folder)} is no folder of .pt maps")
    for root, folders, files in os.walk(folder):
        folders.sort()
        for name in sorted(files):
            if name.endswith(".pt"):
                yield os.path.relpath(os.path.join(root, name), folder)


def _find(key: str, by_path: dict[str, str], by_name: dict[str, str]) -> str:
    """The map of a key; empty without one, or where its name belongs to several."""
    return by_path.get(key) or by_path.get(key.rpartition(".")[0]) or by_name.get(base_name(key), "")


def _digest(folder: Path, paths: list[str]) -> str:
    """sha256, in hex, of the maps of all images in order, by path and content: a file is gone on with from the same."""
    digest = hashlib.sha256()
    for path in paths:
        content = ""
        if path and (folder / path).is_file():
            with reading(folder / path), (folder / path).open("rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
        digest.update(f"{path}\0{content}\0".encode(errors="surrogateescape"))
    return digest.hexdigest()


def _map(path: Path) -> np.ndarray:
    """A map as it lies in its file, float [2, best, rows, columns]: scores, then classes."""
    tensor = read_tensor(path, MAX_MAP_BYTES)
    if tensor.ndim != 4 or tensor.shape[0] != 2 or not tensor.is_floating_point() or not tensor.numel():
        raise InputError(
            f"{shown(path)} holds {str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}: a map is"
            " floats [2, best, rows, columns], scores and then classes"
        )
    values: np.ndarray = tensor.detach().resolve_neg().float().numpy()
    return values


def _read_map(path: Path, header: LabelHeader) -> tuple[np.ndarray, np.ndarray]:
    """Classes and scores of a map, best first; ties keep the order of the file."""
    values = _map(path)
    shape = (2, header.num_best, header.grid.rows, header.grid.cols)
    if values.shape != shape:
        raise InputError(f"{shown(path)} has the shape {list(values.shape)}, the first map {list(shape)}")
    scores, classes = values
    if not (np.abs(scores) <= np.finfo(np.float16).max).all():
        raise InputError(
            f"{shown(path)} has scores that are NaN, infinite or beyond float16: it was damaged or made so"
        )
    whole = np.isfinite(classes).all() and (classes == np.rint(classes)).all()
    if not whole or classes.min() < 0 or classes.max() >= header.num_classes:
        raise InputError(
            f"{shown(path)} names classes from {classes.min():g} to {classes.max():g}: they are whole numbers below"
            f" --num-classes {header.num_classes}"
        )
    ordered = np.sort(classes, axis=0)
    if (ordered[1:] == ordered[:-1]).any():
        raise InputError(f"{shown(path)} names a class twice in one cell")
    order = np.argsort(-scores, axis=0, kind="stable")
    return np.take_along_axis(classes, order, axis=0), np.take_along_axis(scores, order, axis=0)
