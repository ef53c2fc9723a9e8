"""Reads one struct array from a MATLAB 5 file: what ImageNet's ``meta.mat`` needs, and no more.

The devkit keeps the mapping from its own class numbers to WordNet ids in a .mat file. scipy would read it, but scipy is
not needed for anything else at run time, and its reader handles objects, functions and every numeric type of a format
from 1996. These bytes come from outside: sizes are bounded, only numbers and text of the fields that were asked for are
read, everything else is stepped over.
"""

import struct
import zlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from dlth.tickets.errors import DamageError, LimitError, shown

MAX_BYTES = 64 * 1024 * 1024
_HEADER = 128
_MATRIX, _COMPRESSED = 14, 15
_CLASS_STRUCT, _CLASS_CHAR, _CLASS_NUMBERS = 2, 4, range(6, 16)
_NUMBERS = {1: "i1", 2: "u1", 3: "<i2", 4: "<u2", 5: "<i4", 6: "<u4", 7: "<f4", 9: "<f8", 12: "<i8", 13: "<u8"}
_TEXTS = {1: "latin-1", 2: "latin-1", 4: "utf-16-le", 16: "utf-8", 17: "utf-16-le"}

Scalar = float | str


class _Element(NamedTuple):
    kind: int
    data: bytes


def read_struct_array(raw: bytes, name: str, fields: Sequence[str], where: str) -> list[tuple[Scalar, ...]]:
    """The `fields` (each a number or a text) of every element of the struct array `name` in a MATLAB 5 file.

    Raises `DamageError` where the file is malformed or has no such array, `LimitError` above 64 MiB.
    """
    if len(raw) > MAX_BYTES:
        raise LimitError(f"{shown(where)}: {len(raw)} bytes; a file of at most {MAX_BYTES} is read")
    try:
        if raw[124:128] != b"\x00\x01IM":
            raise ValueError("it is no little-endian MATLAB 5 file")
        for element in _elements(raw[_HEADER:]):
            if element.kind == _COMPRESSED:
                element = next(_elements(_inflated(element.data, where)))
            parts = list(_elements(element.data)) if element.kind == _MATRIX else []
            if len(parts) > 2 and parts[0].data[:1] == bytes([_CLASS_STRUCT]) and parts[2].data == name.encode():
                return _rows(parts, fields)
        raise ValueError(f"it holds no struct array {name!r}")
    except (ValueError, IndexError, StopIteration, struct.error, zlib.error) as error:
        raise DamageError(f"{shown(where)} cannot be read: {shown(error)}. Take it from the devkit again.") from error


def _elements(data: bytes) -> Iterator[_Element]:
    """The elements that stand one after the other in `data`."""
    position = 0
    while position < len(data):
        kind, size = struct.unpack_from("<II", data, position)
        start, step = position + 8, 8 + (size if kind == _COMPRESSED else -(-size // 8) * 8)
        if kind >> 16:  # the short form: type and size share four bytes, the data take the next four
            kind, size, start, step = kind & 0xFFFF, kind >> 16, position + 4, 8
        if start + size > len(data):
            raise ValueError(f"an element of {size} bytes at byte {position} is cut short")
        yield _Element(kind, data[start : start + size])
        position += step


def _inflated(packed: bytes, where: str) -> bytes:
    stream = zlib.decompressobj()
    data = stream.decompress(packed, MAX_BYTES)
    if stream.unconsumed_tail:
        raise LimitError(f"{shown(where)}: more than {MAX_BYTES} bytes when decompressed")
    return data


def _rows(parts: list[_Element], fields: Sequence[str]) -> list[tuple[Scalar, ...]]:
    """Rows of a struct array: flags, dimensions, name, width of a field's name, the names, then matrix after matrix."""
    count = int(np.prod(np.frombuffer(parts[1].data, "<i4"), dtype=np.int64))
    width, names = int.from_bytes(parts[3].data, "little"), parts[4].data
    if width < 1:
        raise ValueError("the struct has no fields")
    columns = [names[at : at + width].partition(b"\0")[0].decode() for at in range(0, len(names), width)]
    if missing := [field for field in fields if field not in columns]:
        raise ValueError(f"the struct has the fields {columns}, not {missing}")
    values = parts[5:]
    if len(values) != count * len(columns):
        raise ValueError(f"{count} elements of {len(columns)} fields expected, {len(values)} values found")
    wanted = [columns.index(field) for field in fields]
    return [
        tuple(_scalar(values[start + column].data) for column in wanted)
        for start in range(0, len(values), len(columns))
    ]


def _scalar(matrix: bytes) -> Scalar:
    """The one number, or the text, in a matrix element."""
    flags, _, _, content = list(_elements(matrix))[:4]
    if flags.data[0] == _CLASS_CHAR:
        return content.data.decode(_TEXTS[content.kind]) if content.kind in _TEXTS else ""
    if flags.data[0] not in _CLASS_NUMBERS or content.kind not in _NUMBERS:
        raise ValueError("a field is neither number nor text")
    number = np.frombuffer(content.data, _NUMBERS[content.kind])
    if number.size != 1:
        raise ValueError(f"a field holds {number.size} numbers, not one")
    return float(number[0])
