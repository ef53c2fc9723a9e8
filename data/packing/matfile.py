"""Reads one struct array from a MATLAB file: what ImageNet's ``meta.mat`` needs.

By scipy, which believes what a file says of sizes, unpacks what is compressed whatever its size, and calls itself for
each nesting: of single flipped bits two in a hundred crash it. A stranger's file is read in a process of its own, with
bounded memory (`confined.py`); only numbers and text of the fields that were asked for are taken from it.
"""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.io import loadmat

from dlth.tickets.errors import DamageError, LimitError, shown

MAX_BYTES = 64 * 1024 * 1024

Scalar = float | str


def read_struct_array(raw: bytes, name: str, fields: Sequence[str], where: str) -> list[tuple[Scalar, ...]]:
    """The `fields` (each a number or a text) of every element of the struct array `name` in a MATLAB file.

    Raises `DamageError` where the file is malformed or has no such array, `LimitError` above 64 MiB.
    """
    if len(raw) > MAX_BYTES:
        raise LimitError(f"{shown(where)}: {len(raw)} bytes; a file of at most {MAX_BYTES} is read")
    try:
        array = loadmat(io.BytesIO(raw), variable_names=[name])[name]
        return [tuple(_scalar(row[field]) for field in fields) for row in array.ravel(order="F")]
    except MemoryError:  # the process's bound, which has its own words
        raise
    except Exception as error:  # scipy, numpy and zlib have a dozen kinds
        raise DamageError(f"{shown(where)} cannot be read: {shown(error)}. Take it from the devkit again.") from error


def _scalar(value: np.ndarray[Any, Any]) -> Scalar:
    """The one number, or the text, in a field."""
    if value.dtype.kind == "U":
        return "".join(value.ravel().tolist())
    if value.dtype.kind not in "iuf" or value.size != 1:
        raise ValueError(f"a field holds {value.size} of {value.dtype}: neither one number nor a text")
    return float(value.item())
