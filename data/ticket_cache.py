"""Ticket files by address: `local_tickets` gives the folder of any spec, from a bounded cache of checked files.

`$DLTH_CACHE/tickets` (see `cache.py`) holds one folder per identity, unpacked and checked when it came, so a machine
fetches and checks a file once, however many ranks, workers and runs read it and under how many addresses. Beside them
stand notes, one per address: which object (size, stamp) was found to have which identity. A spec with an identity needs
no connection once the file is there; without one the server is asked whether the object is still the same.

The folders together take at most `$DLTH_CACHE_GB`; the least recently used go first. A process holds a shared lock on
what it was given until it ends, and what is locked is never removed.
"""

import fcntl
import hashlib
import os
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from dlth.data.cache import cache_limit, cache_root
from dlth.data.cache import locked as exclusive
from dlth.data.remote import Facts, facts, is_remote
from dlth.data.share import check_identity, check_packed, pinned
from dlth.data.transfer import discard, download
from dlth.tickets.archive import Archive, unpack
from dlth.tickets.disk import read_file, reading, write_files
from dlth.tickets.errors import DlthError, LimitError, shown
from dlth.tickets.jsontext import canonical, parse
from dlth.tickets.progress import Progress
from dlth.tickets.store import TicketStore

_held: dict[str, BinaryIO] = {}
"""Shared locks of this process, by identity: open files, so the kernel drops them when the process ends."""


def local_tickets(spec: str, progress: Progress | None = None) -> Path:
    """The folder of a ticket file: `spec` is a folder, a packed file, or an address of one, and may end in #identity=….

    `progress(done, total)` counts bytes where something must be fetched. Raises MismatchError (another identity than
    asked for), what `pull` raises, and LimitError (larger than the cache may be).
    """
    address, wanted = pinned(spec)
    local = Path(address)
    with reading(local):
        packed = is_remote(address) or local.is_file()
    if not packed:
        if wanted:
            check_identity(TicketStore(local).identity, wanted, local.name)
        return local
    cache = _Cache(cache_root() / "tickets")
    if wanted and (found := cache.find(wanted)):
        return found
    if not is_remote(address):
        return cache.take(local, wanted)
    check_packed(address)
    return cache.fetch(address, wanted, progress)


@dataclass(frozen=True)
class _Cache:
    root: Path

    def find(self, identity: str) -> Path | None:
        """The folder of an identity, from now on held by this process; None where there is no sound one."""
        path = self.root / identity
        if not path.is_dir():
            return None
        self._hold(identity)
        try:
            if TicketStore(path).identity == identity:
                with suppress(OSError):  # a cache on a read-only disk is never cleared
                    os.utime(path)
                return path
        except DlthError:  # a disk full or a power cut in the middle: fetch it again
            pass
        self._let_go(identity)
        return None

    def fetch(self, url: str, wanted: str, progress: Progress | None) -> Path:
        """Fetch what `url` holds, unless a note says that it is here; one process at a time."""
        name = hashlib.sha256(url.encode()).hexdigest()[:40]
        with exclusive(self._lock(name)):
            known = facts(url)
            if found := self._noted(name, known):
                check_identity(found.name, wanted, url)
                return found
            self._make_room(known.size, url)
            part = self.root / f"{name}.download"
            download(url, part, progress, known)
            try:
                path = self.take(part, wanted)
            finally:
                discard(part)
            self._note(name, url, known, path.name)
            return path

    def take(self, packed: Path, wanted: str) -> Path:
        """Check and unpack a packed file into the cache."""
        with Archive(packed) as archive:
            identity = archive.identity
            check_identity(identity, wanted, packed.name)
            with exclusive(self._lock(f"{identity}.taking")):
                if found := self.find(identity):
                    return found
                self._make_room(archive.size, packed.name)
                self._hold(identity)
                shutil.rmtree(self.root / identity, ignore_errors=True)
                unpack(archive, self.root / identity)
        return self.root / identity

    def _hold(self, identity: str) -> None:
        if identity not in _held:
            self.root.mkdir(parents=True, exist_ok=True)
            with suppress(OSError):  # a read-only cache
                file = open(self._lock(identity), "ab")  # noqa: SIM115 (held until the process ends)
                fcntl.flock(file, fcntl.LOCK_SH)
                _held[identity] = file

    def _let_go(self, identity: str) -> None:
        if identity in _held:
            _held.pop(identity).close()

    def _lock(self, name: str) -> Path:
        folder = self.root.parent / "locks"
        with suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
        return folder / name

    def _note_file(self, name: str) -> Path:
        return self.root / f"{name}.json"

    def _note(self, name: str, url: str, known: Facts, identity: str) -> None:
        note = {"url": url, "size": known.size, "stamp": known.stamp, "identity": identity}
        write_files({self._note_file(name): canonical(note)}, self.root / f"{name}.json.new")

    def _noted(self, name: str, known: Facts) -> Path | None:
        """The folder of what this address was found to be, if the object is still the same."""
        try:
            note = parse(read_file(self._note_file(name), 16_384, "note"), "note")
            same = known.stamp and (note["size"], note["stamp"]) == (known.size, known.stamp)
            return self.find(note["identity"]) if same else None
        except (DlthError, KeyError, TypeError):
            return None

    def _make_room(self, needed: int, name: str) -> None:
        """Remove what was least recently used and nobody holds, until `needed` bytes more fit under the bound."""
        limit = cache_limit()
        if needed > limit:
            raise LimitError(f"{shown(name)} has {needed} bytes, the cache may hold {limit}. Set DLTH_CACHE_GB higher.")
        self.root.mkdir(parents=True, exist_ok=True)
        entries = []
        for path in self.root.iterdir():
            with suppress(FileNotFoundError):  # another process makes room too
                if path.is_dir() or path.suffix == ".download":
                    entries.append((path.stat().st_mtime_ns, path, _size(path)))
        total = needed + sum(size for _, _, size in entries)
        for _, path, size in sorted(entries):
            if total <= limit:
                return
            if self._remove(path):
                total -= size

    def _remove(self, path: Path) -> bool:
        """Remove a folder, or what is left of a transfer, unless a process holds it."""
        with open(self._lock(path.name.strip(".").partition(".")[0]), "ab") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else discard(path)
            return True


def _size(path: Path) -> int:
    """Bytes of a file or a folder."""
    return sum(file.stat().st_size for file in (path, *path.rglob("*")) if file.is_file())
