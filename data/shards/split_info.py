"""The two files beside packed shards: ``_info.json`` (what each split consists of) and ``classes.json``.

``_info.json`` has timm's layout, so that timm reads the folder as it is: ``splits`` -> ``name``, ``num_samples``,
``filenames``, ``shard_lengths``. Beside these stand what timm passes over: ``shard_sizes`` and ``shard_sha256`` (one
for each shard, so that a damaged or truncated shard is noticed) and ``pack`` (the settings that the bytes depend on, so
that a second run knows whether it continues the first). ``classes.json`` has ``names`` in label order and ``counts``
for each split. Both are merged when several splits are packed into one folder.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dlth.tickets.errors import InputError, MismatchError, SchemaError, shown
from dlth.tickets.format.jsontext import parse
from dlth.tickets.store.disk import read_file

INFO, CLASSES = "_info.json", "classes.json"
MAX_BYTES = 64 * 1024 * 1024
_NAMED = 5  # how many of several offenders an error names

Json = dict[str, Any]


@dataclass(frozen=True)
class ShardRecord:
    """One finished shard: its file name, number of samples, bytes, and sha256 of them in hexadecimal."""

    name: str
    rows: int
    size: int
    sha256: str


_FIELDS = {"name": str, "rows": int, "size": int, "sha256": str}


def read_info(folder: Path) -> Json:
    """The folder's ``_info.json``; ``{"splits": {}}`` where there is none. Raises `SchemaError` on another layout."""
    info = _read(folder / INFO) or {"splits": {}}
    splits = info.get("splits")
    if not isinstance(splits, dict) or not all(isinstance(entry, dict) for entry in splits.values()):
        raise SchemaError(f"{shown(folder / INFO)}: 'splits' must map the splits' names to objects")
    return info


def split_entry(split: str, shards: Sequence[ShardRecord], settings: Json, num_ignored: int) -> Json:
    """What ``_info.json`` says of one split."""
    return {
        "name": split,
        "num_samples": sum(shard.rows for shard in shards),
        "filenames": [shard.name for shard in shards],
        "shard_lengths": [shard.rows for shard in shards],
        "shard_sizes": [shard.size for shard in shards],
        "shard_sha256": [shard.sha256 for shard in shards],
        "num_ignored": num_ignored,
        "pack": settings,
    }


def merged_info(folder: Path, entry: Json) -> Json:
    """The content of ``_info.json`` with this split's entry put in."""
    info = read_info(folder)
    return {**info, "splits": dict(sorted({**info["splits"], entry["name"]: entry}.items()))}


def shard_records(entry: Json, where: str) -> list[ShardRecord]:
    """The shards of a split's entry that `split_entry` made."""
    columns = [entry.get(name) for name in ("filenames", "shard_lengths", "shard_sizes", "shard_sha256")]
    if not all(isinstance(column, list) and len(column) == len(columns[0] or ()) for column in columns):
        raise SchemaError(f"{shown(where)}: the list of shards cannot be read: four lists of one length are expected")
    return [shard_record(dict(zip(_FIELDS, row, strict=True)), where) for row in zip(*columns, strict=True)]


def shard_record(value: Json, where: str) -> ShardRecord:
    """One shard's record as JSON has it. Raises SchemaError where it is not of the fields and types of a record."""
    types = {name: type(field) for name, field in value.items()}
    if types != _FIELDS or value["rows"] < 0 or value["size"] < 0:
        raise SchemaError(f"{shown(where)}: a shard's record must have {', '.join(_FIELDS)}, found {shown(value)}")
    return ShardRecord(**value)


def class_order(folder: Path, split: str, used: set[str], asked: Sequence[str] | None) -> tuple[str, ...]:
    """Class names in label order: as asked, else as other splits in the folder have them, else sorted.

    Raises `MismatchError` where the three disagree or an image's class is not among them.
    """
    known_names, counts = _read_classes(folder)
    there = known_names if set(counts) - {split} else ()
    names = tuple(asked) if asked is not None else there or tuple(sorted(used))
    if len(set(names)) != len(names):
        raise InputError("a class name stands twice in the list of classes")
    if there and names != there:
        raise MismatchError(
            f"{shown(folder / CLASSES)} has {len(there)} classes ({_some(there)}), asked for are {len(names)} "
            f"({_some(names)}): labels would not mean the same in both splits. Give another folder or those classes."
        )
    if unknown := sorted(used - set(names)):
        source = "the list of classes" if asked is not None else str(folder / CLASSES)
        raise MismatchError(
            f"{len(unknown)} classes of the images are not in {shown(source)} ({len(names)} classes: {_some(names)}): "
            f"{_some(unknown)}. Pack the split that has all classes first, or name the classes."
        )
    return names


def merged_classes(folder: Path, split: str, names: Sequence[str], counts: Sequence[int]) -> Json:
    """The content of ``classes.json`` with this split's counts put in."""
    others = {name: count for name, count in _read_classes(folder)[1].items() if name != split}
    return {"names": list(names), "counts": dict(sorted({**others, split: list(counts)}.items()))}


def _read_classes(folder: Path) -> tuple[tuple[str, ...], Json]:
    """Names and counts in the folder's ``classes.json``; empty where they are not there.

    Raises SchemaError where they are of another type: another program's file, which is not ours to merge into.
    """
    known = _read(folder / CLASSES) or {}
    names, counts = checked_names(known.get("names", []), folder / CLASSES), known.get("counts", {})
    if not isinstance(counts, dict) or not all(isinstance(count, list) for count in counts.values()):
        raise SchemaError(f"{shown(folder / CLASSES)}: 'counts' must map the splits' names to lists of numbers")
    return names, counts


def checked_names(names: object, path: Path) -> tuple[str, ...]:
    """The class names that a ``classes.json`` has. Raises SchemaError where they are none."""
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise SchemaError(f"{shown(path)}: 'names' must be a list of texts")
    return tuple(names)


def _read(path: Path) -> Json | None:
    if not path.exists():
        return None
    value = parse(read_file(path, MAX_BYTES, shown(path)), shown(path))
    if not isinstance(value, dict):
        raise SchemaError(f"{shown(path)}: an object is expected, not a {type(value).__name__}")
    return value


def _some(names: Sequence[str]) -> str:
    more = ", …" if len(names) > _NAMED else ""
    return ", ".join(shown(name) for name in names[:_NAMED]) + more
