"""Ticket files: which patches of each image are its winning ticket, stored so that they can be checked, shared and
joined; and token label files, stored alike.

Needs numpy and zarr alone, so a lab without a GPU stack can read, check and project tickets. README.md in this folder
is the format's specification.
"""

from dlth.tickets.format.header import DatasetInfo, Preprocessing, SelectorInfo, TicketHeader, ViewSpec, differences
from dlth.tickets.format.label_header import AnnotatorInfo, LabelHeader
from dlth.tickets.format.label_rows import ShardLabels
from dlth.tickets.format.manifest import ShardEntry, ShardSpec
from dlth.tickets.format.rows import Rankings, ShardTickets
from dlth.tickets.ranking.budget import Budget, exact_rate, num_kept
from dlth.tickets.ranking.grid import Grid
from dlth.tickets.ranking.projection import blend, paste, project
from dlth.tickets.ranking.view import View
from dlth.tickets.seeding import generator
from dlth.tickets.store.label_store import LabelStore
from dlth.tickets.store.label_writer import LabelWriter
from dlth.tickets.store.ticket_store import TicketStore
from dlth.tickets.store.writer import TicketWriter

__all__ = [
    "AnnotatorInfo",
    "Budget",
    "DatasetInfo",
    "Grid",
    "LabelHeader",
    "LabelStore",
    "LabelWriter",
    "Preprocessing",
    "Rankings",
    "SelectorInfo",
    "ShardEntry",
    "ShardLabels",
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
