"""Which images of a training set no step learns from, and why: part of what a run was, like its seed.

All arms must see the same images in the same order, whether or not they were given tickets. So a corrupt image stays in
the order with weight 0, however it became known: listed by the ticket file (it is then never read) or met on reading.
Its place is taken, and every other image meets the same batch. Images without a ticket leave the order under 'skip',
which was asked for; then only arms with the same tickets are alike, and the digest of what an epoch visits says so.
"""

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from dlth.data.joining.join import Join
from dlth.data.loading.order import Ids
from dlth.tickets import TicketStore

Flags = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class LeftOut:
    """Bool [images] by id. `bad`: cannot be decoded, weigh 0; `missing`: have no ticket and are not in the order."""

    bad: Flags
    missing: Flags

    @classmethod
    def known(cls, num_images: int, join: Join[TicketStore] | None) -> "LeftOut":
        """What the tickets say before an image is read; nothing without them."""
        if join is None:
            return cls(np.zeros(num_images, dtype=bool), np.zeros(num_images, dtype=bool))
        return cls(join.bad, join.removed)

    def with_bad(self, ids: Sequence[int]) -> "LeftOut":
        """The same and further corrupt images."""
        bad = self.bad.copy()
        bad[list(ids)] = True
        return replace(self, bad=bad)

    @functools.cached_property  # asked for at each step
    def num_ordered(self) -> int:
        """Images in an epoch's order."""
        return len(self.missing) - int(self.missing.sum())

    @property
    def num_trained(self) -> int:
        """Images that steps learn from."""
        return len(self.bad) - int((self.bad | self.missing).sum())

    def identity(self) -> dict[str, int | str]:
        """What a run that goes on must have alike: the counts, and a digest of which images they are."""
        packed = np.packbits(np.stack([self.bad, self.missing]), axis=1)
        return {**self.counts(), "sha256": hashlib.sha256(packed.tobytes()).hexdigest()}

    def counts(self) -> dict[str, int]:
        """How many were left out, by cause."""
        return {"bad": int(self.bad.sum()), "missing": int(self.missing.sum())}

    def visited_sha256(self, order: Ids) -> str:
        """Digest of what an epoch trains on, whose order is ids int64 [n]: at each place an image, or none (-1)."""
        return hashlib.sha256(np.where(self.bad[order], -1, order).astype("<i8").tobytes()).hexdigest()
