"""How many classes a set of images has, who says so, and what a label may not do: size a model without being noticed.

A label comes from whoever made the shards, and the student's head is as large as the largest: one ``.cls`` of
20,000,000 asks for 8 GB. Three bounds stand before any memory is taken. No label reaches MAX_CLASSES, whoever asks. A
``classes.json`` beside local shards says how many classes there are; a label past it contradicts it. Where nobody says,
labels may well be larger than the number of images (a few images of ImageNet-21k still have its 21,843 classes), but
from UNDECLARED_CLASSES on there must be as many images as classes, or the size of the head must be asked for. Whatever
is refused names the shard and the key of its label.
"""

from pathlib import Path

import numpy as np

from dlth.data.shards.shard_index import ShardIndex
from dlth.data.shards.split_info import CLASSES, MAX_BYTES, checked_names
from dlth.tickets.errors import DlthError, InputError, MismatchError, shown
from dlth.tickets.format.jsontext import parse
from dlth.tickets.store.disk import read_file

UNDECLARED_CLASSES = 100_000
"""Classes that a head may have without anyone asking for them: 150 MB of weights at DeiT-S's width."""


def class_names(index: ShardIndex) -> tuple[str, ...]:
    """The names in `classes.json` beside local shards, in label order; empty where there is none.

    Raises SchemaError where it has another layout.
    """
    path = Path(index.shards[0].url).parent / CLASSES
    if not path.is_file():
        return ()
    value = parse(read_file(path, MAX_BYTES, shown(path)), shown(path))
    return checked_names(value.get("names") if isinstance(value, dict) else None, path)


def num_declared(index: ShardIndex) -> int | None:
    """Classes that a `classes.json` declares; None where there is none, or another program's of that name."""
    try:
        return len(class_names(index)) or None
    except DlthError:
        return None


def check_declared(index: ShardIndex) -> None:
    """Raise MismatchError, with shard and key, where a label is past the classes declared beside the shards."""
    declared = num_declared(index)
    if declared is not None and index.num_classes > declared:
        raise MismatchError(
            f"{_largest(index)}: {CLASSES} beside the shards names {declared} classes. Correct the label, or the list."
        )


def check_head(index: ShardIndex) -> None:
    """Raise InputError, with shard and key, where labels alone would ask for a head that no one meant."""
    classes = index.num_classes
    if classes > UNDECLARED_CLASSES and classes > index.num_samples and num_declared(index) is None:
        raise InputError(
            f"{_largest(index)}: a head of {classes:,} classes for {index.num_samples:,} images is not made unasked. "
            f"Correct the label; or give --num-classes {classes} if there are that many"
        )


def check_labels(num_classes: int, *indexes: ShardIndex | None) -> None:
    """Refuse images whose labels a head of `num_classes` has no place for.

    Raises:
        InputError: names the images, the highest label, and the first image that has it
    """
    for index in indexes:
        if index is not None and index.num_classes > num_classes:
            raise InputError(
                f"{shown(index.name)} has labels up to {index.num_classes - 1}; a head of {num_classes} classes has no "
                f"place for them: set --num-classes, or correct the label ({_largest(index)})"
            )


def require_images(index: ShardIndex) -> None:
    """Raise InputError where the shards hold no image."""
    if not index.num_samples:
        raise InputError(
            f"{shown(index.name)}: {len(index.shards)} shards hold no image (jpg, jpeg, png or webp), and "
            f"{index.num_ignored} other members: name the shards of the images"
        )


def require_labels(index: ShardIndex) -> None:
    """Raise InputError when there are no images or, naming the first, when some have no label."""
    require_images(index)
    unlabelled = np.flatnonzero(index.label < 0)
    if len(unlabelled):
        key = shown(index.key(int(unlabelled[0])))
        raise InputError(f"{len(unlabelled):,} images have no label (a .cls member); the first is {key}")


def _largest(index: ShardIndex) -> str:
    """The largest label and the first image that has it, as messages name them."""
    sample = int(np.argmax(index.label))
    return f"{index.where(sample)}: label {int(index.label[sample])}"
