"""A bounded cache of remote shards on the local disk, shared by all processes of a machine.

``$DLTH_CACHE`` (or ``~/.cache/dlth``) holds at most ``$DLTH_CACHE_GB`` (200 by default) of shards beside those on their
way; the least recently used go first, and a shard larger than the bound is refused. An entry's name is a hash of
address, stamp and size, so a changed shard is another entry and an old one is never mistaken for it. A shard stands
under its name only when whole: downloaded under a lock into a temporary file, its length and (where declared) digest
compared, synced, renamed. What is handed out is an open descriptor: clearing an entry that a process still reads does
it no harm.

A server that gives neither ETag nor date says nothing of a shard's content, and a copy of the same size may be of other
bytes. There the digest of the content is the stamp: the declared one, or that of the shard fetched anew.

Rejected: fsspec's ``filecache`` (no bound, no check of the length, whole files under their final name while they grow).
"""

import fcntl
import hashlib
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from dlth.data.fetch import blocks
from dlth.data.remote import Facts, facts, is_remote
from dlth.tickets.digits import ascii_only
from dlth.tickets.disk import fresh, open_regular, space_errors
from dlth.tickets.errors import DamageError, InputError, LimitError, MissingFileError, TransferError, shown

_CONTENT = "sha256:"
"""Begins a stamp that is the digest of the content."""


def cache_root(folder: str | os.PathLike[str] | None = None) -> Path:
    """The folder asked for, else ``$DLTH_CACHE``, else ``~/.cache/dlth``; without a home, one in the temporary folder.

    Raises InputError where that temporary folder is another user's.
    """
    if given := folder or os.environ.get("DLTH_CACHE"):
        return Path(given)
    try:
        return Path.home() / ".cache" / "dlth"
    except RuntimeError:  # a container's user, with no $HOME and no entry in passwd
        return _temporary_root()


def _temporary_root() -> Path:
    """A folder of this user alone: in a shared one, others could plant indexes and shards."""
    root = Path(tempfile.gettempdir()) / f"dlth-cache-{os.getuid()}"
    with suppress(FileExistsError):
        root.mkdir(mode=0o700)
    status = root.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise InputError(
            f"this user has no home folder, and {shown(root)} is not this user's alone: set DLTH_CACHE to a folder"
        )
    return root


def cache_limit() -> int:
    """Bytes that remote shards may take: ``$DLTH_CACHE_GB`` times 10^9. Raises InputError if that is no number."""
    text = os.environ.get("DLTH_CACHE_GB") or "200"
    try:
        limit = int(float(ascii_only(text)) * 1e9)
    except (ValueError, OverflowError):
        raise InputError(f"DLTH_CACHE_GB must be a number of gigabytes, got {shown(text)!r}") from None
    return limit


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on `path`; the kernel releases it when the process dies. No lock on a read-only disk."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "ab")  # noqa: SIM115 (closed below: the except must not cover the body)
    except OSError:
        yield
        return
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def open_shard(url: str, known: Facts, root: Path, sha256: str = "") -> int:
    """A descriptor for reading a shard by position; remote ones are fetched into the cache at `root` first.

    `known` is what `facts` told when the index was made: a shard that has changed since is a DamageError, not other
    images. `sha256` (hexadecimal) is compared when a remote shard is fetched. Close the descriptor with `os.close`.
    """
    if is_remote(url):
        return _open_cached(url, known, root, sha256)
    descriptor = open_regular(url)
    status = os.fstat(descriptor)
    found = Facts(status.st_size, str(status.st_mtime_ns))
    if found != known:
        os.close(descriptor)
        raise _changed(url, known, found)
    return descriptor


def _changed(url: str, known: Facts, found: Facts) -> DamageError:
    return DamageError(
        f"{shown(url)} changed after its index was made: it had {known.size} bytes and stamp {shown(known.stamp)}, "
        f"it has {found.size} and {shown(found.stamp)}. Start again: the index will be made anew.",
        shard=url,
    )


def stamped(known: Facts, sha256: str) -> Facts:
    """What `facts` told, with the declared digest as stamp where a server gives none; without both it stays empty.

    An empty stamp tells nothing: then a copy in the cache may be of other bytes, and `refetch` alone can say.
    """
    return known if known.stamp or not sha256 else Facts(known.size, _CONTENT + sha256)


