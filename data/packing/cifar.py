"""CIFAR-10 and CIFAR-100 as their makers publish them: pickled batches of rows of pixels, whose images become PNGs.

The archives hold no files of images, so three things are decided here. *Bytes*: each image is a PNG whose data are
stored and not compressed, which loses nothing and is the same on every machine (compressors differ by version, and
tickets are matched by a hash of these bytes): 3,172 bytes each. *Keys*: data set, part and the image's number in the
archive's order (``cifar10_train_00000``), which is the order of torchvision's data sets, too; the names in the batches
are passed over, as nothing promises that no two are alike. *Labels*: the archive's own numbers, with the names that its
meta file gives them (of CIFAR-100's two kinds the hundred fine ones).

Batches are read by `plain_pickle.py`, which runs nothing of them.
"""

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlth.data.images.png import stored_png
from dlth.data.packing.archives import Located
from dlth.data.packing.plain_pickle import MAX_BYTES, read_pickle
from dlth.data.packing.samples import SUFFIXES, Contents, Sample
from dlth.data.shards.tar import pread
from dlth.tickets.errors import DamageError, InputError, LimitError, MissingFileError, shown
from dlth.tickets.store.disk import fresh, reading, space_errors

_SHAPE = (3, 32, 32)
_ROW = 3072  # bytes of an image: all red ones first, each colour row by row
_PARTS = {"train": "train", "training": "train"} | dict.fromkeys(("val", "valid", "validation", "test"), "test")
_SUFFIX = "png"
_MAX_NAME = 255  # characters of a class name, as of a folder's


@dataclass(frozen=True)
class Cifar:
    """One of the two data sets: the names of its files, and of what it needs in them."""

    name: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    meta: str
    class_names: str
    labels: str

    @property
    def files(self) -> set[str]:
        """Names of all its files that are read."""
        return {*self.train, *self.test, self.meta}


_KINDS = (
    Cifar(
        "cifar10",
        tuple(f"data_batch_{number}" for number in range(1, 6)),
        ("test_batch",),
        "batches.meta",
        "label_names",
        "labels",
    ),
    Cifar("cifar100", ("train",), ("test",), "meta", "fine_label_names", "fine_labels"),
)


def find_cifar(files: Sequence[Located]) -> Cifar | None:
    """Which of the archives these are the files of, packed or not, if of any: its meta file and a batch are there, or
    any two of its files and no image, as one that lacks its meta file should be told so.
    """
    names = {file.name for file in files}
    images = any(Path(name).suffix.lower() in SUFFIXES for name in names)
    for kind in _KINDS:
        if len(names & kind.files) > 1 and (kind.meta in names or not images):
            return kind
    return None


def cifar_contents(kind: Cifar, files: Sequence[Located], split: str, spool: Path) -> Contents:
    """The images of a split (``train``, or ``val`` or ``test``), their PNGs in a file in the folder `spool`.

    Raises InputError (a split of another name, a file twice), MissingFileError (a batch that is not there), and what
    `read_pickle` raises; DamageError for batches that are none of images with labels.
    """
    if split not in _PARTS:
        raise InputError(f"split {shown(split)!r}: CIFAR has images to train and to test: give train, or val (test)")
    part = _PARTS[split]
    found: dict[str, Located] = {}
    for file in files:
        if file.name in kind.files and (first := found.setdefault(file.name, file)) is not file:
            raise InputError(
                f"{shown(file.place)}: this file of CIFAR stands in it twice, or in {shown(first.place)}, too: give one"
                " archive"
            )
    batches = kind.train if part == "train" else kind.test
    if missing := [name for name in (kind.meta, *batches) if name not in found]:
        one = next(iter(found.values()))
        raise MissingFileError(
            f"{shown(one.archive or Path(one.file).parent)} looks like CIFAR: {', '.join(missing)} of {kind.name}"
            " missing: fetch it again"
        )
    names = _class_names(_content(found[kind.meta]), kind, found[kind.meta].place)
    spool.mkdir(parents=True, exist_ok=True)
    samples = list(_spooled([found[name] for name in batches], kind, part, names, spool / "cifar.spool"))
    ignored = tuple(file.place for file in files if file.name not in kind.files)
    return Contents(samples, ignored, (), names)


def _spooled(batches: Sequence[Located], kind: Cifar, part: str, names: Sequence[str], spool: Path) -> Iterator[Sample]:
    """Write the PNGs of all batches one after the other, and say where each one lies."""
    number = 0
    with space_errors(spool.parent, sum(batch.size for batch in batches)), fresh(spool) as file:
        for batch in batches:
            pixels, labels = _images(_content(batch), kind, len(names), batch.place)
            for row, (image, label) in enumerate(zip(pixels, labels, strict=True)):
                png, key = stored_png(image), f"{kind.name}_{part}_{number:05d}"
                place = f"{batch.place}, image {row}"
                yield Sample(key, _SUFFIX, names[label], place, str(spool), file.tell(), len(png))
                file.write(png)
                number += 1
    if number == 0:
        raise DamageError(f"{shown(batches[0].place)} holds no image. Fetch the archive again.")


def _images(
    content: Mapping[str, Any], kind: Cifar, num_classes: int, where: str
) -> tuple[NDArray[np.uint8], list[int]]:
    """Pixels uint8 [images, 32, 32, 3] and the label of each."""
    data, labels = content.get("data"), content.get(kind.labels)
    if not isinstance(data, np.ndarray) or data.ndim != 2 or data.shape[1] != _ROW:
        found = f"an array of shape {data.shape}" if isinstance(data, np.ndarray) else type(data).__name__
        raise DamageError(f"{shown(where)}: 'data' must be rows of {_ROW} bytes, found {found}")
    if not isinstance(labels, list) or len(labels) != len(data):
        found = str(len(labels)) if isinstance(labels, list) else type(labels).__name__
        raise DamageError(f"{shown(where)}: {kind.labels!r} must be a list of {len(data)} numbers, found {found}")
    if wrong := [row for row, label in enumerate(labels) if type(label) is not int or not 0 <= label < num_classes]:
        raise DamageError(f"{shown(where)}: image {wrong[0]}: its label is none of the {num_classes} classes")
    return data.reshape(-1, *_SHAPE).transpose(0, 2, 3, 1), labels


def _class_names(content: Mapping[str, Any], kind: Cifar, where: str) -> tuple[str, ...]:
    names = content.get(kind.class_names)
    if not isinstance(names, list) or not names or not all(map(_is_name, names)):
        raise DamageError(
            f"{shown(where)}: {kind.class_names!r} must be a list of names, of 1 to {_MAX_NAME} characters without"
            " slashes. Fetch the archive again."
        )
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise DamageError(f"{shown(where)}: the class name {shown(twice[0])!r} stands twice. Fetch the archive again.")
    return tuple(names)


def _is_name(name: object) -> bool:
    return type(name) is str and 0 < len(name) <= _MAX_NAME and name.isprintable() and not {"/", "\\"} & set(name)


def _content(file: Located) -> dict[str, Any]:
    if file.size > MAX_BYTES:
        raise LimitError(f"{shown(file.place)}: {file.size} bytes; a batch has at most {MAX_BYTES}")
    with reading(file.file):
        descriptor = os.open(file.file, os.O_RDONLY)
    try:
        raw = pread(descriptor, file.offset, file.size)
    finally:
        os.close(descriptor)
    return read_pickle(raw, file.place)
