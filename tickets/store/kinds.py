"""Opening a file of whichever kind it is, for what is done to all kinds alike: showing, checking, packing, sending."""

import os

from dlth.tickets.errors import DlthError, InputError, shown
from dlth.tickets.format.jsontext import parse
from dlth.tickets.format.label_header import LabelHeader
from dlth.tickets.format.layout import GROUP_FILE, MAX_META_BYTES
from dlth.tickets.store.disk import read_file, user_path
from dlth.tickets.store.label_store import LabelStore
from dlth.tickets.store.stored_file import StoredFile
from dlth.tickets.store.ticket_store import TicketStore


def open_file(path: str | os.PathLike[str]) -> TicketStore | LabelStore:
    """The ticket file or token label file at `path`; raises what `TicketStore` raises."""
    return LabelStore(path) if _holds_labels(path) else TicketStore(path)


def opened(store: StoredFile) -> StoredFile:
    """One open file; raises InputError for anything else."""
    if not isinstance(store, StoredFile):
        raise InputError(f"an open ticket file is needed, found {shown(store)!r}: open it, TicketStore(path)")
    return store


def _holds_labels(path: str | os.PathLike[str]) -> bool:
    """Whether the group says so; of what cannot be read the reader says what is wrong."""
    try:
        group = parse(read_file(user_path(path) / GROUP_FILE, MAX_META_BYTES, GROUP_FILE), GROUP_FILE)
    except DlthError:
        return False
    attributes = group.get("attributes") if isinstance(group, dict) else None
    return isinstance(attributes, dict) and LabelHeader.attribute in attributes
