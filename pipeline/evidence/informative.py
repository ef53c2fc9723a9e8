"""Which patches of each image matter, where somebody knows: `informative.json` beside the shards.

    {"val_000001": [12, 13, 20, 21], …}

Each key's patches, of the grid and in the view of the tickets that recall is measured of. The demo's digits come with
it; for images of one's own, masks of the object may say it. It is no part of the shards, so nothing trains on it.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from dlth.data.packing.demo_digits import INFORMATIVE
from dlth.tickets.errors import DamageError, SchemaError, shown
from dlth.tickets.format.jsontext import parse
from dlth.tickets.store.disk import read_file

__all__ = ["INFORMATIVE", "read_informative"]

MAX_BYTES = 256 << 20
"""A million images with 20 patches each take 100 MB."""
_CHECK: TypeAdapter[dict[str, list[int]]] = TypeAdapter(dict[str, list[int]])


def read_informative(path: Path, num_patches: int) -> dict[str, NDArray[np.int64]]:
    """Int64 [known patches] by key, of at least one patch each.

    Raises:
        MissingFileError, UnsafeError, LimitError: as `read_file`
        DamageError: no such file, or patches that a grid of so many does not have
    """
    try:
        content = _CHECK.validate_python(parse(read_file(path, MAX_BYTES, shown(path)), shown(path), 2), strict=True)
    except (SchemaError, ValidationError) as error:
        raise DamageError(f"{shown(path)} says no patches by key: {shown(error)}", file=path.name) from error
    for key, patches in content.items():
        if not patches or not all(0 <= patch < num_patches for patch in patches):
            raise DamageError(
                f"{shown(path)}: the patches of {shown(key)} are not of 0 to {num_patches - 1}, at least one: found"
                f" {shown(patches)}",
                file=path.name,
            )
    return {key: np.unique(np.array(patches, dtype=np.int64)) for key, patches in content.items()}
