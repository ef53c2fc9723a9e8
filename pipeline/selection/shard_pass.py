"""A pass over the shards that a file lacks: claimed, read, computed, written, by any number of processes.

Tickets and token labels are made alike: for each shard that nobody has done or is doing, something is computed of every
image, and the shard is written. A shard is claimed by a lock that the kernel drops when its owner dies, so there is no
lead process, nothing is done twice, and running the command again is all the recovery there is.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import numpy as np

from dlth.data.images.decode import BadImageError
from dlth.data.loading.shard_reader import ShardBatch
from dlth.data.shards.index import ShardIndex
from dlth.tickets.callbacks import Note
from dlth.tickets.errors import shown
from dlth.tickets.format.fields import StoredHeader
from dlth.tickets.format.rows import StoredRows
from dlth.tickets.store.shard_writer import ShardWriter
from dlth.tickets.store.stored_file import StoredFile
from dlth.training.distributed.ranks import ranks

Advance = Callable[[int], None]
Result = TypeVar("Result")
Header = TypeVar("Header", bound=StoredHeader)
Rows = TypeVar("Rows", bound=StoredRows)


@dataclass
class PassReport:
    """What a pass did, and once the file is complete, what all processes did together.

    images, shards, skipped: what this process read, and what was wrong with each image of which nothing was computed
    shards_before: done when this process began
    left_to_others: shards that other processes still worked on at the end
    images_in_file, skipped_elsewhere, identity: of the complete file; the images (shard and key) that other processes
        or earlier runs skipped
    """

    complete: bool = False
    images: int = 0
    shards: int = 0
    shards_before: int = 0
    skipped: list[str] = field(default_factory=list)
    left_to_others: int = 0
    images_in_file: int = 0
    skipped_elsewhere: list[str] = field(default_factory=list)
    identity: str = ""


@dataclass(frozen=True)
class ShardPass(Generic[Header, Rows, Result]):
    """What is done to each shard.

    computed: batches of the shards that it is given, in their order, with what was computed of their good images
    check: looks at each of these; raises DlthError for what must not be written
    rows: a shard's rows, of all its batches
    skip_bad: a corrupt image is left out and remembered; otherwise it ends the pass
    """

    writer: ShardWriter[Header, Rows]
    index: ShardIndex
    computed: Callable[[Iterable[int]], Iterable[tuple[ShardBatch, Result]]]
    check: Callable[[ShardBatch, Result], None]
    rows: Callable[[list[tuple[ShardBatch, Result]]], Rows]
    skip_bad: bool

    def run(self, report: PassReport, progress: Advance, skip: Advance, note: Note, wait: bool) -> None:
        """Do every shard that is not yet in the file, and finish the file if it is whole.

        Args:
            report: filled in
            progress: told how many images were done since it was last told
            skip: told how many images an earlier run had done
            note: told in words what a person should know
            wait: stay until the file is complete, for the shards in other processes' hands; those of a process that
                died are done here
        Raises:
            DlthError: a damaged shard, a corrupt image unless it may be skipped, a file of another configuration
        """
        writer, index = self.writer, self.index
        todo = writer.missing()
        report.complete, report.shards_before = writer.complete, len(index.shards) - len(todo)
        skip(index.num_samples - sum(index.shards[shard].rows for shard in todo))
        if report.shards_before and todo:
            note(f"resuming {shown(writer.path)}: {report.shards_before} of {len(index.shards)} shards are done")
        mine: set[int] = set()
        while not report.complete:
            if missing := writer.missing():
                mine |= self._do(missing, report, progress, note)
                report.shards = len(mine)
            report.complete = writer.finish()
            if not (wait or report.complete):
                break
            writer.wait()
        report.left_to_others = len(writer.missing())
        if report.complete:
            store = writer.finished()
            report.identity, report.images_in_file = store.identity, store.num_rows
            report.skipped_elsewhere = [text for shard, text in _skipped_images(store) if shard not in mine]

    def _do(self, todo: list[int], report: PassReport, progress: Advance, note: Note) -> set[int]:
        """Do the shards of `todo` that nobody else has; gives back which were done here."""
        parts: list[tuple[ShardBatch, Result]] = []
        done: set[int] = set()
        held: dict[int, ExitStack] = {}
        with ExitStack() as claims:
            for batch, result in self.computed(self._claimed(_from_own_start(todo), claims, held)):
                if batch.problems and not self.skip_bad:
                    raise BadImageError(batch.problems[0]).advised()
                for problem in batch.problems:
                    note(f"skipped: {problem}")
                self.check(batch, result)
                report.skipped += batch.problems
                report.images += len(batch.good)
                progress(len(batch.good))
                parts.append((batch, result))
                if batch.last:
                    self.writer.write(batch.shard, self.rows(parts))
                    held.pop(batch.shard).close()
                    done.add(batch.shard)
                    parts = []
        return done

    def _claimed(self, shards: Iterable[int], claims: ExitStack, held: dict[int, ExitStack]) -> Iterator[int]:
        """Those of `shards` that nobody else has, claimed as their images are about to be read; who takes one from
        `held` and closes it lets it go, and the end of `claims` all that are left.
        """
        for shard in shards:
            claim = claims.enter_context(ExitStack())
            if claim.enter_context(self.writer.claim(shard)):
                held[shard] = claim
                yield shard


def _from_own_start(todo: list[int]) -> list[int]:
    """The missing shards, each process of a torchrun job beginning elsewhere, so that they rarely meet."""
    here = ranks()
    start = len(todo) * here.rank // here.size
    return todo[start:] + todo[:start]


def _skipped_images(store: StoredFile) -> Iterator[tuple[int, str]]:
    """Shard index, and shard and key in words, of every image that was skipped."""
    for place, shard in enumerate(store.shards):
        if shard.skipped:
            for row in np.flatnonzero(store.skipped(place)):
                yield place, f"shard {shown(shard.name)}, key {shown(store.keys(place)[row])}"
