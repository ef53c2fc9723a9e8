"""Sending ticket files to other labs, and fetching theirs.

What travels is the packed form, one zip: one object, one request, one thing to check; a folder of five thousand chunks
would be five thousand requests, and a Hub of Git wants few files. Beside it go the card (README.md) and, where there is
one, the signature. What was fetched is under a temporary name until every byte was checked against the manifest, and
the manifest's digest against the identity where one was given: only then it gets its name.

An address may end in `#identity=` and the 64 digits that `dlth tickets info` prints; any other file is refused.
"""

import os
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

from dlth.data.remote.addresses import filesystem, is_remote
from dlth.data.remote.fetch import discard
from dlth.data.remote.storage import reaching, read_small
from dlth.data.shards.sources import check_address
from dlth.data.sharing.transfer import check_free, download, upload
from dlth.tickets.callbacks import Note, Progress
from dlth.tickets.errors import (
    DlthError,
    InputError,
    LockedError,
    MismatchError,
    MissingFileError,
    SpaceError,
    TransferError,
    shown,
)
from dlth.tickets.exchange.archive import Archive, pack, unpack
from dlth.tickets.exchange.card import card
from dlth.tickets.store.disk import new_file, new_place, refuse_existing, user_path
from dlth.tickets.store.kinds import open_file
from dlth.tickets.store.label_store import LabelStore
from dlth.tickets.user_files import read_named

CARD = "README.md"
SIGNATURE = ".sig"
MAX_BESIDE = 2**20  # bytes of a card or a signature
_SIGNATURE_SECONDS = 10.0  # a signature has some thousand bytes
_PINNED = re.compile(r"(.+)#identity=([0-9a-f]{64})")
_KEEPS_PART = (TransferError, LockedError, SpaceError, MissingFileError)


@dataclass(frozen=True)
class Sent:
    """What `push` did: addresses, the file's identity, bytes of the zip."""

    url: str
    identity: str
    num_bytes: int
    beside: tuple[str, ...]

    @property
    def pinned(self) -> str:
        """The address that takes this very file and no other."""
        return f"{self.url}#identity={self.identity}"


def pinned(spec: str) -> tuple[str, str]:
    """An address and the identity it must have, empty where `spec` names none; raises InputError for a part of one."""
    spec = spec.removeprefix("file://")
    match = _PINNED.fullmatch(spec)
    if match:
        return match[1], match[2]
    if "#identity=" in spec:
        raise InputError(f"{shown(spec)!r}: an identity is the 64 hexadecimal digits that dlth tickets info prints")
    return spec, ""


def check_identity(found: str, wanted: str, name: str) -> None:
    """Raises MismatchError, both shown, unless no identity is wanted or it is the one found."""
    if wanted and found != wanted:
        raise MismatchError(f"{shown(name)} is another ticket file than asked for: identity {found}, asked {wanted}")


def push(source: str | os.PathLike[str], target: str, note: Note, progress: Progress | None = None) -> Sent:
    """Send a ticket file, packed or not, to a folder or an address that ends in .zip; nothing there is overwritten.

    Its card and its signature (`<source>.sig`, where there is one) go first, the zip last. `note` is told of a
    README.md that stands there and says something else; it is left alone. `progress(done, total)` counts bytes. Raises
    what `TicketStore`, `Archive` and `upload` raise.
    """
    local, target = Path(source), target.removeprefix("file://")
    name = local.name if local.suffix == ".zip" else f"{Path(os.path.realpath(local)).name}.zip"
    url = target if target.endswith(".zip") else f"{target.rstrip('/')}/{name}"
    if not is_remote(url):
        user_path(target)
    check_address(url)
    check_free(url)
    with tempfile.TemporaryDirectory(prefix="dlth-push-") as temporary:
        packed, text, identity = _prepared(local, Path(temporary), url.rpartition("/")[2])
        folder, slash, _ = url.rpartition("/")
        beside = [put_beside(f"{folder}{slash}{CARD}", text.encode(), note)] if text else []
        signature = Path(f"{local}{SIGNATURE}")
        if signature.is_file():
            beside.append(put_beside(f"{url}{SIGNATURE}", read_named(signature, MAX_BESIDE, "signature"), note))
        upload(packed, url, progress)
        return Sent(url, identity, packed.stat().st_size, tuple(place for place in beside if place))


def _prepared(local: Path, temporary: Path, name: str) -> tuple[Path, str, str]:
    """The zip to send, its card (a ticket file's alone has one) and its identity."""
    if local.suffix == ".zip":
        store, packed = unpack(local, temporary / "store"), local
    else:
        store, packed = open_file(local), temporary / "packed.zip"
        pack(store, packed)
    text = "" if isinstance(store, LabelStore) else card(store, name, packed.stat().st_size)
    return packed, text, store.identity


def put_beside(url: str, raw: bytes, note: Note) -> str:
    """Put a small file where none stands; returns its address, or nothing where another stands (`note` is told)."""
    there = read_small(url, MAX_BESIDE)
    if there is None:
        if is_remote(url):
            with reaching(url):
                system, path = filesystem(url)
                system.pipe_file(path, raw)
        else:
            with new_file(url) as file:
                file.write(raw)
    elif there != raw:
        note(f"{shown(url)} says something else and was left as it is")
        return ""
    return url


def pull(spec: str, out: str | os.PathLike[str], progress: Progress | None = None, note: Note | None = None) -> str:
    """Fetch a packed ticket file and check all of it; returns its identity.

    `out`: where it gets its name, packed if that ends in .zip, else as a folder; `<out>.download` is what came so far,
    and a second call goes on from there. A signature beside it (`.sig`) comes along where it can be had at once; `note`
    is told why it could not. Raises InputError when something stands at `out`, MismatchError for another identity than
    `spec` asks for, and what `download`, `Archive` and `unpack` raise.
    """
    url, wanted = pinned(spec)
    check_packed(url)
    target = new_place(out)
    part = target.with_name(f"{target.name}.download")
    try:
        download(url, part, progress)
        identity = _settle(part, target, wanted)
    except _KEEPS_PART:
        raise
    except DlthError:
        discard(part)
        raise
    discard(part)
    head, mark, query = url.partition("?") if is_remote(url) else (url, "", "")
    _signature(f"{head}{SIGNATURE}{mark}{query}", Path(f"{target}{SIGNATURE}"), note)
    return identity


def check_packed(url: str) -> None:
    """Raises UnsafeError or InputError unless `url` is an address to fetch a packed ticket file from."""
    check_address(url)
    if not url.partition("?")[0].endswith(".zip"):
        raise InputError(f"{shown(url)}: what is fetched is a packed ticket file (.zip), as dlth tickets push sends it")


def _settle(part: Path, target: Path, wanted: str) -> str:
    """Check a fetched file and give it its name."""
    with Archive(part) as archive:
        check_identity(archive.identity, wanted, target.name)
        if target.suffix != ".zip":
            return unpack(archive, target).identity
        for _ in archive.contents():
            pass
        refuse_existing(target)
        os.rename(part, target)
        return archive.identity


def _signature(url: str, target: Path, note: Note | None) -> None:
    """Fetch a signature where there is one and none stands here; it is checked when it is used.

    The ticket file is there and whole: nothing about its signature may hold the command up or fail it.
    """
    try:
        raw = read_small(url, MAX_BESIDE, within=_SIGNATURE_SECONDS)
        if raw is not None and not os.path.lexists(target):
            with new_file(target) as file:
                file.write(raw)
    except (DlthError, OSError) as error:
        if note is not None:
            note(f"the signature was not fetched: {error}")
