"""JSON files that carry their own digest: a flipped bit in one is damage, and never another number.

Under "sha256" stands the digest of everything else, as one canonical text: keys sorted, no spaces. It is no signature:
whoever may write the file may write its digest, so what is read is checked for types and ranges all the same.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dlth.tickets.errors import DamageError, SchemaError, shown
from dlth.tickets.format.jsontext import canonical, parse
from dlth.tickets.store.disk import read_file

SEAL = "sha256"
MAX_DEPTH = 64
"""Of an optimizer's state as a tree: three levels of JSON for each of its own."""


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """The content as JSON holds it, and its digest. Raises ValueError for what JSON has no word for."""
    plain = json.loads(json.dumps(content, allow_nan=False))
    return {**plain, SEAL: _digest(plain)}


def read_sealed(path: Path, limit: int) -> tuple[dict[str, Any], bool]:
    """The content of a JSON object of at most `limit` bytes, without its seal; and whether it had one.

    Raises:
        MissingFileError, UnsafeError, LimitError: as `read_file`
        DamageError: no JSON object, or not what was written
    """
    try:
        content = parse(read_file(path, limit, shown(path)), shown(path), MAX_DEPTH)
    except SchemaError as error:
        raise DamageError(f"{error}. It is damaged, or not of dlth", file=path.name) from error
    if not isinstance(content, dict):
        raise DamageError(f"{shown(path)} holds no JSON object", file=path.name)
    seal = content.pop(SEAL, None)
    if seal is not None and seal != _digest(content):
        raise DamageError(f"{shown(path)} is damaged: its content is not what its sha256 was made of", file=path.name)
    return content, seal is not None


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(canonical(content)).hexdigest()
