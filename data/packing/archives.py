"""Where every file of a folder or an archive lies: path, byte offset, size. Nothing is extracted.

A seeded shuffle needs any image at any time. ImageNet's training archive is a tar of tars, and neither level is
compressed, so every image is a run of bytes of the outer file: one pass over the headers finds them all (1.28 million
headers, not 140 GB), and shards are then written by positional reads. A gzip archive has no such offsets; it is
decompressed once into a spool file, for which the space is watched.

Archives come from outside: `dlth.data.shards.tar` walks them (checksums, no links, bounded), and a member's name is
only ever text, never a path that is opened.
"""

import gzip
import hashlib
import os
import shutil
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from dlth.data.packing.imagenet import WNID
from dlth.data.shards.tar import members
from dlth.tickets.errors import DamageError, InputError, LimitError, SpaceError, UnsafeError, shown
from dlth.tickets.store.disk import fresh, open_regular

_GZIP = b"\x1f\x8b"
_CHUNK = 16 * 1024 * 1024
RESERVE = 256 * 1024 * 1024  # bytes that stay free on the disk
_SWELL, _SWELL_BYTES = 20, 256 * 1024 * 1024
"""Times its gzip, and bytes beyond that, that a tar may have: icons of 300 bytes are five times, zeros a thousand."""


class Located(NamedTuple):
    """A file's bytes: in file `file` from `offset` on; `folders` and `name` are its place inside the source, `archive`
    the one that it stands in, if in any (`file` is its decompressed copy where that is gzip).
    """

    folders: tuple[str, ...]
    name: str
    file: str
    offset: int
    size: int
    archive: str = ""

    @property
    def place(self) -> str:
        """What a message calls it."""
        inner = "/".join((*self.folders, self.name))
        return f"{self.archive}: {inner}" if self.archive else self.file


def folder_files(root: Path) -> Iterator[Located]:
    """Every file below a folder, sorted by name; class archives (``n01440764.tar``) at its top count as class folders.

    Links to files and folders are followed, since subsets are often made of them; a loop is refused.
    """
    yield from _below(root, (), frozenset())


def archive_files(path: Path, spool: Path) -> Iterator[Located]:
    """Every file in a tar, and in the class archives inside it; a gzip one is decompressed into the folder `spool`."""
    with os.fdopen(open_regular(path), "rb") as file:
        packed = file.read(2) == _GZIP
    yield from _in_tar(_decompressed(path, spool) if packed else path, str(path), ())


def discard_spools(spool: Path) -> None:
    """Remove what was decompressed into the folder `spool`."""
    for path in spool.glob("*.spool"):
        path.unlink(missing_ok=True)


def _below(folder: Path, folders: tuple[str, ...], above: frozenset[tuple[int, int]]) -> Iterator[Located]:
    status = folder.stat()
    here = (status.st_dev, status.st_ino)
    if here in above:
        raise UnsafeError(f"{shown(folder)} is a link to a folder above itself: remove it")
    with os.scandir(folder) as entries:
        ordered = sorted(entries, key=lambda entry: entry.name)
    for entry in ordered:
        if entry.is_dir():
            yield from _below(Path(entry.path), (*folders, entry.name), above | {here})
        elif entry.is_file():
            if not folders and ".tar" in Path(entry.name).suffixes:
                yield from _in_tar(Path(entry.path), entry.path, (_class_archive(entry.name, str(folder)),))
            else:
                yield Located(folders, entry.name, entry.path, 0, entry.stat().st_size)


def _in_tar(path: Path, where: str, folders: tuple[str, ...]) -> Iterator[Located]:
    """Files of a tar with one level of tars in it."""
    file = str(path)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        for outer in members(descriptor, os.fstat(descriptor).st_size, where=where):
            place = (*folders, *_parts(outer.name, where))
            if not outer.name.endswith(".tar"):
                yield Located(place[:-1], place[-1], file, outer.offset, outer.size, where)
                continue
            inside, inner_where = (*place[:-1], _class_archive(place[-1], where)), f"{where}: {outer.name}"
            for inner in members(descriptor, outer.size, where=inner_where, start=outer.offset):
                parts = _parts(inner.name, inner_where)
                yield Located((*inside, *parts[:-1]), parts[-1], file, inner.offset, inner.size, where)
    finally:
        os.close(descriptor)


def _parts(name: str, where: str) -> tuple[str, ...]:
    parts = tuple(part for part in name.split("/") if part not in ("", "."))
    if not parts or ".." in parts:
        raise UnsafeError(f"{shown(where)}: the member {shown(name)} points out of the archive: write it again without")
    return parts


def _class_archive(name: str, where: str) -> str:
    """The class that an archive inside a folder or an archive stands for."""
    stem = name.removesuffix(".tar")
    if not WNID.fullmatch(stem):
        raise InputError(
            f"{shown(where)}: {shown(name)} is an archive that is not named as a class of ImageNet's (n01440764.tar). "
            f"To pack archives, name them: 'FOLDER/{shown(name)}', or with a glob, 'FOLDER/train_images_*.tar.gz'."
        )
    return stem


def _decompressed(path: Path, spool: Path) -> Path:
    """The plain tar of a gzip one, in `spool`; one that an earlier run finished is used again."""
    status = path.stat()
    identity = f"{path.resolve()}\0{status.st_size}\0{status.st_mtime_ns}"
    plain = spool / f"{hashlib.sha256(identity.encode('utf-8', 'surrogateescape')).hexdigest()[:16]}.spool"
    if plain.exists():
        return plain
    spool.mkdir(parents=True, exist_ok=True)
    partial = plain.with_suffix(".partial")
    try:
        with gzip.open(path) as source, fresh(partial) as target:
            while chunk := source.read(_CHUNK):
                # images hardly compress: an archive that swells so, or beyond the disk, is a mistake or an attack
                if target.tell() + len(chunk) > _SWELL * status.st_size + _SWELL_BYTES:
                    raise LimitError(
                        f"{shown(path)} has {status.st_size} bytes and unpacks to more than {target.tell()}: no "
                        "archive of images does. If this one is right, decompress it (gunzip) and give the .tar."
                    )
                if shutil.disk_usage(spool).free < RESERVE + len(chunk):
                    raise SpaceError(
                        f"{shown(path)}: no space left in {shown(spool)} after {target.tell()} bytes. Only a plain tar "
                        "can be packed where it lies: decompress it (gunzip) where there is space and give the .tar."
                    )
                target.write(chunk)
        partial.replace(plain)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DamageError(f"{shown(path)} cannot be decompressed: {shown(error)}. Fetch it again.") from error
    finally:
        partial.unlink(missing_ok=True)
    return plain
