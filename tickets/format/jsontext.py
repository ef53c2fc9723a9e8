"""JSON as the format uses it: one canonical text per value, and a strict reader.

A digest of text is only an identity if one value has one text: keys sorted, no spaces, ASCII only. The standard reader
takes duplicate keys (the last wins), NaN and unbounded depth; a file from a stranger gets none of these.
"""

import json
import math
from collections.abc import Mapping
from typing import Any, NoReturn

from dlth.tickets.errors import SchemaError, shown

MAX_DEPTH = 16

Json = Any
"""A value of JSON: None, bool, int, float, str, list or dict with str keys."""


def canonical(value: Json) -> bytes:
    """The one text of `value`: sorted keys, no spaces, ASCII, finite numbers only."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode()


def parse(raw: bytes, where: str, max_depth: int = MAX_DEPTH) -> Json:
    """The value of JSON text; raises SchemaError, naming `where`, for anything the standard or this format forbids.

    `max_depth`: how deep lists and objects may stand in each other.
    """
    try:
        value = json.loads(
            raw.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_constant=_no_constant,
            parse_float=_finite,
            parse_int=_bounded,
        )
        if _is_deeper(value, max_depth):
            raise ValueError(f"nested more than {max_depth} deep")
        return value
    except RecursionError as error:
        raise SchemaError(f"{where}: JSON is nested too deeply") from error
    except ValueError as error:
        raise SchemaError(f"{where}: not the JSON this format allows: {shown(error)}") from error


def same(left: Json, right: Json) -> bool:
    """Equal as JSON: unlike ==, tells 1, 1.0 and true apart."""
    return canonical(left) == canonical(right)


def strict(value: Any) -> Any:
    """The value as JSON can hold it: NaN and infinities, for which JSON has no word, become None."""
    if isinstance(value, Mapping):
        return {name: strict(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [strict(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _is_deeper(value: Json, levels: int) -> bool:
    """Whether lists and objects stand more than `levels` deep in each other."""
    if not isinstance(value, dict | list):
        return False
    items = value.values() if isinstance(value, dict) else value
    return levels == 0 or any(_is_deeper(item, levels - 1) for item in items)


def _unique(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key appears twice in one object")
    return result


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number")


def _bounded(text: str) -> int:
    if len(text) > 19:
        raise ValueError("a whole number is out of range")
    return int(text)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError("a number is out of range")
    return value
