"""Writing a ticket file; how any file is written stands in `shard_writer.py`."""

from pathlib import Path

import numpy as np

from dlth.tickets.format.header import TicketHeader
from dlth.tickets.format.layout import Array, ArraySpec, Layout
from dlth.tickets.format.manifest import ShardSpec
from dlth.tickets.format.masks import ticket_sets, to_bits
from dlth.tickets.format.rows import ShardTickets, check_tickets
from dlth.tickets.store.shard_writer import ShardWriter
from dlth.tickets.store.ticket_store import TicketStore

__all__ = ["ShardSpec", "TicketWriter"]


class TicketWriter(ShardWriter[TicketHeader, ShardTickets]):
    """Writes a ticket file, shard by shard: see `ShardWriter`."""

    HEADER = TicketHeader
    NOUN = "ticket"
    layout: Layout

    def _layout(self, max_rows: int, key_width: int) -> Layout:
        return Layout.of(self.header, len(self.shards), max_rows, key_width)

    def _open(self, path: Path) -> TicketStore:
        return TicketStore(path)

    def _content(self, rows: ShardTickets, num_rows: int) -> list[tuple[ArraySpec, Array]]:
        layout = self.layout
        check_tickets(rows, num_rows, layout)
        if layout.masked:
            choice: Array = to_bits(ticket_sets(rows.patches, rows.skipped, layout.num_patches))
        else:
            choice = rows.patches.astype(layout.patches.dtype)
            choice[rows.skipped] = layout.patches.fill
        gap = np.where(rows.skipped, np.float32(np.nan), rows.gap)
        return [(layout.choice, choice), (layout.gap, gap)]
