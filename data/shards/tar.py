"""A strict walk over a tar's headers: where every plain file lies, without reading what is in it.

Shards come from strangers, and Python's `tarfile` treats a damaged header as the end of the archive: one flipped bit
and the rest of the samples are gone without an error (997 of 1,000 flips, measured); a 512-byte file can hang it. So
dlth walks the headers itself: plain ustar, pax (``path``, ``size``) and GNU long names, every checksum compared, every
size checked against the bytes that are left, the end-of-archive mark required. Links, devices, sparse and compressed
archives are refused, since none of them is needed to hold images; and so is, by name, whatever two tar readers could
see differently (`tar_header.py`, `pax.py`): what is indexed here is what any other reader finds. Every step moves
forward by at least one block and every read is bounded, so the walk ends on any input.

What the format cannot tell: a flipped bit inside a file's content (caught later by the content hash of the image or
the shard's digest) and inside a pax or long-name record, which has no checksum (caught when the names of image and
label part ways).
"""

import os
from collections.abc import Iterator
from typing import NamedTuple, NoReturn

from dlth.data.shards.pax import pax_fields, refused
from dlth.data.shards.tar_header import BLOCK, OCTAL_LIMIT, disputed, is_old_folder, is_sound, name_field, size_field
from dlth.tickets.errors import DamageError, LimitError, UnsafeError, shown

MAX_NAME_RECORD = 64 * 1024  # bytes of one pax or long-name record
MAX_TRAILING = 16 * 1024 * 1024  # zero padding after the end mark; GNU tar's largest usual record is far below
_WINDOW = 4096  # a label, its header and the next image's header usually fit: one system call for three reads
_ZEROS = bytes(BLOCK)
_MAX_SIZE_DIGITS = 18  # of a size in pax: below 2**63
_PLAIN = (b"0", b"\0", b"7")  # "7", contiguous, is a plain file to every reader
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


