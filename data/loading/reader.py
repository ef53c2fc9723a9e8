"""Reading samples for the loaders: bytes from the shards, compared with the tickets' content hash, decoded.

A ticket of another image looks like any ticket, so of the images that the join found to have the bytes their tickets
were made from, every one read is compared (some 10 µs of 4 ms). Both loaders read through here.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from dlth.data.images.decode import BadImageError
from dlth.data.joining.join import Join
from dlth.data.loading.crashes import NONE, Crashed, decode_sample
from dlth.data.loading.order import Ids
from dlth.data.shards.identity import content_hash
from dlth.data.shards.index import ShardIndex
from dlth.tickets.errors import DamageError, InputError, shown
from dlth.tickets.store.label_store import LabelStore
from dlth.tickets.store.ticket_store import TicketStore

BadImages = Literal["error", "skip"]


@dataclass(frozen=True, eq=False)
class Reader:
    """Reads and decodes samples. `bad_images`: 'error' lets BadImageError through, 'skip' reports it and goes on."""

    index: ShardIndex
    join: Join[TicketStore] | None = None
    bad_images: BadImages = "error"
    labels: Join[LabelStore] | None = None

    def __post_init__(self) -> None:
        if self.bad_images not in ("error", "skip"):
            raise InputError(f"bad_images is 'error' or 'skip', got {shown(self.bad_images)!r}")

    def wanted(self, ids: Ids) -> Ids:
        """Which of `ids` are read, int64 [m], rising: each once, without those that the tickets know to be bad."""
        wanted = np.unique(ids)  # an image may be there in several views
        return wanted if self.join is None else wanted[~self.join.bad[wanted]]

    def read(self, ids: Ids, crashed: Crashed = NONE) -> tuple[list[torch.Tensor | None], dict[int, str]]:
        """Images uint8 [3, height, width] of `ids` int64 [n], None where bad; and id and cause of each bad one met.

        An image that the tickets know to be bad is not read, and one that has crashed a decoder is not decoded.

        Raises BadImageError with 'error', DamageError when an image is not the one its ticket was made from.
        """
        images: dict[int, torch.Tensor] = {}
        bad: dict[int, str] = {}
        wanted = self.wanted(ids)
        for sample_id, encoded in zip(wanted.tolist(), self.index.read_many(wanted), strict=True):
            for join in (self.join, self.labels):
                if join is not None:
                    self._check_identity(join, sample_id, encoded)
            try:
                images[sample_id] = decode_sample(self.index, sample_id, encoded, crashed)
            except BadImageError as error:
                if self.bad_images == "error":
                    raise error.advised() from error
                bad[sample_id] = str(error)
        return [images.get(sample_id) for sample_id in ids.tolist()], bad

    def _check_identity(self, join: Join[Any], sample_id: int, encoded: bytes) -> None:
        store, place = join.store, int(join.ticket_row[sample_id])
        if place < 0 or not join.identical[sample_id]:
            return
        shard, row = store.shard_and_row(place)
        if store.image_hashes(shard)[row].tobytes() != content_hash(encoded):
            raise DamageError(
                f"{self.index.where(sample_id)}: the image is not the one its {store.NOUN} was made from (content hash "
                "differs): the shard is damaged or was changed; compare it with dlth index --check, or run"
                f" {store.COMMAND} again",
                shard=self.index.shards[self.index.shard_of(sample_id)].name,
            )
