"""Labels for a ticket file's rows, taken from the shards of its images: the file itself holds none."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dlth.data.joining.join import join
from dlth.data.shards.classes import class_names
from dlth.data.shards.index import open_index
from dlth.tickets import TicketStore
from dlth.tickets.ascii_digits import is_digits
from dlth.tickets.errors import InputError, shown
from dlth.tickets.store.labels import NO_LABEL


@dataclass(frozen=True, eq=False)
class RowClasses:
    """Labels by row and what the classes are called.

    labels: int64 [rows of the file], -1 for rows whose image is not in the shards
    names: by label; empty where nothing says them
    coverage: how the images were joined, as text
    """

    labels: np.ndarray
    names: tuple[str, ...]
    coverage: str

    def name(self, label: int) -> str:
        """What a class is called."""
        return shown(self.names[label], 60) if label < len(self.names) else str(label)


def class_number(text: str, names: Sequence[str]) -> int:
    """The label of a class given by name or number; raises InputError."""
    if text in names:
        return names.index(text)
    if is_digits(text):
        return int(text)
    some = ", ".join(shown(name, 40) for name in names[:5])
    raise InputError(
        f"--class {shown(text)!r} is no class number, and no class is called {shown(text)!r} ({some or 'none'} …)"
    )


def row_classes(data: str, split: str | None, store: TicketStore) -> RowClasses:
    """The labels of a file's rows from the shards `data`, joined as for training.

    Raises what `open_index` and `join` raise.
    """
    index = open_index(data, split=split)
    joined = join(index, store, missing="skip")
    by_place = np.full(store.row_number(len(store.shards), 0), NO_LABEL, dtype=np.int64)
    has_row = joined.ticket_row >= 0
    by_place[joined.ticket_row[has_row]] = index.label[has_row]
    parts = [by_place[store.row_number(at, np.arange(shard.rows))] for at, shard in enumerate(store.shards)]
    return RowClasses(np.concatenate(parts), class_names(index), str(joined.coverage))
