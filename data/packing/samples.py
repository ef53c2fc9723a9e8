"""From files to samples: what is an image, what is its key, what is its class.

Keys are the original base names, since that is what two labs' copies of a data set have in common; folders are no part
of them. A WebDataset key ends at the first dot of a name, so dots inside a base name become ``_`` (said in the report);
two files that get the same key are refused with both places, because whoever joins tickets by key would otherwise give
one image the other's. Rejected: putting the class folder into the key (``cat/001``), which no one else's copy has.

A file counts as an image by its suffix alone. A damaged image is packed as it is: whether it can be decoded is judged,
listed and remembered by the stage that decodes it, and bytes that were left out here could never be found there.
"""

import glob
import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, pairwise, takewhile
from pathlib import Path
from typing import NamedTuple

from dlth.data.packing.archives import Located, archive_files, folder_files
from dlth.data.packing.imagenet import label_of, name_and_synset
from dlth.tickets.errors import InputError, LimitError, MismatchError, MissingFileError, UnsafeError, shown
from dlth.tickets.store.disk import reading, user_path

SUFFIXES = {".jpg": "jpg", ".jpeg": "jpg", ".png": "png", ".webp": "webp"}
"""Suffix of a file to suffix in a shard; ``jpeg`` becomes ``jpg``, which every reader of shards looks for."""
MAX_IMAGE_BYTES = 256 * 1024 * 1024
_SPLITS = {"train", "training", "val", "valid", "validation", "test"}
_NAMED = 5  # how many of several offenders an error names


class Sample(NamedTuple):
    """One image: its key and class, and where its encoded bytes lie. `place` is what messages call it."""

    key: str
    suffix: str
    class_name: str
    place: str
    file: str
    offset: int
    size: int


class Contents(NamedTuple):
    """What a source holds: samples sorted by key, files that are no images, and keys that are not the base name.

    `classes`: names in label order where the source says the order, else None
    """

    samples: list[Sample]
    ignored: tuple[str, ...]
    renamed: tuple[tuple[str, str], ...]
    classes: tuple[str, ...] | None = None


def source_files(paths: Sequence[Path], spool: Path) -> list[Located]:
    """Every file of a folder, or of one or more archives, as `source_paths` gives them.

    `spool`: folder for the decompressed copies of gzip archives. Raises what the walk over folders and archives raises.
    """
    if paths[0].is_dir():
        return list(folder_files(paths[0]))
    return list(chain.from_iterable(archive_files(path, spool) for path in paths))


def list_samples(files: Sequence[Located], paths: Sequence[Path], labels: Mapping[str, str] | None) -> Contents:
    """Find every image among the `files` of the sources `paths`.

    labels: class by base name, for images that lie in no class folder; it must speak of these images and no others
    Raises `InputError` (no images, no class, unusable or repeated key), `MismatchError` (labels of other images).
    """
    images, ignored = list[Located](), list[str]()
    for file in files:
        hidden = any(part.startswith(".") for part in (*file.folders, file.name))
        is_image = not hidden and Path(file.name).suffix.lower() in SUFFIXES
        images.append(file) if is_image else ignored.append(file.place)
    if not images:
        what = f", {len(ignored)} other files, such as {shown(ignored[0])}" if ignored else ""
        raise InputError(f"{shown(paths[0])} holds no images ({', '.join(SUFFIXES)}){what}")
    samples = sorted(_samples(images, labels, 0 if paths[0].is_dir() else _class_depth(images)))
    _check_unique(samples)
    if labels is not None and len(labels) != len(samples):
        raise MismatchError(f"{len(labels)} labels for {len(samples)} images: labels and images are of different sets")
    dotted = {image.place for image in images if "." in Path(image.name).stem}
    renamed = tuple((sample.place, sample.key) for sample in samples if sample.place in dotted)
    return Contents(samples, tuple(ignored), renamed)


def source_paths(source: str | Path | Sequence[str | Path]) -> list[Path]:
    """The folder or the archives that were named, with globs resolved.

    Raises MissingFileError, InputError (no path, or one that cannot be read), UnsafeError (FIFO, socket, device).
    """
    sources = [source] if isinstance(source, str | Path) else list(source)
    paths: list[Path] = []
    for one in map(str, sources):
        with reading(one):
            matches = [one] if user_path(one).exists() else sorted(glob.glob(one))
            if not matches:
                raise MissingFileError(f"{shown(one)}: no such folder or archive")
            if odd := [path for path in matches if not (os.path.isdir(path) or os.path.isfile(path))]:
                raise UnsafeError(f"{shown(odd[0])} is not a regular file, nor a folder")
        paths += map(Path, matches)
    if not paths:
        raise InputError("no source was named: give a folder of class folders, or archives")
    if len(paths) > 1 and (folders := [path for path in paths if path.is_dir()]):
        raise InputError(f"{shown(folders[0])}: a folder can be packed alone, several sources must be archives")
    return paths


def _class_depth(images: list[Located]) -> int:
    """How many folders stand above the class folders in archives (``train/n01440764/…`` has one)."""
    first, last = min(image.folders for image in images), max(image.folders for image in images)
    depth = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False)))
    return max(0, depth - 1) if any(len(image.folders) == depth for image in images) else depth


def _samples(images: list[Located], labels: Mapping[str, str] | None, depth: int) -> Iterator[Sample]:
    flat = len({image.folders for image in images}) == 1
    for image in images:
        path = Path(image.name)
        name, synset = name_and_synset(path.stem)
        if labels is not None:
            class_name = label_of(labels, name, image.place)
        elif flat and synset:
            class_name = synset
        elif len(image.folders) > depth:
            class_name = image.folders[depth]
        else:
            raise InputError(
                f"{shown(image.place)}: nothing says its class. Images lie in class folders (source/CLASS/…), or carry "
                "ImageNet's synset in their names, or labels are given (--labels, for ImageNet's validation images)."
            )
        if class_name.lower() in _SPLITS:
            raise InputError(
                f"{shown(image.place)}: {shown(class_name)} is a split, not a class: give the folder below, "
                f"such as source/{shown(class_name)}"
            )
        for text in (name, class_name):
            if not text.isprintable():
                raise InputError(f"{shown(image.place)}: a name with characters that cannot be printed: rename it")
        if image.size > MAX_IMAGE_BYTES:
            raise LimitError(f"{shown(image.place)}: {image.size} bytes; an image has at most {MAX_IMAGE_BYTES}")
        suffix = SUFFIXES[path.suffix.lower()]
        yield Sample(name.replace(".", "_"), suffix, class_name, image.place, image.file, image.offset, image.size)


def _check_unique(samples: list[Sample]) -> None:
    """Samples, sorted by key, must have different keys."""
    twice = [(one, two) for one, two in pairwise(samples) if one.key == two.key]
    if twice:
        named = "; ".join(
            f"{shown(one.key)} ({shown(one.place)} and {shown(two.place)})" for one, two in twice[:_NAMED]
        )
        raise InputError(
            f"{len(twice)} keys stand twice: {named}. An image's key is its base name without extension, and must be "
            "the image's alone: rename the files, for example with the class in front, or take the doubles out."
        )