class Record(NamedTuple):
    """What stands before a member: its type (``x``, ``g``, ``L``), and what it says of that member alone."""

    kind: bytes
    fields: dict[str, bytes]


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

    def disputed(self, offset: int, what: str) -> NoReturn:
        raise UnsafeError(
            f"{shown(self.where)}: byte {offset - self.start}: {what}: tar readers differ on it, and some would see "
            "other samples. Write the shard again (with GNU tar or Python's tarfile, or dlth pack)."
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
    bytes after it) or `UnsafeError` (links, devices, sparse or compressed; what tar readers do not read alike), with
    shard and byte.
    """
    reader = _Reader(descriptor, start, size, where)
    offset, record = start, None
    while True:
        if offset >= reader.end:
            reader.damaged(offset, "the end mark of the archive is missing: cut short")
        header = reader.read(offset, BLOCK)
        if header == _ZEROS:
            if record is not None:
                reader.damaged(offset, "a name record is followed by the end of the archive")
            return _check_end(reader, offset)
        kind, length = header[156:157], _checked_size(reader, offset, header)
        if kind in (b"x", b"g", b"L"):
            record = _read_record(reader, offset, kind, length, record)
        else:
            member, is_folder = _member(reader, offset, header, length, record)
            if not is_folder:
                yield member
            length, record = member.size, None
        offset += BLOCK + _padded(length)


def check_header(header: bytes, size: int) -> bool:
    """Whether `header` (the 512 bytes before a content) is a sound tar header of a plain file of `size` bytes."""
    return (
        len(header) == BLOCK
        and header[156:157] in _PLAIN
        and is_sound(header)
        and size_field(header) == size
        and not disputed(header)
    )


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
    """The size field of a header that is sound and that all readers understand alike."""
    if not is_sound(header):
        packed = next((name for magic, name in _COMPRESSED.items() if header.startswith(magic)), "")
        if packed and offset == reader.start:
            reader.unsafe(offset, f"this is a {packed} file, not a plain tar")
        reader.damaged(offset, "this is not a sound tar header (its checksum does not match)")
    size = size_field(header)
    if size is None or size > reader.end - reader.start:
        reader.damaged(offset, f"the header's size field is {'not a number' if size is None else f'{size} bytes'}")
    if odd := disputed(header):
        reader.disputed(offset, odd)
    return size


def _read_record(reader: _Reader, offset: int, kind: bytes, length: int, before: Record | None) -> Record:
    """Take in a pax header (``x``, ``g``) or a GNU long name (``L``), which speak about the next member.

    `before`: the record right before it, which may only be a global one: which of two is followed differs.
    """
    if before is not None and before.kind != b"g":
        reader.disputed(offset, "two name records stand before one member")
    if length > MAX_NAME_RECORD:
        raise LimitError(
            f"{shown(reader.where)}: byte {offset - reader.start}: a name record of {length} bytes; "
            f"at most {MAX_NAME_RECORD} are read. Write the shard again with shorter names."
        )
    padded = reader.read(offset + BLOCK, _padded(length))
    record = padded[:length]
    if padded.count(0, length) != len(padded) - length:
        reader.disputed(offset, "bytes other than zero follow a name record in its block")
    if kind == b"L":
        return Record(kind, {"path": record.rstrip(b"\0")})
    fields = pax_fields(record)
    if fields is None:
        reader.damaged(offset, "a pax header is malformed")
    if odd := refused(fields, kind == b"g"):
        reader.unsafe(offset, shown(odd))
    return Record(kind, {} if kind == b"g" else fields)


def _member(reader: _Reader, offset: int, header: bytes, length: int, record: Record | None) -> tuple[Member, bool]:
    """The member of a header and of the record before it, and whether it is a folder (which has no content)."""
    kind, fields = header[156:157], record.fields if record else {}
    if kind in _REFUSED:
        reader.unsafe(offset, f"{shown(name_field(header).decode('utf-8', 'replace'))} is {_REFUSED[kind]}")
    if kind not in _PLAIN and kind != b"5":
        reader.unsafe(offset, f"member type {kind!r} is unknown")
    name = _name(reader, offset, fields.get("path", name_field(header)))
    size = _size(reader, offset, name, length, fields.get("size"))
    is_folder = kind == b"5" or is_old_folder(header)
    if kind != b"5" and name.endswith("/") != is_folder:
        reader.disputed(offset, f"{shown(name)} is a file to some and a folder to others")
    if is_folder and size:
        reader.disputed(offset, f"{shown(name)} is a folder of {size} bytes, which hide what follows from some")
    if offset + BLOCK + size > reader.end:
        left = reader.end - offset - BLOCK
        reader.damaged(offset, f"{shown(name)} claims {size} bytes, {left} are left: cut short")
    return Member(name, offset + BLOCK, size), is_folder


def _name(reader: _Reader, offset: int, raw: bytes) -> str:
    try:
        name = raw.decode("utf-8")
    except UnicodeDecodeError:
        reader.damaged(offset, f"the member's name {shown(ascii(raw))} is not UTF-8")
    if not name or "\0" in name:
        reader.damaged(offset, "a member has no name, or one with a NUL in it")
    return name


def _size(reader: _Reader, offset: int, name: str, length: int, by_pax: bytes | None) -> int:
    """The size that pax gives, which must be the header's; from 8 GiB on writers leave that at zero."""
    if by_pax is None:
        return length
    if not by_pax.isdigit() or len(by_pax) > _MAX_SIZE_DIGITS:
        reader.damaged(offset, f"a pax header gives the size {shown(ascii(by_pax))}")
    size = int(by_pax)
    if size != length and not (length == 0 and size >= OCTAL_LIMIT):
        reader.disputed(offset, f"{shown(name)} has {size} bytes by its pax header and {length} by its own")
    return size


def _padded(length: int) -> int:
    """Bytes of the blocks that hold a content."""
    return -(-length // BLOCK) * BLOCK
