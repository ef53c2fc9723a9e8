"""A strict walk over a tar's headers: where every plain file lies, without reading what is in it.

Shards come from strangers, and Python's `tarfile` treats a damaged header as the end of the archive: one flipped bit
and the rest of the samples are gone without an error (997 of 1,000 flips, measured); a 512-byte file can hang it. So
dlth walks the headers itself: plain ustar, pax (``path``, ``size``) and GNU long names, every checksum compared, every
size checked against the bytes that are left, the end-of-archive mark required. Links, devices, sparse and compressed
archives are refused, since none of them is needed to hold images. Every step moves forward by at least one block and
every read is bounded, so the walk ends on any input.

What the format cannot tell: a flipped bit inside a file's content (caught later by the content hash of the image or
the shard's digest) and inside a pax or long-name record, which has no checksum (caught when the names of image and
label part ways).
"""

import os
from collections.abc import Iterator
from typing import NamedTuple, NoReturn

from dlth.tickets.errors import DamageError, LimitError, UnsafeError, shown

BLOCK = 512
MAX_NAME_RECORD = 64 * 1024  # bytes of one pax or long-name record
MAX_TRAILING = 16 * 1024 * 1024  # zero padding after the end mark; GNU tar's largest usual record is far below
_WINDOW = 4096  # a label, its header and the next image's header usually fit: one system call for three reads
_ZEROS = bytes(BLOCK)
_REFUSED = {
    b"1": "a hard link",
    b"2": "a symbolic link",
    b"3": "a character device",
    b"4": "a block device",
    b"6": "a FIFO",
    b"S": "a sparse file",
    b"K": "a long link",
}
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd", b"PK": "zip"}


class Member(NamedTuple):
    """One plain file: its name as stored, where its content begins in the open file, its length (both in bytes)."""

    name: str
    offset: int
    size: int


class _Reader:
    """Bounded positional reads from a descriptor, through one small window."""

    def __init__(self, descriptor: int, start: int, size: int, where: str) -> None:
        self.descriptor, self.start, self.end, self.where = descriptor, start, start + size, where
        self._window, self._window_start = b"", 0

    def read(self, offset: int, size: int) -> bytes:
        """Exactly `size` bytes at `offset`; `DamageError` if they are not there."""
        if offset + size > self.end:
            left = max(0, self.end - offset)
            self.damaged(offset, f"{size} bytes must follow, {left} are left: cut short")
        begin = offset - self._window_start
        if begin < 0 or begin + size > len(self._window):
            self._window = pread(self.descriptor, offset, max(size, min(_WINDOW, self.end - offset)))
            self._window_start, begin = offset, 0
            if len(self._window) < size:
                self.damaged(offset, f"expected {size} bytes, the file gave {len(self._window)}: cut short")
        return self._window[begin : begin + size]

    def damaged(self, offset: int, what: str) -> NoReturn:
        raise DamageError(
            f"{shown(self.where)}: byte {offset - self.start}: {what}. Fetch the shard again, or leave it out.",
            shard=self.where,
        )

    def unsafe(self, offset: int, what: str) -> NoReturn:
        raise UnsafeError(
            f"{shown(self.where)}: byte {offset - self.start}: {what}. Only plain files are read from a shard: "
            "write it again without."
        )