def is_content(known: Facts) -> bool:
    """Whether the stamp is the digest of the content."""
    return known.stamp.startswith(_CONTENT)


def refetch(url: str, known: Facts, root: Path, sha256: str = "") -> Facts:
    """Fetch a shard, whatever the cache holds, and keep it there; what `open_shard` then finds it by.

    Where the server gives no stamp, that of the result is the content's own digest. A local shard is left where it is.
    """
    if not is_remote(url):
        return known
    name = _entry(f"{url} anew", known)
    with locked(root / "locks" / name):
        found, descriptor = _fetch(url, known, root, sha256, name)
    os.close(descriptor)
    return found


def _open_cached(url: str, known: Facts, root: Path, sha256: str) -> int:
    name = _entry(url, known)
    path = root / "shards" / f"{name}.tar"
    with locked(root / "locks" / name):
        with suppress(MissingFileError):
            descriptor = open_regular(path)
            if os.fstat(descriptor).st_size == known.size:
                os.utime(path)
                return descriptor
            os.close(descriptor)
        return _fetch(url, known, root, sha256, name)[1]


def _entry(url: str, known: Facts) -> str:
    """The name of a shard's copy."""
    return hashlib.sha256(f"{url}\n{known.stamp}\n{known.size}".encode()).hexdigest()[:40]


def _fetch(url: str, known: Facts, root: Path, sha256: str, lock: str) -> tuple[Facts, int]:
    """Fetch a shard into its place, under the lock of that name: what it is known by from now on, and a descriptor."""
    folder = root / "shards"
    folder.mkdir(parents=True, exist_ok=True)
    _make_room(folder, known.size, url)
    part = folder / f"{lock}.part"
    try:
        with space_errors(folder, known.size), fresh(part) as file:
            found = _download(url, known, file, sha256)
            file.flush()
            os.fsync(file.fileno())
        descriptor = open_regular(part)
        os.replace(part, folder / f"{_entry(url, found)}.tar")
    finally:
        part.unlink(missing_ok=True)
    _make_room(folder, 0, url)  # again, as others may have come at the same time
    return found, descriptor


def _make_room(folder: Path, needed: int, url: str) -> None:
    """Remove what a kill left over, and the least recently used shards until `needed` bytes fit under the bound."""
    limit = cache_limit()
    if needed > limit:
        raise LimitError(f"{shown(url)} has {needed} bytes, the cache may hold {limit}. Set DLTH_CACHE_GB higher.")
    entries = []
    for path in folder.iterdir():
        with suppress(FileNotFoundError):  # another process makes room too
            status = path.stat()
            if path.suffix == ".tar":
                entries.append((status.st_mtime_ns, status.st_size, path))
            elif _abandoned(folder.parent / "locks" / path.stem):
                path.unlink()
    total = needed + sum(size for _, size, _ in entries)
    for _, size, path in sorted(entries):
        if total <= limit:
            return
        path.unlink(missing_ok=True)
        total -= size


def _abandoned(lock: Path) -> bool:
    """Whether nobody downloads under this lock."""
    with open(lock, "ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


def _download(url: str, known: Facts, file: BinaryIO, sha256: str) -> Facts:
    """Copy a remote shard block by block; then compare digest and stamp. What it is known by, with a stamp."""
    digest = hashlib.sha256()
    try:
        for block in blocks(url, 0, known.size):
            file.write(block)
            digest.update(block)
    except TransferError as error:
        if isinstance(error.__cause__, TimeoutError):  # a server that stalls says nothing of the shard
            raise
        raise DamageError(str(error), shard=url) from error
    if sha256 and digest.hexdigest() != sha256:
        raise DamageError(
            f"{shown(url)}: sha256 {digest.hexdigest()}, declared is {shown(sha256)}. Ask whoever made it.",
            shard=url,
        )
    found = facts(url)
    if not found.stamp:
        found = Facts(found.size, _CONTENT + digest.hexdigest())
    if found != (known if known.stamp else Facts(known.size, found.stamp)):
        raise _changed(url, known, found)
    return found
