"""A ticket file's rows in any other order, without holding them in memory.

One pass over the file puts every wanted row at its new place in a temporary file on disk, from which rows are then read
in order. Rejected: fetching rows as they are wanted, which reads and checks a whole chunk for each (hours for two
shufflings of ImageNet), and holding all rows (250 MB for ImageNet, more with keys).

Memory: 24 bytes a wanted row while the temporary file is written, 8 after; disk: one row's bytes each.
"""

import functools
import os
import tempfile
from typing import IO

import numpy as np
from numpy.typing import NDArray

from dlth.tickets.format.rows import ShardTickets
from dlth.tickets.store.disk import space_errors
from dlth.tickets.store.ticket_store import TicketStore

Rows = NDArray[np.int64]


class Reordered:
    """The rows of `store` at `places`, int64 [wanted]: row numbers, or -1 for 'no row'."""

    def __init__(self, store: TicketStore, places: Rows) -> None:
        self.store = store
        self.places = places
        self._record = np.dtype(
            [
                ("key", f"S{store.layout.key_width}"),
                ("image", np.uint8, (16,)),
                ("gap", np.float32),
                ("skipped", np.bool_),
                ("patches", store.layout.patches.dtype, (store.num_patches_stored,)),
            ]
        )

    def rows(self, start: int, stop: int) -> ShardTickets:
        """Wanted rows [start, stop), in their order; where there is no row the key is empty and `skipped` is set."""
        size = self._record.itemsize
        raw = os.pread(self._file.fileno(), (stop - start) * size, start * size)
        # a file without its last rows ends early: what was never written is zeros
        table = np.frombuffer(raw.ljust((stop - start) * size, b"\0"), dtype=self._record)
        absent = self.places[start:stop] < 0
        keys = tuple(key.decode("utf-8") for key in table["key"].tolist())
        gap = np.where(absent, np.float32(np.nan), table["gap"])
        return ShardTickets(keys, table["image"], table["patches"], gap, table["skipped"] | absent)

    @functools.cached_property
    def _file(self) -> IO[bytes]:
        """The temporary file, written when the first row is asked for."""
        file = tempfile.TemporaryFile(prefix="dlth-rows-")  # noqa: SIM115 - lives as long as this object
        with space_errors(self.store.path, len(self.places) * self._record.itemsize):
            for shard_index, at, _ in self.store.by_shard(self.places):
                targets = np.sort(at)
                table = self._table(shard_index)[self.store.shard_and_row(self.places[targets])[1]]
                for run in np.split(np.arange(len(targets)), np.flatnonzero(np.diff(targets) != 1) + 1):
                    offset = int(targets[run[0]]) * self._record.itemsize
                    os.pwrite(file.fileno(), table[run[0] : run[-1] + 1].tobytes(), offset)
        return file

    def _table(self, shard_index: int) -> NDArray[np.void]:
        tickets = self.store.read(shard_index)
        table = np.zeros(tickets.num_rows, dtype=self._record)
        table["key"] = [key.encode("utf-8") for key in tickets.keys]
        table["image"], table["gap"] = tickets.images, tickets.gap
        table["skipped"], table["patches"] = tickets.skipped, tickets.patches
        return table
