"""Ticket files by address: `local_tickets` gives the folder of any spec, from a bounded cache of checked files.

`$DLTH_CACHE/tickets` (see `cache.py`) holds one folder per identity, unpacked and checked when it came, so a machine
fetches and checks a file once, however many ranks, workers and runs read it and under how many addresses. Beside them
stand notes, one per address: which object (size, stamp) was found to have which identity. A spec with an identity needs
no connection once the file is there; without one the server is asked whether the object is still the same. A process
holds a shared lock on what it was given until it ends, so it is not removed meanwhile.
"""

import hashlib
import os
import shutil
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from dlth.data.remote.addresses import is_remote
from dlth.data.remote.cache import cache_root, holding, make_room, used
from dlth.data.remote.fetch import discard
from dlth.data.remote.storage import Facts, facts
from dlth.data.sharing.share import check_identity, check_packed, pinned
from dlth.data.sharing.transfer import download
from dlth.tickets.callbacks import Progress
from dlth.tickets.errors import DlthError
from dlth.tickets.exchange.archive import Archive, unpack
from dlth.tickets.format.jsontext import canonical, parse
from dlth.tickets.store.disk import read_file, reading, write_files
from dlth.tickets.store.kinds import open_file

_held: dict[str, ExitStack] = {}
"""What this process holds until it ends, by identity."""


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
            check_identity(open_file(local).identity, wanted, local.name)
        return local
    cache = _Cache(cache_root() / "tickets")
    if wanted and (folder := cache.find(wanted)):
        return folder
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
            if open_file(path).identity == identity:
                used(path)
                return path
        except DlthError:  # a disk full or a power cut in the middle: fetch it again
            pass
        _held.pop(identity).close()
        return None

    def fetch(self, url: str, wanted: str, progress: Progress | None) -> Path:
        """Fetch what `url` holds, unless a note says that it is here; one process at a time."""
        name = hashlib.sha256(url.encode()).hexdigest()[:40]
        part = self.root / f"{name}.download"
        with holding(part):
            known = facts(url)
            if folder := self._noted(name, known):
                check_identity(folder.name, wanted, url)
                return folder
            make_room(self.root, known.size, url)
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
            path, part = self.root / identity, self.root / f"{identity}.part"
            with holding(part):
                if folder := self.find(identity):
                    return folder
                make_room(self.root, archive.size, packed.name)
                self._hold(identity)
                for leftover in (path, part):
                    shutil.rmtree(leftover, ignore_errors=True)
                part.mkdir()
                try:
                    os.rename(unpack(archive, part / identity).path, path)
                finally:
                    shutil.rmtree(part)
        return path

    def _hold(self, identity: str) -> None:
        if identity not in _held:
            _held[identity] = ExitStack()
            _held[identity].enter_context(holding(self.root / identity, shared=True))

    def _note_file(self, name: str) -> Path:
        return self.root / f"{name}.json"

    def _note(self, name: str, url: str, known: Facts, identity: str) -> None:
        note = {"url": url, "size": known.size, "stamp": known.stamp, "identity": identity}
        write_files({self._note_file(name): canonical(note)})

    def _noted(self, name: str, known: Facts) -> Path | None:
        """The folder of what this address was found to be, if the object is still the same."""
        try:
            note = parse(read_file(self._note_file(name), 16_384, "note"), "note")
            same = known.stamp and (note["size"], note["stamp"]) == (known.size, known.stamp)
            return self.find(note["identity"]) if same else None
        except (DlthError, KeyError, TypeError):
            return None
