"""Control tickets of a study: each made once, of the tickets that its arm replaces, into the study's `tickets/`.

A run is named by what its control is made of, so that a plan knows every name before a file is written.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dlth.data.sharing.ticket_cache import local_tickets
from dlth.tickets import TicketStore
from dlth.tickets.derive.controls import control
from dlth.tickets.errors import shown
from dlth.tickets.store.disk import make_folder, refuse_linked

TICKETS = "tickets"


def control_file(study: Path, kind: str, identity: str) -> Path:
    """Where the control of a kind lies that is made of the tickets of that identity."""
    return study / TICKETS / f"{kind}-{identity[:10]}.zarr"


def control_contents(kind: str, identity: str) -> str:
    """What stands in a run's digest for the tickets of a control."""
    return f"control {kind} of {identity}"


def make_controls(study: Path, settings: Mapping[str, Any]) -> list[str]:
    """Make the control files of a plan (its `settings`) that are not there; what was made, in words.

    Whoever calls it owns the study, so that no two processes make the same file. Raises DlthError as `control`.
    """
    made = []
    for name, parent in settings.get("controls", {}).items():
        path = study / TICKETS / name
        if not path.exists():
            refuse_linked(path.parent)
            make_folder(path.parent)
            kind = name.rpartition("-")[0]
            store = control(TicketStore(local_tickets(parent), cache_shards=2), kind).write(path)
            made.append(f"{shown(path)}: control {kind} of {shown(parent)}, identity {store.identity[:16]}")
    return made
