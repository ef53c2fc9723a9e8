"""A ticket file, or one of token labels, as one file to send: a zip whose members are stored as they are.

The zip's bytes follow from the members alone (sorted names, one fixed date, no compression: chunks are compressed
already; zip64 where counts or offsets need it), so every maker gets the same zip, and plain zarr (`ZipStore`) and any
unzip program read it. It also lets the reader be strict: from the names, sizes and checksums in the directory at the
end it makes the only bytes that the rest can be, and compares. Hidden, doubled, overlapping, compressed or encrypted
members, links, comments and bytes in front have no place to be. Rejected: Python's zipfile for reading, which takes all
of these; tar, which no zarr reader opens and which has no directory; compressing again, which saves 3 %.
"""

import os
import re
import struct
import tempfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from dlth.tickets.callbacks import Progress
from dlth.tickets.errors import DamageError, LimitError, MismatchError, UnsafeError, shown
from dlth.tickets.format.layout import (
    MANIFEST_FILE,
    MANIFEST_META_FILE,
    MAX_CHUNK_BYTES,
    MAX_MANIFEST_BYTES,
    MAX_SHARDS,
    identity_of,
    manifest_meta_text,
)
from dlth.tickets.format.manifest import FileDigest, Manifest, check_digest, digest_of
from dlth.tickets.store.disk import (
    fresh,
    new_file,
    new_place,
    open_regular,
    refuse_existing,
    space_errors,
    sync,
    user_path,
)
from dlth.tickets.store.kinds import open_file, opened
from dlth.tickets.store.label_store import LabelStore
from dlth.tickets.store.stored_file import StoredFile
from dlth.tickets.store.ticket_store import TicketStore

_LOCAL = struct.Struct("<4s5H3L2H")
_ENTRY = struct.Struct("<4s6H3L5H2L")
_END = struct.Struct("<4s4H2LH")
_END64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR = struct.Struct("<4sLQL")
_DATE = 0x21  # 1 January 1980
_PLAIN, _BIG, _UNIX, _REGULAR = 20, 45, 3 << 8, 0o100644 << 16
_MAX16, _MAX32 = 0xFFFF, 0xFFFFFFFF
_MAX_MEMBERS = 4 * MAX_SHARDS + 16
_MAX_DIRECTORY = 64 * 2**20
_MAX_MEMBER = max(MAX_MANIFEST_BYTES, 2 * MAX_CHUNK_BYTES)
_NAME = re.compile(r"(?:[a-z]{1,16}/)?(?:zarr\.json|c(?:\.[0-9]{1,6}){1,5})")


@dataclass(frozen=True, slots=True)
class _Member:
    name: str
    size: int
    crc: int

    @property
    def header(self) -> bytes:
        """What stands before the member's bytes."""
        name = self.name.encode()
        fields = (b"PK\3\4", _PLAIN, 0, 0, 0, _DATE, self.crc, self.size, self.size, len(name), 0)
        return _LOCAL.pack(*fields) + name

    def entry(self, offset: int) -> bytes:
        """The member's entry in the directory."""
        name, far = self.name.encode(), offset >= _MAX32
        extra = struct.pack("<2HQ", 1, 8, offset) if far else b""
        needed = _BIG if far else _PLAIN
        sizes = self.crc, self.size, self.size, len(name), len(extra)
        fields = (_UNIX | needed, needed, 0, 0, 0, _DATE, *sizes, 0, 0, 0, _REGULAR, min(offset, _MAX32))
        return _ENTRY.pack(b"PK\1\2", *fields) + name + extra


def _tail(members: Iterable[_Member]) -> tuple[int, bytes]:
    """Where the directory begins, and everything from there to the end of the zip."""
    entries, start = [], 0
    for member in members:
        entries.append(member.entry(start))
        start += len(member.header) + member.size
    count, directory = len(entries), b"".join(entries)
    size = len(directory)
    if count >= _MAX16 or size >= _MAX32 or start >= _MAX32:
        fields = (44, _UNIX | _BIG, _BIG, 0, 0, count, count, size, start)
        directory += _END64.pack(b"PK\6\6", *fields) + _LOCATOR.pack(b"PK\6\7", 0, start + size, 1)
    few = min(count, _MAX16)
    return start, directory + _END.pack(b"PK\5\6", 0, 0, few, few, min(size, _MAX32), min(start, _MAX32), 0)


