"""One file to or from any place that fsspec reaches.

Down: what came stays when the connection, the process or the machine goes away, and the next call goes on there; a
note beside the partial file says which object it is a part of (address, size, stamp), so a changed object is fetched
anew and two versions are never mixed. Up: the store's own library sends it, and an object appears whole or not at all;
a broken upload begins anew. Whoever calls compares digests; here only sizes are. Rejected: fsspec's `get`, which keeps
nothing of a broken transfer.
"""

from pathlib import Path
from typing import Any

from fsspec.callbacks import Callback

from dlth.data.remote.addresses import filesystem, is_remote
from dlth.data.remote.fetch import BLOCK, discard, fetch, note_of
from dlth.data.remote.retry import retried
from dlth.data.remote.stall_log import watched
from dlth.data.remote.storage import Facts, facts, reaching
from dlth.tickets.callbacks import Progress
from dlth.tickets.errors import DamageError, DlthError, InputError, LockedError, TransferError, shown
from dlth.tickets.format.jsontext import canonical
from dlth.tickets.store.disk import appended, fresh, new_file, read_file, space_errors
from dlth.tickets.store.locks import locked

_MAX_NOTE = 16_384


def download(url: str, part: Path, progress: Progress | None = None, known: Facts | None = None) -> Facts:
    """Fetch a remote file into `part`, from where it ends if it is a part of the same object; returns what it is.

    `progress(done, total)` counts bytes, those of earlier tries among them. `known`: what `facts(url)` told just now.
    Raises MissingFileError, TransferError (what came stays, call again), DamageError (the object changed meanwhile;
    nothing stays), LockedError (another process fetches it), SpaceError.
    """
    known = known or facts(url)
    with locked(part) as mine:
        if not mine:
            raise LockedError(f"{shown(part.name)}: another process is fetching it; wait for it")
        with space_errors(part.parent, known.size):
            _fetch_rest(url, part, known, progress)
        if facts(url) != known:
            discard(part)
            raise DamageError(f"{shown(url)} changed while it was fetched; fetch it again", file=url)
    return known


def _fetch_rest(url: str, part: Path, known: Facts, progress: Progress | None) -> None:
    note = canonical({"url": url, "size": known.size, "stamp": known.stamp})
    with appended(part) as file:
        if not (known.stamp and _same_note(part, note) and file.tell() <= known.size):
            file.seek(0)
            file.truncate()
            with fresh(note_of(part)) as beside:
                beside.write(note)
        try:
            fetch(url, file, part, known.size, progress)
        except TransferError as error:
            raise TransferError(
                f"{shown(url)} broke off after {file.tell():,} of {known.size:,} bytes, which are kept: run the same "
                f"command again ({error})"
            ) from error


def _same_note(part: Path, note: bytes) -> bool:
    try:
        return read_file(note_of(part), _MAX_NOTE, "note") == note
    except (DlthError, OSError):  # a note that cannot be read, whatever it is, is not this one
        return False


def check_free(target: str) -> None:
    """Raises InputError where nothing can be sent to, and where something stands."""
    if target.startswith(("http://", "https://")):
        raise InputError(
            f"{shown(target)}: nothing can be sent to an https address; use hf://, s3://, gs:// or a folder"
        )
    with reaching(target):
        system, path = filesystem(target)
        system.invalidate_cache()
        if system.exists(path):
            raise InputError(f"{shown(target)} exists and is not overwritten; choose another name or remove it")


def upload(local: Path, target: str, progress: Progress | None = None) -> None:
    """Put a local file under an address, where nothing may stand; `progress(done, total)` counts bytes.

    Raises InputError (something stands there, or the place cannot be written to), TransferError (call again),
    SpaceError.
    """
    check_free(target)
    size = local.stat().st_size
    if not is_remote(target):
        _copy(local, Path(target), size, progress)
        return
    system, path = filesystem(target)
    with watched(target) as heard:

        def told(done: int, total: int) -> None:
            heard(done)
            if progress is not None:
                progress(done, total)

        try:
            retried(lambda: system.put_file(str(local), path, callback=_Reported(size, told)), (Exception,))
        except (FileNotFoundError, PermissionError) as error:
            raise InputError(f"{shown(target)} cannot be written to: {shown(error)}") from error
        except Exception as error:  # every file system has its own errors for a cut connection
            cause = f"{type(error).__name__}: {error}"
            raise TransferError(f"{shown(target)} was not sent: {shown(cause)}; run the same command again") from error
    if (there := facts(target).size) != size:
        raise TransferError(
            f"{shown(target)} has {there:,} bytes after {size:,} were sent; remove it and send it again"
        )
    if progress is not None:
        progress(size, size)


def _copy(local: Path, target: Path, size: int, progress: Progress | None) -> None:
    with open(local, "rb") as source, new_file(target) as file:
        while block := source.read(BLOCK):
            file.write(block)
            if progress is not None:
                progress(file.tell(), size)


class _Reported(Callback):
    """fsspec's way of telling progress, turned into ours."""

    def __init__(self, size: int, progress: Progress) -> None:
        super().__init__(size=size)
        self._progress = progress

    def call(self, hook_name: str | None = None, **kwargs: Any) -> None:
        self._progress(min(self.value, self.size), self.size)
