"""Headers as JSON, strictly: a dataclass's fields, no more and no fewer, each of its type and within bounds.

One declaration drives reading, writing and the differences shown to a user, for every kind of file. Frozen dataclasses
that check themselves when made, so an invalid header cannot exist. Rejected: pydantic, because a lab that only reads
tickets has numpy and zarr alone.
"""

import dataclasses
import functools
import math
import re
from typing import Any, Self, TypeVar, get_args, get_origin, get_type_hints

from dlth.tickets.errors import DlthError, InputError, SchemaError, shown
from dlth.tickets.format.jsontext import Json, canonical

VERSION = "1.0"
MAX_TEXT = 1_000
MAX_ITEMS = 64
MAX_SIDE = 65_536

_SHA256 = re.compile(r"(?:[0-9a-f]{64})?")
_RATE = re.compile(r"1(?:\.0*)?|0?\.[0-9]*[1-9][0-9]*")


class StoredHeader:
    """What the headers of all kinds of files have in common; subclasses are frozen dataclasses.

    `kind` is what `format` says; `attribute` the name under which a Zarr group holds the header.
    """

    kind = ""
    attribute = ""
    format: str
    version: str
    dataset: Any

    def to_json(self) -> dict[str, Json]:
        """The header as a JSON object; every field is written."""
        result: dict[str, Json] = _plain(self)
        return result

    @classmethod
    def from_json(cls, value: Json) -> Self:
        """The header of a JSON object; raises SchemaError naming the path of what is missing, unknown or wrong."""
        if isinstance(value, dict) and isinstance(value.get("version"), str):
            check_version(value["version"])
        header: Self = _typed(value, cls, "header")
        return header

    def check_common(self) -> None:
        """Raises SchemaError for another kind or version, and for texts, lists and numbers that no header holds."""
        require(self.format == self.kind, "format", f"must be {self.kind!r}, got '{shown(self.format)}'")
        check_version(self.version)
        _values(self.to_json(), "header")


Header = TypeVar("Header", bound=StoredHeader)


def require(ok: bool, name: str, message: str) -> None:
    """Raises SchemaError with the field's name unless `ok`."""
    if not ok:
        raise SchemaError(f"{name}: {message}")


def check_sha256(value: str, name: str) -> None:
    """Raises SchemaError unless a digest is whole, or empty for unknown."""
    require(_SHA256.fullmatch(value) is not None, name, f"must be 64 hexadecimal digits or empty, got {shown(value)}")


def check_rate(value: str, name: str) -> None:
    """Raises SchemaError unless a share is decimal text above 0 and at most 1."""
    fine = len(value) <= 32 and _RATE.fullmatch(value) is not None
    require(fine, name, f"must be plain decimal text above 0 and at most 1, got '{shown(value, 60)}'")


def check_side(value: int, name: str) -> None:
    """Raises SchemaError unless a number of pixels is one that an image side can have."""
    require(1 <= value <= MAX_SIDE, name, f"must be from 1 to {MAX_SIDE}, got {value}")


def check_version(version: str) -> None:
    """Accept every 1.x; raises SchemaError for another major version, saying what to do."""
    match = re.fullmatch(r"([0-9]{1,4})\.([0-9]{1,4})", version)
    require(match is not None, "version", f"must look like {VERSION}, got '{shown(version)}'")
    if match is not None and match[1] != VERSION.split(".")[0]:
        raise SchemaError(f"version: the file is version {version}, this dlth reads {VERSION[0]}.x; update dlth")


def checked(header: Any, kind: type[Header]) -> Header:
    """The header that a caller gives; raises InputError for anything else."""
    if not isinstance(header, kind):
        raise InputError(f"a {kind.__name__} is needed, found {shown(header)!r}")
    return header


def differences(left: StoredHeader, right: StoredHeader) -> list[str]:
    """Every field that differs, as 'keep: file has 0.7, asked 0.5' (`left` is the file)."""
    ours, theirs = (_flat(checked(header, StoredHeader).to_json()) for header in (left, right))
    paths = [*ours, *(path for path in theirs if path not in ours)]
    return [
        f"{path}: file has {shown(ours.get(path, 'nothing'), 80)}, asked {shown(theirs.get(path, 'nothing'), 80)}"
        for path in paths
        if ours.get(path) != theirs.get(path)
    ]


def _flat(value: Json, path: str = "") -> dict[str, str]:
    if isinstance(value, dict):
        return {name: text for key, item in value.items() for name, text in _flat(item, f"{path}.{key}").items()}
    return {path[1:]: value if isinstance(value, str) else canonical(value).decode()}


def _plain(value: Any) -> Json:
    if dataclasses.is_dataclass(value):
        return {item.name: _plain(getattr(value, item.name)) for item in dataclasses.fields(value)}
    return list(value) if isinstance(value, tuple) else value


def _typed(value: Json, kind: Any, path: str) -> Any:
    """`value` as `kind` (a dataclass, tuple[item, ...], dict, or plain type), nothing converted but int to float."""
    if dataclasses.is_dataclass(kind):
        return _build(value, kind, path)
    if get_origin(kind) is tuple:
        require(isinstance(value, list) and len(value) <= MAX_ITEMS, path, f"must be a list of at most {MAX_ITEMS}")
        return tuple(_typed(item, get_args(kind)[0], f"{path}[{index}]") for index, item in enumerate(value))
    if get_origin(kind) is dict:
        require(isinstance(value, dict), path, "must be an object")
        item_kind = get_args(kind)[1]
        return value if item_kind is Any else {key: _typed(item, str, f"{path}.{key}") for key, item in value.items()}
    if kind is float and type(value) is int:
        return float(value)
    require(type(value) is kind, path, f"must be {_NAMES[kind]}, got {shown(value, 60)}")
    return value


_NAMES = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}


_hints = functools.cache(get_type_hints)


def _build(value: Json, kind: Any, path: str) -> Any:
    require(isinstance(value, dict), path, "must be an object")
    hints = _hints(kind)
    unknown, missing = sorted(set(value) - set(hints)), sorted(set(hints) - set(value))
    if unknown:
        names = ", ".join(shown(name, 60) for name in unknown[:5])
        raise SchemaError(f"{path}: unknown field {names}; version {VERSION} allows new fields under 'extensions' only")
    require(not missing, path, f"field {', '.join(missing[:5])} is missing")
    fields = {name: _typed(value[name], hint, f"{path}.{name}") for name, hint in hints.items()}
    try:
        return kind(**fields)
    except DlthError as error:
        raise SchemaError(f"{path}.{error}") from error


def _values(value: Json, path: str) -> None:
    """Every text is short and encodable, every list short, every number finite."""
    if isinstance(value, dict):
        require(len(value) <= MAX_ITEMS, path, f"must have at most {MAX_ITEMS} fields")
        for key, item in value.items():
            _values(key, path)
            _values(item, f"{path}.{key}")
    elif isinstance(value, list | tuple):
        require(len(value) <= MAX_ITEMS, path, f"must have at most {MAX_ITEMS} items")
        for item in value:
            _values(item, path)
    elif isinstance(value, str):
        fine = len(value) <= MAX_TEXT and not any("\ud800" <= char <= "\udfff" for char in value)
        require(fine, path, f"must be Unicode text of at most {MAX_TEXT} characters")
    elif isinstance(value, float):
        require(math.isfinite(value), path, "must be a finite number")
    else:
        require(value is None or type(value) in (int, bool), path, f"cannot hold a {type(value).__name__}")