def pack(store: StoredFile, path: str | os.PathLike[str], progress: Progress | None = None) -> None:
    """Write a ticket file as one zip: the same bytes for the same file. `progress(done, total)` counts its files.

    Raises InputError when something stands at `path`, DamageError when a file's digest is wrong, SpaceError.
    """
    with new_file(path) as file:
        pack_into(file, store, progress)


def pack_into(file: IO[bytes], store: StoredFile, progress: Progress | None = None) -> None:
    """As `pack`, into an open file."""
    write_zip(file, opened(store).raw_files(), progress, store.num_files)


def write_zip(
    file: IO[bytes], contents: Iterable[tuple[str, bytes]], progress: Progress | None = None, total: int = 0
) -> None:
    """Write the zip of (name, bytes), which come sorted by name."""
    members = []
    for name, raw in contents:
        members.append(_Member(name, len(raw), zlib.crc32(raw)))
        file.write(members[-1].header)
        file.write(raw)
        if progress is not None:
            progress(len(members), total)
    file.write(_tail(members)[1])


class Archive:
    """A packed ticket file, its structure and manifest checked: `identity`, `size` in bytes, `num_files`.

    Raises MissingFileError, UnsafeError (not a zip as `pack` makes it), LimitError, DamageError or SchemaError. Nothing
    but the directory and the manifest has been read; `read` checks the digest of what it takes.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = user_path(path)
        self.name = shown(self.path.name)
        self._file = os.fdopen(open_regular(self.path), "rb")
        try:
            self.size = os.fstat(self._file.fileno()).st_size
            members = self._directory()
            self.num_files = len(members)
            self._places: dict[str, tuple[int, _Member]] = {}
            start = 0
            for member in members:
                self._places[member.name] = start, member
                start += len(member.header) + member.size
            self.identity, self._files = self._manifest()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> "Archive":
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def read(self, name: str) -> bytes:
        """The bytes of one file, digest checked."""
        raw = self._raw(name)
        check_digest(raw, self._files[name], name)
        return raw

    def contents(self, progress: Progress | None = None) -> Iterator[tuple[str, bytes]]:
        """Every file's path and bytes, sorted by path, digest checked."""
        for done, name in enumerate(self._places, 1):
            yield name, self.read(name)
            if progress is not None:
                progress(done, self.num_files)

    def _refuse(self, why: str) -> UnsafeError:
        return UnsafeError(f"{self.name} is no packed ticket file: {why}; make one with dlth tickets pack")

    def _take(self, start: int, length: int) -> bytes:
        self._file.seek(start)
        raw = self._file.read(length)
        if len(raw) != length:
            raise DamageError(f"{self.name} ends early: byte {start + length} of {self.size}", file=self.name)
        return raw

    def _directory(self) -> list[_Member]:
        """The members, after the directory was found to be the one that belongs to them."""
        count, size, start = self._end()
        if count > _MAX_MEMBERS or size > _MAX_DIRECTORY:
            raise LimitError(f"{self.name} lists {count} files in {size} bytes, the bounds are {_MAX_MEMBERS} files")
        if start + size > self.size or count * _ENTRY.size > size:
            raise self._refuse("its end and its directory do not fit together (cut off?)")
        members = list(self._entries(self._take(start, size), count))
        names = [member.name for member in members]
        if names != sorted(set(names)):
            raise self._refuse("its files are not sorted, or one stands twice")
        expected, tail = _tail(members)
        if expected != start or start + len(tail) != self.size or self._take(start, len(tail)) != tail:
            raise self._refuse("it is not put together as dlth does (hidden, overlapping or foreign bytes)")
        return members

    def _end(self) -> tuple[int, int, int]:
        """Number of members, size and place of the directory, as the end of the zip says."""
        tail = self._take(max(self.size - 98, 0), min(self.size, 98))
        if len(tail) < _END.size or tail[-_END.size :][:4] != b"PK\5\6":
            raise self._refuse("it does not end as a zip does (cut off?)")
        *_, count, size, start, _ = _END.unpack(tail[-_END.size :])
        if tail[-42:-38] == b"PK\6\7" and len(tail) == 98 and tail[:4] == b"PK\6\6":
            *_, count, size, start = _END64.unpack(tail[: _END64.size])
        return count, size, start

    def _entries(self, directory: bytes, count: int) -> Iterator[_Member]:
        at = 0
        for _ in range(count):
            if at + _ENTRY.size > len(directory):
                raise self._refuse("its directory is cut off")
            fields = _ENTRY.unpack_from(directory, at)
            crc, size, name_length, extra_length = fields[7], fields[9], fields[10], fields[11]
            at += _ENTRY.size
            name = directory[at : at + name_length].decode("latin-1")
            if not _NAME.fullmatch(name):
                raise self._refuse(f"it holds '{shown(name, 80)}'")
            if size > _MAX_MEMBER:
                raise LimitError(f"{self.name}: {name} has {size} bytes, the bound is {_MAX_MEMBER}")
            yield _Member(name, size, crc)
            at += name_length + extra_length

    def _raw(self, name: str) -> bytes:
        start, member = self._places[name]
        raw = self._take(start, len(member.header) + member.size)
        if raw[: len(member.header)] != member.header:
            raise self._refuse(f"what stands before {name} is not its header")
        content = raw[len(member.header) :]
        if zlib.crc32(content) != member.crc:
            raise DamageError(f"{self.name}: {name} is damaged (its crc32 is another); fetch it again", file=name)
        return content

    def _manifest(self) -> tuple[str, dict[str, FileDigest]]:
        """Identity and digests, after the manifest was found to list exactly the members."""
        if not {MANIFEST_FILE, MANIFEST_META_FILE} <= self._places.keys():
            raise self._refuse("it has no manifest")
        text = self._raw(MANIFEST_FILE)
        meta = self._raw(MANIFEST_META_FILE)
        if meta != manifest_meta_text(text):
            raise DamageError(f"{self.name}: {MANIFEST_META_FILE} does not fit {MANIFEST_FILE}", file=MANIFEST_FILE)
        files = {**Manifest.from_text(text).files, MANIFEST_FILE: digest_of(text), MANIFEST_META_FILE: digest_of(meta)}
        sizes = {name: member.size for name, (_, member) in self._places.items()}
        listed = {name: size for name, (size, _) in files.items()}
        if sizes != listed:
            wrong = min(name for name in sizes.keys() | listed.keys() if sizes.get(name) != listed.get(name))
            raise DamageError(f"{self.name}: '{shown(wrong)}' is not as the manifest lists it", file=self.name)
        return identity_of(text), files


