"""An open ticket file: the patches of its rows, beside what every kind of file has."""

from collections.abc import Callable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from dlth.tickets.arguments import listed
from dlth.tickets.callbacks import Note, Progress
from dlth.tickets.errors import DamageError, InputError, shown
from dlth.tickets.format.header import TicketHeader
from dlth.tickets.format.layout import Layout
from dlth.tickets.format.masks import from_bits, ticket_sets
from dlth.tickets.format.provenance import all_alike
from dlth.tickets.format.rows import Rankings, RuleError, ShardTickets, check_gap, check_patches
from dlth.tickets.store.stored_file import StoredFile
from dlth.tickets.store.verify import verify_store


class TicketStore(StoredFile):
    """A finished ticket file, open for reading; what every file has, and its errors, as `StoredShards` says."""

    HEADER = TicketHeader
    NOUN = "ticket"
    COMMAND = "dlth select"
    header: TicketHeader
    layout: Layout

    @property
    def num_patches_stored(self) -> int:
        """Patches per row: all of the grid in form 'full', k in the other forms."""
        return self.layout.ranked

    def read(self, shard_index: int) -> ShardTickets:
        """All rows of one shard; arrays are read-only. Raises DamageError naming shard and file."""
        patches, skipped = self._ranked(shard_index)
        return ShardTickets(
            self.keys(shard_index), self.image_hashes(shard_index), patches, self.gap(shard_index), skipped
        )

    def patches(self, shard_index: int) -> NDArray[np.integer]:
        """Unsigned [rows, ranked]: patches best first (in form 'mask', which has no order, by number); skipped rows
        hold the fill value (see `skipped`). Reads one chunk.
        """
        return self._ranked(shard_index)[0]

    def skipped(self, shard_index: int) -> NDArray[np.bool_]:
        """Bool [rows]: images that could not be read when the tickets were made. From the same chunk as `patches`."""
        return self._ranked(shard_index)[1]

    def mask(self, shard_index: int) -> NDArray[np.bool_]:
        """Bool [rows, P]: the k patches that each ticket keeps, in any form; none on skipped rows. Reads one chunk."""
        patches, skipped = self._ranked(shard_index)
        return ticket_sets(patches[:, : self.header.k], skipped, self.layout.num_patches)

    def gap(self, shard_index: int) -> NDArray[np.float32]:
        """Float32 [rows]: score of the k-th patch minus the next's; NaN on skipped rows. Reads at most two chunks."""

        def load() -> NDArray[np.float32]:
            gap: NDArray[np.float32] = self._rows(self.layout.gap, shard_index)
            check_gap(gap, self.skipped(shard_index))
            return gap

        return self._cached("gap", shard_index, load)

    def rankings(self, keys: Sequence[str]) -> Rankings:
        """The patches of each key, those without a ticket told apart: see `Rankings`."""
        numbers = self.find_rows(keys)
        return Rankings(self.patches_at(numbers), numbers, self.skipped_at(numbers))

    def patches_at(self, numbers: NDArray[np.int64]) -> NDArray[np.integer]:
        """Unsigned [n, ranked]: the patches of the rows with these numbers, the fill value throughout for -1."""
        patches = np.full((len(numbers), self.num_patches_stored), self.layout.patches.fill, self.layout.patches.dtype)
        for shard_index, at, rows in self.by_shard(numbers):
            patches[at] = self.patches(shard_index)[rows]
        return patches

    def verify(
        self, progress: Progress | None = None, subset: tuple[int, int] | None = None, note: Note | None = None
    ) -> list[DamageError]:
        """Every digest, range, permutation, count, and key; returns what is wrong, one error per finding.

        `progress` and `subset` as every file has them. `note(text)` is told of what is no damage and yet odd: that all
        tickets are alike.
        """
        kept, num_tickets = np.zeros(self.layout.num_patches, dtype=bool), 0  # patches that any ticket keeps

        def tally(store: TicketStore, shard_index: int) -> None:
            nonlocal num_tickets
            mask = store.mask(shard_index)
            kept[:] |= mask.any(axis=0)
            num_tickets += int(mask.any(axis=1).sum())

        findings = verify_store(self, progress, subset, tally)
        if note is not None and num_tickets > 1 and kept.sum() == self.header.k < kept.size:
            note(all_alike(self.header, num_tickets, self.header.k))
        return findings

    @property
    def content_reads(self) -> tuple[Callable[[int], object], ...]:
        """Patches and gaps."""
        return self.patches, self.gap

    def _layout(self, key_width: int) -> Layout:
        return Layout.of(self.header, len(self.shards), self.max_rows, key_width)

    def _ranked(self, shard_index: int) -> tuple[NDArray[np.integer], NDArray[np.bool_]]:
        """Patches and skipped rows of one shard, every value checked."""

        def load() -> tuple[NDArray[np.integer], NDArray[np.bool_]]:
            spec, num_patches = self.layout.patches, self.layout.num_patches
            patches: NDArray[np.integer] = self._rows(self.layout.choice, shard_index)
            if self.layout.masked:
                chosen, skipped = from_bits(np.asarray(patches, dtype=np.uint8), num_patches, self.header.k)
                patches = np.where(skipped[:, None], spec.fill, chosen).astype(spec.dtype)
                patches.flags.writeable = False
            else:
                skipped = (patches == spec.fill).all(axis=1)
                check_patches(patches[~skipped] if skipped.any() else patches, num_patches)
            if int(skipped.sum()) != self.shards[shard_index].skipped:
                raise RuleError(
                    f"{skipped.sum()} rows are skipped, the manifest says {self.shards[shard_index].skipped}"
                )
            skipped.flags.writeable = False
            return patches, skipped

        return self._cached(self.layout.choice.name, shard_index, load)


def open_stores(stores: Iterable[TicketStore]) -> tuple[TicketStore, ...]:
    """A list of open ticket files; raises InputError for anything else."""
    opened = listed(stores, "open ticket files")
    for store in opened:
        if not isinstance(store, TicketStore):
            raise InputError(f"an open ticket file is needed, found {shown(store)!r}: open it, TicketStore(path)")
    return opened


def open_store(store: TicketStore) -> TicketStore:
    """One open ticket file; raises InputError for anything else."""
    return open_stores([store])[0]
