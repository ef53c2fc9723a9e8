"""Which splits a folder of shards holds, by the names that splits have in the field.

Light, and apart from `sources.py`, which finds the shards of a split: here nothing is opened but an ``_info.json``.
"""

import re
from collections.abc import Iterable
from pathlib import Path

from dlth.data.shards.split_info import INFO, read_info

TRAINING = ("train", "training")
VALIDATION = ("val", "valid", "validation")
EVALUATION = (*VALIDATION, "test", "dev")
_NUMBERED = re.compile(r".*[0-9]\.tar")  # ILSVRC2012_img_train.tar is an archive, not a shard


def words(name: str) -> set[str]:
    """The words of a file's name in lower case: ``imagenet-train-000001.tar`` has imagenet, train and tar."""
    return set(re.split(r"[^a-z]+", name.lower())) - {""}


def first_of(wanted: Iterable[str], found: Iterable[str]) -> str | None:
    """The first of the `wanted` words that is among those `found`, as it is spelled there."""
    spelled = {name.lower(): name for name in found}
    return next((spelled[word] for word in wanted if word in spelled), None)


def splits_in(folder: Path) -> tuple[str, ...]:
    """The splits that a local folder holds, sorted; ``("",)`` where its shards have no split in their names, else ().

    What an ``_info.json`` names; otherwise subfolders and numbered tars that bear a split's name. Raises SchemaError
    for an ``_info.json`` of another layout.
    """
    if (folder / INFO).is_file():
        return tuple(sorted(read_info(folder)["splits"]))
    if not folder.is_dir():
        return ()
    known = {*TRAINING, *EVALUATION}
    inside = {path.parent.name for path in folder.glob("*/*.tar") if path.parent.name in known}
    tars = [path.name for path in folder.glob("*.tar") if _NUMBERED.fullmatch(path.name)]
    named = inside | {word for name in tars for word in words(name) & known}
    return tuple(sorted(named)) if named or not tars else ("",)
