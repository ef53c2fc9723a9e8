"""The validation images of runs and their tickets, opened, for pages that draw them.

Runs know their images by key alone. Who has the images at hand gives them; evidence that came from another lab opens no
file that only it names.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from dlth.data.shards.index import ShardIndex, open_index
from dlth.data.sharing.ticket_cache import local_tickets
from dlth.pipeline.evidence.informative import INFORMATIVE, read_informative
from dlth.tickets import TicketStore

Known = Mapping[str, NDArray[np.int64]]
"""Int64 [known patches] by key."""


@dataclass(frozen=True, eq=False)
class ValidationImages:
    """Images, their tickets, those of the same images by another selector, and the patches that are known to matter,
    of the tickets' grid and view; None for what there is not.
    """

    index: ShardIndex
    store: TicketStore
    other: TicketStore | None = None
    known: Known | None = None

    @classmethod
    def open(cls, data: str, tickets: str, split: str | None = None, other: str | None = None) -> Self:
        """Open shards and ticket files, and `informative.json` if it lies beside the first shard.

        Raises DlthError for what cannot be read.
        """
        index, store = open_index(data, split=split), TicketStore(local_tickets(tickets))
        path = Path(index.shards[0].url).parent / INFORMATIVE
        known = read_informative(path, store.header.grid.num_patches) if path.is_file() else None
        return cls(index, store, None if other is None else TicketStore(local_tickets(other)), known)