def pread(descriptor: int, offset: int, size: int) -> bytes:
    """Up to `size` bytes at `offset`; fewer only at the end of the file (one `os.pread` may give less than asked)."""
    parts, got = [], 0
    while got < size and (part := os.pread(descriptor, size - got, offset + got)):
        parts.append(part)
        got += len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def members(descriptor: int, size: int, *, where: str, start: int = 0) -> Iterator[Member]:
    """Walk the tar in bytes [start, start + size) of an open file and yield its plain files in order.

    `where` names the shard in errors; a tar inside a tar (ImageNet's training archive) is walked by its `Member`'s
    offset and size. Directories are passed over. Raises `DamageError` (bad checksum, size past the end, no end mark,
    bytes after it) or `UnsafeError` (links, devices, sparse or compressed), with shard and byte.
    """
    reader = _Reader(descriptor, start, size, where)
    offset, extended = start, dict[str, bytes]()
    while True:
        if offset >= reader.end:
            reader.damaged(offset, "the end mark of the archive is missing: cut short")
        header = reader.read(offset, BLOCK)
        if header == _ZEROS:
            if extended:
                reader.damaged(offset, "a name record is followed by the end of the archive")
            return _check_end(reader, offset)
        kind = header[156:157]
        length = _checked_size(reader, offset, header)
        content = offset + BLOCK
        if kind in (b"x", b"g", b"L"):
            _read_record(reader, offset, kind, length, extended)
        else:
            if kind in _REFUSED:
                reader.unsafe(offset, f"{shown(_name_field(header).decode('utf-8', 'replace'))} is {_REFUSED[kind]}")
            if kind not in (b"0", b"\0", b"7", b"5"):
                reader.unsafe(offset, f"member type {kind!r} is unknown")
            length = _number(reader, offset, extended.get("size", b""), length)
            name = _name(reader, offset, header, extended)
            if kind != b"5" and not name.endswith("/"):
                if content + length > reader.end:
                    left = reader.end - content
                    reader.damaged(offset, f"{shown(name)} claims {length} bytes, {left} are left: cut short")
                yield Member(name, content, length)
            extended.clear()
        offset = content + -(-length // BLOCK) * BLOCK


def check_header(header: bytes, size: int) -> bool:
    """Whether `header` (the 512 bytes before a content) is a sound tar header of a plain file of `size` bytes."""
    if len(header) != BLOCK or header[156:157] not in (b"0", b"\0", b"7"):
        return False
    return _octal(header[148:156]) == _checksum(header) and _size_field(header) == size


def _check_end(reader: _Reader, offset: int) -> None:
    """Demand a second zero block, then nothing but zeros; the size is whole blocks."""
    rest = reader.end - offset
    if rest < 2 * BLOCK or rest % BLOCK:
        reader.damaged(offset, f"the end mark takes two blocks of 512 bytes, {rest} bytes are left: cut short")
    if rest > MAX_TRAILING:
        reader.damaged(offset, f"{rest} bytes follow the end mark, at most {MAX_TRAILING} of padding are accepted")
    trailing = pread(reader.descriptor, offset, rest)
    if len(trailing) != rest or trailing.count(0) != rest:
        reader.damaged(offset, "bytes other than zero follow the end mark (an overwritten header, or joined tars)")


def _checked_size(reader: _Reader, offset: int, header: bytes) -> int:
    """The size field of a header whose checksum was found right."""
    if _octal(header[148:156]) != _checksum(header):
        packed = next((name for magic, name in _COMPRESSED.items() if header.startswith(magic)), "")
        if packed and offset == reader.start:
            reader.unsafe(offset, f"this is a {packed} file, not a plain tar")
        reader.damaged(offset, "this is not a sound tar header (its checksum does not match)")
    size = _size_field(header)
    if size is None or size > reader.end - reader.start:
        reader.damaged(offset, f"the header's size field is {'not a number' if size is None else f'{size} bytes'}")
    return size


def _read_record(reader: _Reader, offset: int, kind: bytes, length: int, extended: dict[str, bytes]) -> None:
    """Take in a pax header (``x``, ``g``) or a GNU long name (``L``), which speak about the next member."""
    if length > MAX_NAME_RECORD:
        raise LimitError(
            f"{shown(reader.where)}: byte {offset - reader.start}: a name record of {length} bytes; "
            f"at most {MAX_NAME_RECORD} are read. Write the shard again with shorter names."
        )
    record = reader.read(offset + BLOCK, length)
    if kind == b"L":
        extended["path"] = record.rstrip(b"\0")
        return
    fields = _pax(reader, offset, record)
    if any(key.startswith("GNU.sparse") for key in fields):
        reader.unsafe(offset, "a pax header makes the next member a sparse file")
    if "linkpath" in fields:
        reader.unsafe(offset, "a pax header makes the next member a link")
    if kind == b"x":
        extended.update(fields)
    elif fields.keys() & {"path", "size"}:
        reader.unsafe(offset, "a global pax header changes every member's name or size")


def _pax(reader: _Reader, offset: int, record: bytes) -> dict[str, bytes]:
    """The fields ``length key=value\\n`` of a pax record."""
    fields, position = dict[str, bytes](), 0
    while position < len(record):
        digits, space, _ = record[position : position + 12].partition(b" ")
        length = int(digits) if space and digits.isdigit() else 0
        field = record[position + len(digits) + 1 : position + length]
        key, equals, value = field[:-1].partition(b"=")
        if length <= len(digits) + 1 or position + length > len(record) or not equals or field[-1:] != b"\n":
            reader.damaged(offset, "a pax header is malformed")
        fields[key.decode("utf-8", "replace")] = value
        position += length
    return fields


def _name(reader: _Reader, offset: int, header: bytes, extended: dict[str, bytes]) -> str:
    raw = extended.get("path") or _name_field(header)
    try:
        name = raw.decode("utf-8")
    except UnicodeDecodeError:
        reader.damaged(offset, f"the member's name {shown(ascii(raw))} is not UTF-8")
    if not name or "\0" in name:
        reader.damaged(offset, "a member has no name, or one with a NUL in it")
    return name


def _name_field(header: bytes) -> bytes:
    """The name of a header, with ustar's prefix (GNU and v7 headers have other things there)."""
    name, prefix = header[:100].partition(b"\0")[0], header[345:500].partition(b"\0")[0]
    return prefix + b"/" + name if prefix and header[257:263] == b"ustar\0" else name


def _number(reader: _Reader, offset: int, digits: bytes, otherwise: int) -> int:
    if not digits:
        return otherwise
    if not digits.isdigit() or len(digits) > 18:
        reader.damaged(offset, f"a pax header gives the size {shown(ascii(digits))}")
    return int(digits)


def _checksum(header: bytes) -> int:
    """Sum of the header's bytes with its own checksum field taken as eight spaces."""
    return sum(header) - sum(header[148:156]) + 8 * 32


def _size_field(header: bytes) -> int | None:
    """The size in octal, or in GNU's base 256 for 8 GiB and more; None if it is neither."""
    field = header[124:136]
    return int.from_bytes(field[1:], "big") if field[0] == 0x80 else _octal(field)


def _octal(field: bytes) -> int | None:
    digits = field.rstrip(b"\0 ").lstrip(b" ")
    if not digits or digits.strip(b"01234567"):
        return None
    return int(digits, 8)
