"""A bounded cache on the local disk, shared by all processes of a machine: its rules, and the shards in it.

``$DLTH_CACHE`` (or ``~/.cache/dlth``) holds at most ``$DLTH_CACHE_GB`` (200 by default) of shards, and as much of
ticket files (`ticket_cache.py`), beside those on their way. The rules are the same for both: an entry stands under its
name only when whole; what is unfinished ends in ``.part``, and goes with the next fetch when its maker is gone; the
least recently used entries go first, but none that somebody holds; what is larger than the bound is refused. The lock
of an entry bears the entry's name, in ``locks/``. On a read-only disk nothing is locked, as nothing changes there.

A shard's name is a hash of address, stamp and size, so a changed shard is another entry and an old one is never
mistaken for it. What is handed out is an open descriptor: clearing an entry that a process still reads does it no harm.

A server that gives neither ETag nor date says nothing of a shard's content, and a copy of the same size may be of other
bytes. There the digest of the content is the stamp: the declared one, or that of the shard fetched anew.

Rejected: fsspec's ``filecache`` (no bound, no check of the length, whole files under their final name while they grow).
"""

import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dlth.data.remote.addresses import is_remote
from dlth.data.remote.fetch import discard, fetch
from dlth.data.remote.storage import Facts, facts
from dlth.tickets.ascii_digits import ascii_only
from dlth.tickets.errors import DamageError, InputError, LimitError, MissingFileError, TransferError, shown
from dlth.tickets.store.disk import fresh, open_regular, space_errors
from dlth.tickets.store.locks import locked

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
    """Bytes that the cache's shards, and its ticket files, may take: ``$DLTH_CACHE_GB`` times 10^9.

    Raises InputError if that is no number.
    """
    text = os.environ.get("DLTH_CACHE_GB") or "200"
    try:
        limit = int(float(ascii_only(text)) * 1e9)
    except (ValueError, OverflowError):
        raise InputError(f"DLTH_CACHE_GB must be a number of gigabytes, got {shown(text)!r}") from None
    return limit


@contextmanager
def holding(entry: Path, shared: bool = False) -> Iterator[None]:
    """Hold the lock of an entry of the cache, alone or `shared`; none where nothing can be written."""
    lock = _lock_of(entry)
    with suppress(OSError):
        lock.parent.mkdir(parents=True, exist_ok=True)
    with locked(lock, wait=True, shared=shared, optional=True):
        yield


def used(entry: Path) -> None:
    """Count an entry as used now; a cache on a read-only disk is never cleared."""
    with suppress(OSError):
        os.utime(entry)


def make_room(folder: Path, needed: int, what: str) -> None:
    """Remove what a kill left in a folder of the cache, and the least recently used that nobody holds, until `needed`
    bytes more fit under the bound.

    Raises LimitError, naming `what`, where they never do.
    """
    limit = cache_limit()
    if needed > limit:
        raise LimitError(f"{shown(what)} has {needed} bytes, the cache may hold {limit}. Set DLTH_CACHE_GB higher.")
    folder.mkdir(parents=True, exist_ok=True)
    entries = []
    for path in folder.iterdir():
        with suppress(FileNotFoundError):  # another process makes room too
            if path.suffix == ".part":
                _remove(path)
            elif path.suffix != ".json":
                entries.append((path.stat().st_mtime_ns, path, _size(path)))
    total = needed + sum(size for _, _, size in entries)
    for _, path, size in sorted(entries):
        if total <= limit:
            return
        if _remove(path):
            total -= size


def _lock_of(entry: Path) -> Path:
    return entry.parents[1] / "locks" / entry.name


def _remove(entry: Path) -> bool:
    """Remove an entry, with its lock, unless somebody holds it or it is another user's; whether it is gone."""
    with suppress(OSError, InputError), locked(_lock_of(entry)) as mine:
        if mine:
            shutil.rmtree(entry, ignore_errors=True) if entry.is_dir() else discard(entry)
            _lock_of(entry).unlink(missing_ok=True)
    return not os.path.lexists(entry)


