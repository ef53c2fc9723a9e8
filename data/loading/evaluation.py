"""Evaluation batches: every image exactly once over all ranks, in the order of the shards, nothing padded.

Ranks take contiguous parts, which may differ by one image and so by one batch: evaluation has no step that ranks take
together. One pass over the images serves all arms side by side, since decoding costs as much as a small model; so
images travel whole, as arms keep different patches, and the dense one all of them. Tickets made in another frame than
the evaluation crop are projected to it; in the same frame they are taken as they are.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from dlth.data.images.views import check_view, render
from dlth.data.joining.join import Join, check_compatible
from dlth.data.loading.batch import EvalBatch
from dlth.data.loading.crashes import Crashed
from dlth.data.loading.left_out import LeftOut
from dlth.data.loading.order import Ids
from dlth.data.loading.patches import ARMS, Arm, PatchChoice, Showing
from dlth.data.loading.reader import BadImages, Reader
from dlth.data.loading.workers import Pool
from dlth.data.shards.classes import require_labels
from dlth.data.shards.index import ShardIndex
from dlth.tickets import TicketStore
from dlth.tickets.errors import InputError
from dlth.tickets.format.header import ViewSpec
from dlth.tickets.ranking.grid import Grid


class EvalLoader:
    """One rank's share of an evaluation; iterating gives EvalBatches, as often as one likes.

    `view`: how images are shown (timm's centre crop, usually); `arms`: which choices of patches each batch carries;
    `k`: patches kept; `seed` names the random arm's draw, one per image. Images that stage 1 marked bad, and with
    `missing='skip'` those without a ticket, are left out on all ranks. Raises InputError or MismatchError for what does
    not fit.
    """

    def __init__(
        self,
        index: ShardIndex,
        *,
        view: ViewSpec,
        grid: Grid,
        seed: int,
        batch_size: int,
        arms: Sequence[Arm] = ARMS,
        k: int | None = None,
        join: Join[TicketStore] | None = None,
        rank: int = 0,
        world: int = 1,
        workers: int = 0,
        bad_images: BadImages = "error",
    ) -> None:
        if batch_size < 1 or not 0 <= rank < world:
            raise InputError(f"a batch has at least 1 image, and rank < world: got {batch_size}, {rank} of {world}")
        if k is None and set(arms) != {"dense"}:
            raise InputError("the ticket and random arms need k, the number of patches to keep")
        if k is not None and not 1 <= k <= grid.num_patches:
            raise InputError(f"k must be from 1 to {grid.num_patches} (the patches of the {grid} grid), got {k}")
        check_view(view)
        require_labels(index)
        if join is not None and "ticket" in arms:
            check_compatible(join.store.header, grid=grid, k=k, moved=join.store.header.view != view)
        left_out = LeftOut.known(index.num_samples, join)
        ids = np.flatnonzero(~(left_out.bad | left_out.missing))
        self._ids = ids[rank * len(ids) // world : (rank + 1) * len(ids) // world]
        self.num_images = len(ids)
        self._index, self.batch_size = index, batch_size
        self.bad_images: dict[str, str] = {}
        choices = [PatchChoice(arm, grid, seed, join, drawn_in="view") for arm in arms]
        self._pool = Pool(_EvalJob(index, Reader(index, join, bad_images), view, grid, choices, k), workers)

    def __iter__(self) -> Iterator[EvalBatch]:
        """This rank's batches. Raises WorkerError, BadImageError, DamageError."""
        starts = range(0, len(self._ids), self.batch_size)
        for batches, bad in self._pool.results(self._ids[start : start + self.batch_size] for start in starts):
            self.bad_images |= {self._index.key(number): problem for number, problem in bad.items()}
            yield from batches


@dataclass(frozen=True, eq=False)
class _EvalJob:
    """The worker's side: ids in, batches out (two where some images have no ticket and are shown whole)."""

    index: ShardIndex
    reader: Reader
    view: ViewSpec
    grid: Grid
    choices: list[PatchChoice]
    k: int | None

    def images(self, ids: Ids) -> Ids:
        return self.reader.wanted(ids)

    def __call__(self, ids: Ids, crashed: Crashed) -> tuple[list[EvalBatch], dict[int, str]]:
        images, bad = self.reader.read(ids, crashed)
        good = [i for i, image in enumerate(images) if image is not None]
        return self._batches(ids[good], [image for image in images if image is not None]), bad

    def _batches(self, ids: Ids, images: list[torch.Tensor]) -> list[EvalBatch]:
        if not images:
            return []
        pixels = torch.stack([render(image, self.view) for image in images])
        showings = []
        for sample_id, image in zip(ids.tolist(), images, strict=True):
            size = (image.shape[1], image.shape[2])
            showings.append(Showing(sample_id, self.index.key(sample_id), size, self.view.view_of(*size, self.grid)))
        labels = torch.from_numpy(self.index.label[ids].astype(np.int64))
        patches: dict[str, torch.Tensor | None] = {
            choice.arm: None if choice.arm == "dense" else choice.kept(showings, 0, self.k) for choice in self.choices
        }
        batch = EvalBatch(pixels, patches, labels, torch.from_numpy(ids))
        ticket = next((choice for choice in self.choices if choice.arm == "ticket"), None)
        has_ticket = np.ones(len(ids), bool) if ticket is None else ticket.has_patches(showings)
        if has_ticket.all():
            return [batch]
        rest = batch.of(~has_ticket)
        rest = replace(rest, patches=rest.patches | {"ticket": None})
        return [batch.of(has_ticket), rest] if has_ticket.any() else [rest]
