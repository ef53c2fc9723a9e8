"""Ticket files: which patches of each image are its winning ticket, stored so that they can be checked, shared and
joined.

Needs numpy and zarr alone, so a lab without a GPU stack can read, check and project tickets. README.md in this folder
is the format's specification.
"""

from dlth.tickets.budget import Budget, exact_rate, num_kept
from dlth.tickets.grid import Grid
from dlth.tickets.header import (
    DatasetInfo,
    Preprocessing,
    SelectorInfo,
    TicketHeader,
    ViewSpec,
    differences,
)
from dlth.tickets.manifest import ShardEntry, ShardSpec
from dlth.tickets.project import blend, paste, project
from dlth.tickets.rows import Rankings, ShardTickets
from dlth.tickets.seeding import generator
from dlth.tickets.store import TicketStore
from dlth.tickets.view import View
from dlth.tickets.writer import TicketWriter

__all__ = [
    "Budget",
    "DatasetInfo",
    "Grid",
    "Preprocessing",
    "Rankings",
    "SelectorInfo",
    "ShardEntry",
    "ShardSpec",
    "ShardTickets",
    "TicketHeader",
    "TicketStore",
    "TicketWriter",
    "View",
    "ViewSpec",
    "blend",
    "differences",
    "exact_rate",
    "generator",
    "num_kept",
    "paste",
    "project",
]
