"""One file to or from any place that fsspec reaches, going on where a broken transfer stopped.

Down: blocks by range, appended to a partial file that stays when the connection, the process or the machine goes away;
a note beside it says which object it is a part of (address, size, stamp), so a changed object is fetched anew and two
versions are never mixed. Up: an object appears whole or not at all. In S3 the parts of a multipart upload are the
partial file: those that are there already, compared by MD5, are not sent again; other stores take the file in one
piece. Whoever calls compares digests; here only sizes are. Rejected: fsspec's `get`, which keeps nothing of a broken
transfer, and its `put` for S3, which begins anew.
"""

import hashlib
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fsspec.callbacks import Callback

from dlth.data.fetch import blocks
from dlth.data.remote import Facts, facts, filesystem, is_remote, reaching
from dlth.data.waiting import watched
from dlth.tickets.disk import appended, fresh, new_file, read_file, space_errors
from dlth.tickets.errors import (
    DamageError,
    DlthError,
    InputError,
    LockedError,
    SpaceError,
    TransferError,
    shown,
)
from dlth.tickets.jsontext import canonical
from dlth.tickets.locks import locked
from dlth.tickets.progress import Progress

BLOCK = 8 * 2**20  # bytes asked for at a time
_PART = 16 * 2**20  # bytes of a part in S3, where 10,000 parts are the most
_MAX_PARTS = 10_000
_MAX_NOTE = 16_384
_WAITS = (0.5, 2.0)  # seconds before another try; then the error is the user's


def note_of(part: Path) -> Path:
    """The file beside a partial file that says what it is a part of."""
    return part.with_name(f"{part.name}.json")


def discard(part: Path) -> None:
    """Remove a partial file and its note."""
    note_of(part).unlink(missing_ok=True)
    part.unlink(missing_ok=True)


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
        position = file.tell()
        _check_room(part.parent, known.size - position, url)

        def told(count: int) -> None:
            if progress is not None:
                progress(count, known.size)

        told(position)
        try:
            for block in blocks(url, position, known.size, BLOCK, told):
                file.write(block)
                file.flush()
                position += len(block)
        except TransferError as error:
            raise TransferError(
                f"{shown(url)} broke off after {position:,} of {known.size:,} bytes, which are kept: run the same "
                f"command again ({error})"
            ) from error
        os.fsync(file.fileno())
    if progress is not None:
        progress(known.size, known.size)


def _check_room(folder: Path, needed: int, url: str) -> None:
    """Refuse before the first byte what cannot fit: a server says what it likes of a file's size."""
    if needed > (free := shutil.disk_usage(folder).free):
        raise SpaceError(f"{shown(url)}: {needed:,} bytes are needed in {shown(folder)}, {free:,} are free: free some")


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

    Raises InputError (something stands there, or the place cannot be written to), TransferError (call again; in S3 what
    was sent is kept), SpaceError.
    """
    check_free(target)
    size = local.stat().st_size
    if not is_remote(target):
        _copy(local, Path(target), size, progress)
        return
    system, path = filesystem(target)
    tries = _send_s3 if target.startswith("s3://") else _send
    _again(lambda told: tries(system, local, path, size, told), target, progress)
    if (found := facts(target).size) != size:
        raise TransferError(
            f"{shown(target)} has {found:,} bytes after {size:,} were sent; remove it and send it again"
        )
    if progress is not None:
        progress(size, size)


def _again(send: Callable[[Progress], None], target: str, progress: Progress | None) -> None:
    """Try a few times; every file system has its own errors for a cut connection."""
    for wait in (*_WAITS, None):
        try:
            with watched(target) as heard:

                def told(done: int, total: int, heard: Callable[[int], None] = heard) -> None:
                    heard(done)
                    if progress is not None:
                        progress(done, total)

                send(told)
            return
        except Exception as error:
            if wait is None:
                cause = f"{type(error).__name__}: {error}"
                raise TransferError(
                    f"{shown(target)} was not sent: {shown(cause)}; run the same command again"
                ) from error
            time.sleep(wait)


def _copy(local: Path, target: Path, size: int, progress: Progress | None) -> None:
    with open(local, "rb") as source, new_file(target) as file:
        while block := source.read(BLOCK):
            file.write(block)
            if progress is not None:
                progress(file.tell(), size)


def _send(system: Any, local: Path, path: str, size: int, progress: Progress) -> None:
    system.put_file(str(local), path, callback=_Reported(size, progress))


class _Reported(Callback):
    """fsspec's way of telling progress, turned into ours."""

    def __init__(self, size: int, progress: Progress) -> None:
        super().__init__(size=size)
        self._progress = progress

    def call(self, hook_name: str | None = None, **kwargs: Any) -> None:
        self._progress(min(self.value, self.size), self.size)


def _send_s3(system: Any, local: Path, path: str, size: int, progress: Progress) -> None:
    """A multipart upload, the one that an earlier try left unfinished where there is one."""
    bucket, key, _ = system.split_path(path)
    place = {"Bucket": bucket, "Key": key}
    upload_id, there = _unfinished(system, place)
    if not upload_id:
        upload_id = system.call_s3("create_multipart_upload", **place)["UploadId"]
    length = max(_PART, -(-size // _MAX_PARTS))
    parts, done = [], 0
    with open(local, "rb") as file:
        for number, raw in enumerate(iter(lambda: file.read(length), b""), 1):
            tag = there.get(number, "")
            if tag.strip('"') != hashlib.md5(raw, usedforsecurity=False).hexdigest():
                tag = system.call_s3("upload_part", **place, UploadId=upload_id, PartNumber=number, Body=raw)["ETag"]
            parts.append({"PartNumber": number, "ETag": tag})
            done += len(raw)
            progress(done, size)
    system.call_s3("complete_multipart_upload", **place, UploadId=upload_id, MultipartUpload={"Parts": parts})
    system.invalidate_cache()


def _unfinished(system: Any, place: dict[str, str]) -> tuple[str, dict[int, str]]:
    """The newest unfinished upload under this key and the MD5 of its parts by number, as far as they may be listed."""
    try:
        found = system.call_s3("list_multipart_uploads", Bucket=place["Bucket"], Prefix=place["Key"])
    except PermissionError:
        return "", {}
    uploads = [upload for upload in found.get("Uploads", []) if upload["Key"] == place["Key"]]
    if not uploads:
        return "", {}
    upload_id = max(uploads, key=lambda upload: upload["Initiated"])["UploadId"]
    tags: dict[int, str] = {}
    marker = 0
    while True:
        page = system.call_s3("list_parts", **place, UploadId=upload_id, PartNumberMarker=marker)
        tags |= {part["PartNumber"]: part["ETag"] for part in page.get("Parts", [])}
        if not page.get("IsTruncated"):
            return upload_id, tags
        marker = page["NextPartNumberMarker"]