def unpack(
    source: Archive | str | os.PathLike[str], path: str | os.PathLike[str], progress: Progress | None = None
) -> TicketStore | LabelStore:
    """Check every byte of a packed ticket file, then write it as a folder at `path` and open it.

    It appears under its name whole or not at all. `progress(done, total)` counts files, each twice (checked, written).
    Raises InputError when something stands at `path`, SpaceError, and what `Archive` and `TicketStore` raise.
    """
    target = new_place(path)
    if not isinstance(source, Archive):
        with Archive(source) as archive:
            return unpack(archive, path, progress)
    total = 2 * source.num_files

    def counted(before: int) -> Progress | None:
        return None if progress is None else lambda done, _: progress(before + done, total)

    for _ in source.contents(counted(0)):
        pass
    with (
        space_errors(target.parent, source.size),
        tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as temporary,
    ):
        root = Path(temporary) / target.name
        _write(root, source.contents(counted(source.num_files)))
        if open_file(root).identity != source.identity:
            raise MismatchError(f"{source.name} changed while it was unpacked")
        refuse_existing(target)
        os.rename(root, target)
    sync(target.parent)
    return open_file(target)


def _write(root: Path, contents: Iterable[tuple[str, bytes]]) -> None:
    """Write files and make them survive a power cut, all at once: an fsync for each takes half a minute in all."""
    root.mkdir()
    for name, raw in contents:
        path = root / name
        path.parent.mkdir(exist_ok=True)
        with fresh(path) as file:
            file.write(raw)
    os.sync()
