"""Arrays of .npz files that others made, checked before anything is allocated, and read a range of rows at a time.

`np.load` holds whole arrays, and takes each for as long as its header says. Here no Python objects (pickles) are read,
and every size is held against the zip's, the array's header and a bound.
"""

import math
import os
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from dlth.tickets.errors import DamageError, DlthError, InputError, LimitError, SchemaError, UnsafeError, shown
from dlth.tickets.format.layout import MAX_CHUNK_BYTES
from dlth.tickets.format.manifest import MAX_ROWS

_MAX_MEMBERS = 64
_MAX_DIRECTORY_BYTES = 2**20  # a member takes some 100; whatever count is stated, zipfile makes an object of each
_MAX_AXIS = 2**31  # above any axis that is read, far below where sizes multiplied could wrap
_MAX_CODE_POINT = 0x10FFFF
_ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError, ValueError, OSError)
_HEADER_ERRORS = (
    *(tokenize.TokenError, SyntaxError, ArithmeticError, LookupError, TypeError, AttributeError),
    *(SystemError, MemoryError),
)
"""What numpy lets through beside ValueError when the text of an array's header is no header."""


@contextmanager
def guarded(name: str) -> Iterator[None]:
    """Turns what zipfile and numpy raise on a broken file into DamageError naming it."""
    try:
        yield
    except DlthError:
        raise
    except _ZIP_ERRORS as error:
        raise DamageError(f"{name} cannot be read as .npz: {shown(error)}", file=name) from error


class Column:
    """One array of the archive, read a range of rows at a time."""

    def __init__(
        self, archive: zipfile.ZipFile, info: zipfile.ZipInfo, where: str, kinds: str, axes: tuple[int, ...]
    ) -> None:
        self.name, self._where = info.filename.removesuffix(".npy"), where
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # LZMA's header asks for gigabytes
            raise InputError(f"{where}: '{self.name}' is packed in a way that numpy does not write; save it anew")
        self._file = archive.open(info)
        version = np.lib.format.read_magic(self._file)
        readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        if version not in readers:
            raise SchemaError(f"{where}: '{self.name}' is of .npy version {version}; 1.0 and 2.0 are read")
        try:
            self.shape, fortran, self._dtype = readers[version](self._file)
        except _HEADER_ERRORS as error:
            raise DamageError(
                f"{where}: '{self.name}' has a header that is none: {shown(error)}", file=where
            ) from error
        if self._dtype.hasobject:
            raise UnsafeError(f"{where}: '{self.name}' holds Python objects, which would have to be unpickled")
        if self._dtype.kind not in kinds or self._dtype.fields is not None or len(self.shape) not in axes:
            raise InputError(f"{where}: '{self.name}' has the wrong type {self._dtype} or shape {list(self.shape)}")
        if fortran and len(self.shape) > 1:
            raise InputError(f"{where}: '{self.name}' is stored column by column; save np.ascontiguousarray of it")
        self._start = self._file.tell()
        if not all(type(length) is int and 0 <= length < _MAX_AXIS for length in self.shape):  # True, -2, 10**30
            raise LimitError(f"{where}: '{self.name}' has the shape {shown(self.shape)}, beyond every bound")
        self._row_bytes = math.prod(self.shape[1:]) * self._dtype.itemsize
        if not 0 <= self.shape[0] <= MAX_ROWS or not 1 <= self._row_bytes <= MAX_CHUNK_BYTES:
            raise LimitError(f"{where}: '{self.name}' has the shape {list(self.shape)}, beyond every bound")
        if info.file_size != self._start + self.shape[0] * self._row_bytes:
            raise DamageError(f"{where}: '{self.name}' is not as long as its shape says", file=where)

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Rows [start, stop)."""
        wanted = (stop - start) * self._row_bytes
        if wanted > 4 * MAX_CHUNK_BYTES:
            raise LimitError(f"{self._where}: {stop - start} rows of '{self.name}' at once; use smaller shards")
        with guarded(self._where):
            if self._file.tell() != (offset := self._start + start * self._row_bytes):
                self._file.seek(offset)
            raw = self._file.read(wanted)
        if len(raw) != wanted:
            raise DamageError(f"{self._where}: '{self.name}' ends early", file=self._where)
        if self._dtype.kind == "U" and (np.frombuffer(raw, f"{self._dtype.str[0]}u4") > _MAX_CODE_POINT).any():
            raise DamageError(f"{self._where}: '{self.name}' holds numbers that are no characters", file=self._where)
        return np.frombuffer(raw, dtype=self._dtype).reshape(stop - start, *self.shape[1:])


def check_directory(file: BinaryIO, name: str) -> None:
    """Refuse a zip whose directory lists many members, before zipfile makes an object of each.

    Every end record is held to the bounds (count and bytes): which of several zipfile takes is its own affair.
    """
    file.seek(max(0, file.seek(0, os.SEEK_END) - 66_000))
    tail = file.read()
    for mark, at, size in ((b"PK\x05\x06", 10, 2), (b"PK\x06\x06", 32, 8)):
        place = tail.find(mark)
        while place >= 0:
            stated = tail[place + at :]
            count, length = stated[:size], stated[size : size + min(2 * size, 8)]
            num_members, num_bytes = int.from_bytes(count, "little"), int.from_bytes(length, "little")
            if num_members > _MAX_MEMBERS and count != b"\xff\xff":
                raise LimitError(f"{name} lists {num_members} members, the bound is {_MAX_MEMBERS}")
            if num_bytes > _MAX_DIRECTORY_BYTES and length != b"\xff\xff\xff\xff":
                raise LimitError(f"{name} lists its members in {num_bytes} bytes, the bound is {_MAX_DIRECTORY_BYTES}")
            place = tail.find(mark, place + 1)
    locator = tail.rfind(b"PK\x06\x07")
    if locator >= 0 and tail[max(0, locator - 56) :][:4] != b"PK\x06\x06":
        raise DamageError(f"{name}: its end record is not where it must be", file=name)
