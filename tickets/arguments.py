"""What a caller of the tools hands over, looked at first: an open ticket file and not its path, a list and not a text.

Types say so to those who check them. A notebook does not, and a library's own exception from deep inside names neither
the argument nor what to do.
"""

from collections.abc import Iterable
from typing import TypeVar

from dlth.tickets.errors import InputError, shown
from dlth.tickets.store import TicketStore

T = TypeVar("T")


def listed(values: Iterable[T], what: str) -> tuple[T, ...]:
    """The values of any iterable but text; raises InputError, naming `what`, for anything else."""
    if isinstance(values, str | bytes) or not isinstance(values, Iterable):
        raise InputError(f"a list of {what} is needed, found {shown(values)!r}: put one in brackets")
    return tuple(values)


def open_stores(stores: Iterable[TicketStore]) -> tuple[TicketStore, ...]:
    """A list of open ticket files; raises InputError for anything else."""
    given = listed(stores, "open ticket files")
    for store in given:
        if not isinstance(store, TicketStore):
            raise InputError(f"an open ticket file is needed, found {shown(store)!r}: open it, TicketStore(path)")
    return given


def open_store(store: TicketStore) -> TicketStore:
    """One open ticket file; raises InputError for anything else."""
    return open_stores([store])[0]