def _size(entry: Path) -> int:
    """Bytes of a file or a folder."""
    return sum(file.stat().st_size for file in (entry, *entry.rglob("*")) if file.is_file())


def open_shard(url: str, known: Facts, root: Path, sha256: str = "") -> int:
    """A descriptor for reading a shard by position; remote ones are fetched into the cache at `root` first.

    `known` is what `facts` told when the index was made: a shard that has changed since is a DamageError, not other
    images. `sha256` (hexadecimal) is compared when a remote shard is fetched. Close the descriptor with `os.close`.
    """
    if is_remote(url):
        return _open_cached(url, known, root, sha256)
    descriptor = open_regular(url)
    status = os.fstat(descriptor)
    now = Facts(status.st_size, str(status.st_mtime_ns))
    if now != known:
        os.close(descriptor)
        raise _changed(url, known, now)
    return descriptor


def _changed(url: str, known: Facts, now: Facts) -> DamageError:
    return DamageError(
        f"{shown(url)} changed after its index was made: it had {known.size} bytes and stamp {shown(known.stamp)}, "
        f"it has {now.size} and {shown(now.stamp)}. Start again: the index will be made anew.",
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
    part = _part(root, f"{url} anew", known)
    with holding(part):
        now, descriptor = _fetch(url, known, part, sha256)
    os.close(descriptor)
    return now


def _open_cached(url: str, known: Facts, root: Path, sha256: str) -> int:
    part = _part(root, url, known)
    path = part.with_suffix(".tar")
    with holding(part):
        with suppress(MissingFileError):
            descriptor = open_regular(path)
            if os.fstat(descriptor).st_size == known.size:
                used(path)
                return descriptor
            os.close(descriptor)
        return _fetch(url, known, part, sha256)[1]


def _part(root: Path, url: str, known: Facts) -> Path:
    """Where a shard is while it is fetched; its copy ends in ``.tar``."""
    name = hashlib.sha256(f"{url}\n{known.stamp}\n{known.size}".encode()).hexdigest()[:40]
    return root / "shards" / f"{name}.part"


def _fetch(url: str, known: Facts, part: Path, sha256: str) -> tuple[Facts, int]:
    """Fetch a shard into its place by way of `part`, which the caller holds: what it is known by, and a descriptor."""
    folder = part.parent
    make_room(folder, known.size, url)
    try:
        with space_errors(folder, known.size), fresh(part) as file:
            fetch(url, file, part, known.size)
        now = _checked(url, known, part, sha256)
        descriptor = open_regular(part)
        os.replace(part, _part(folder.parent, url, now).with_suffix(".tar"))
    except TransferError as error:
        if isinstance(error.__cause__, TimeoutError):  # a server that stalls says nothing of the shard
            raise
        raise DamageError(str(error), shard=url) from error
    finally:
        part.unlink(missing_ok=True)
    make_room(folder, 0, url)  # again, as others may have come at the same time
    return now, descriptor


def _checked(url: str, known: Facts, part: Path, sha256: str) -> Facts:
    """What a fetched shard is known by, with a stamp, after digest and facts were compared."""
    now, digest = facts(url), ""
    if sha256 or not now.stamp:
        with open(part, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    if sha256 and digest != sha256:
        raise DamageError(
            f"{shown(url)}: sha256 {digest}, declared is {shown(sha256)}. Ask whoever made it.", shard=url
        )
    if not now.stamp:
        now = Facts(now.size, _CONTENT + digest)
    if now != (known if known.stamp else Facts(known.size, now.stamp)):
        raise _changed(url, known, now)
    if (size := part.stat().st_size) != known.size:
        raise DamageError(f"{shown(url)}: {size:,} of {known.size:,} bytes are in the cache: run again", shard=url)
    return now
