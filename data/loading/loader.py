"""Batches for training: worker processes over a plan that is computed, never discovered.

The main process knows the whole epoch (`order`) and sends each worker one request after another: these samples, this
step. A worker reads and decodes them, augments, takes their tickets, projects them in one call and returns batches.
What a batch holds is a function of the request alone, so workers and ranks change nothing, and resuming means to start
sending at a step. Rejected: an IterableDataset (each worker would have to know which part is its own, and a resumed one
skips by reading) and webdataset's pipeline here (order depends on the number of workers; no exact epochs under several
ranks).

With `missing='dense'` images of one micro-batch keep different numbers of patches, which no single tensor holds: such a
micro-batch comes as two batches, one with patches and one without, whose weights add up to the whole. Pairs that mix
stay together: where one of them has no ticket, both are trained on all patches.

A bad image stays in the order: one that stage 1 listed is not read, another is found only when it is read. Either way
its neighbour of the pair takes its place with weight 0 (so that mixing does not show a black square), so all arms see
the same batches, with tickets or without. What was found is named in the batch and in `TrainLoader.bad_images`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import compress
from typing import Any, Literal

import numpy as np
import torch

from dlth.data.images.augment import Augmentation, augment
from dlth.data.images.kept_pixels import kept_pixels
from dlth.data.images.mixing import BatchMix, Mixing, batch_mix, partners
from dlth.data.joining.join import Join, check_compatible
from dlth.data.loading.batch import Batch
from dlth.data.loading.cells import cells_of
from dlth.data.loading.crashes import Crashed
from dlth.data.loading.left_out import LeftOut
from dlth.data.loading.order import DEFAULT_WINDOW, Batching, Ids, Part, epoch_order, live_shards
from dlth.data.loading.patches import Arm, DrawnIn, PatchChoice, RandomTokens, Showing, hidden_patches, later
from dlth.data.loading.reader import BadImages, Reader
from dlth.data.loading.workers import Pool
from dlth.data.shards.classes import require_labels
from dlth.data.shards.index import ShardIndex
from dlth.tickets.errors import InputError, shown
from dlth.tickets.ranking.grid import Grid
from dlth.tickets.ranking.view import View
from dlth.tickets.store.label_store import LabelStore
from dlth.tickets.store.ticket_store import TicketStore

NumKept = int | Callable[[int, int], int | None]
"""Patches kept: a number, or a function of (epoch, step), None where images are shown whole."""
Hidden = Literal["demote", "keep"]
"""What is done about patches that show fill or noise: their rank falls by the share that does, or nothing."""


@dataclass(frozen=True, slots=True)
class Request:
    """One micro-batch as the main process asks for it."""

    part: Part
    epoch: int
    step: int
    last: bool
    k: int | None
    mix: BatchMix


class TrainLoader:
    """Augmented, ticketed training batches of one rank.

    `grid`: the model's; `k`: patches kept (None only in the dense arm); `labels`: where the images' token labels lie,
    which come with the batches; `view_epochs`: None for new views whenever an image is shown, n for n seeded views of
    each, replayed in turn ('frozen'); `drawn_in`: where the random arm draws; `hidden`: what is done about patches that
    show fill or noise; `embeds_kept_only`: the model takes the pixels of kept patches, so batches are cut where nothing
    mixes; `workers`: processes that read, 0 for none. Raises InputError for settings that do not fit, MismatchError
    where the tickets do not.
    """

    def __init__(
        self,
        index: ShardIndex,
        *,
        grid: Grid,
        batching: Batching,
        augmentation: Augmentation,
        seed: int,
        arm: Arm = "ticket",
        k: NumKept | None = None,
        join: Join[TicketStore] | None = None,
        labels: Join[LabelStore] | None = None,
        random_tokens: RandomTokens = "epoch",
        drawn_in: DrawnIn = "image",
        hidden: Hidden = "demote",
        embeds_kept_only: bool = False,
        mixing: Mixing | None = None,
        window: int = DEFAULT_WINDOW,
        view_epochs: int | None = None,
        rank: int = 0,
        workers: int = 0,
        bad_images: BadImages = "error",
    ) -> None:
        self.batching, self.seed, self.window, self.rank, self.k = batching, seed, window, rank, k
        self.mixing = mixing or Mixing()
        self.size = (grid.rows, grid.cols) if self.mixing.tokens else augmentation.size
        self.bad_images: dict[str, str] = {}
        self._check(index, grid, arm, view_epochs, hidden)
        if join is not None and arm == "ticket":
            check_compatible(join.store.header, grid=grid, k=k if isinstance(k, int) else None)
        self._shard_rows = np.diff(index.row_start)
        left_out = LeftOut.known(index.num_samples, join)
        self._index, self._removed, self.num_samples = index, left_out.missing, left_out.num_ordered
        if left_out.num_trained == 0:
            raise InputError("no image is left to train on: every one is bad or without a ticket")
        for each in (join, labels):
            if each is not None:
                _keep_open(each, self._order(0))
        choice = PatchChoice(arm, grid, seed, join, random_tokens, drawn_in)
        cut = embeds_kept_only and not (self.mixing.active or self.mixing.tokens)
        reader, num_views = Reader(index, join, bad_images, labels), batching.num_views
        job = _TrainJob(index, reader, augmentation, choice, seed, num_views, view_epochs, hidden, cut)
        self._pool = Pool(job, workers)

    @property
    def num_steps(self) -> int:
        """Steps of an epoch, on every rank."""
        return self.batching.num_steps(self.num_samples)

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """This rank's batches of an epoch from `start_step` on; one epoch at a time.

        Raises WorkerError, BadImageError or DamageError.
        """
        for batches in self._pool.results(self._plan(epoch, start_step)):
            for batch in batches:
                self.bad_images |= {self._index.key(number): problem for number, problem in batch.bad.items()}
                yield batch

    def _check(self, index: ShardIndex, grid: Grid, arm: Arm, view_epochs: int | None, hidden: Hidden) -> None:
        if self.k is None and arm != "dense":
            raise InputError(f"the {arm} arm needs k, the number of patches to keep")
        if isinstance(self.k, int) and not 1 <= self.k <= grid.num_patches:
            raise InputError(f"k must be from 1 to {grid.num_patches} (the patches of the {grid} grid), got {self.k}")
        if not 0 <= self.rank < self.batching.world:
            raise InputError(f"rank {self.rank} is not one of {self.batching.world}")
        if view_epochs is not None and view_epochs < 1:
            raise InputError(f"view_epochs must be at least 1, got {view_epochs}")
        if hidden not in ("demote", "keep"):
            raise InputError(f"hidden is 'demote' or 'keep', got {shown(hidden)!r}")
        if self.mixing.active and not self.batching.paired:
            raise InputError(
                f"mixing works on pairs: a micro-batch must have an even size, got {self.batching.part_size} images"
            )
        require_labels(index)

    def _order(self, epoch: int) -> Ids:
        return epoch_order(self._shard_rows, self.seed, epoch, self.window, self._removed)

    def _plan(self, epoch: int, start_step: int) -> Iterator[Request]:
        order = self._order(epoch)
        for step in range(start_step, self.num_steps):
            k = self.k(epoch, step) if callable(self.k) else self.k
            parts = self.batching.parts(order, step, self.rank)
            for number, part in enumerate(parts, start=1):
                stop = part.start + len(part.ids)
                mix = batch_mix(self.mixing, self.size, self.seed, epoch, step, part.start, stop)
                yield Request(part, epoch, step, number == len(parts), k, mix)


@dataclass(frozen=True, eq=False)
class _TrainJob:
    """The worker's side: a request in, batches out; `frozen` views of each image, seen one after the other, or None."""

    index: ShardIndex
    reader: Reader
    augmentation: Augmentation
    choice: PatchChoice
    seed: int
    num_views: int
    frozen: int | None
    hidden: Hidden
    cut: bool

    def images(self, request: Request) -> Ids:
        return self.reader.wanted(request.part.ids)

    def __call__(self, request: Request, crashed: Crashed) -> list[Batch]:
        part, mix, cells = request.part, request.mix, self.reader.labels
        images, bad = self.reader.read(part.ids, crashed)
        pixels, showings = self._augmented(request, images)
        labels = self.index.label[[showing.sample_id for showing in showings]].astype(np.int64)
        weights = part.weights * np.array([image is not None for image in images], dtype=np.float32)
        batch = Batch(
            images=pixels,
            patches=None,
            labels=torch.from_numpy(labels),
            ids=torch.from_numpy(part.ids),
            weights=torch.from_numpy(weights),
            weight=float(weights.sum()),
            mix=mix,
            epoch=request.epoch,
            step=request.step,
            last=request.last,
            bad=bad,
            hidden=hidden_patches(showings, self.choice.grid, mix),
            token_labels=None if cells is None else cells_of(cells, showings, self.choice.grid),
        )
        if request.k is None:
            return [batch]
        chosen = self.choice.has_patches(showings)
        chosen &= chosen[partners(len(showings))] | ~mix.mixed
        if chosen.all():
            return [self._kept(batch, request.k, showings)]
        if not chosen.any():
            return [batch]
        with_tickets = replace(batch.of(chosen), last=False)
        rest = replace(batch.of(~chosen), bad={})
        return [self._kept(with_tickets, request.k, list(compress(showings, chosen))), rest]

    def _kept(self, batch: Batch, k: int, showings: list[Showing]) -> Batch:
        """The batch with the patches that its showings keep, and with no other pixels where it is cut."""
        hidden = batch.hidden if self.hidden == "demote" else None
        patches = self.choice.kept(showings, batch.epoch, k, batch.mix, hidden)
        kept, grid = batch.keeping(patches), self.choice.grid
        return replace(kept, images=kept_pixels(kept.images, patches, (grid.rows, grid.cols))) if self.cut else kept

    def _augmented(self, request: Request, images: list[torch.Tensor | None]) -> tuple[torch.Tensor, list[Showing]]:
        """Pixels uint8 [B, 3, height, width] and what they show; a bad image shows its neighbour, or nothing."""
        grid, index, ids, views = self.choice.grid, self.index, request.part.ids, request.part.views
        pixels = torch.zeros(len(images), 3, *self.augmentation.size, dtype=torch.uint8)
        showings: list[Showing] = []
        for i, (sample_id, view, image) in enumerate(zip(ids.tolist(), views.tolist(), images, strict=True)):
            key = index.key(sample_id)
            if image is None:
                showings.append(Showing(sample_id, key, (1, 1), View.whole(grid), number=view))
                continue
            draw: tuple[int | str, ...] = (request.epoch, key, *later(view))
            if self.frozen is not None:
                draw = ((request.epoch * self.num_views + view) % self.frozen, key)
            shown = augment(image, self.augmentation, grid, self.seed, *draw)
            pixels[i] = shown.image
            showings.append(Showing(sample_id, key, (image.shape[1], image.shape[2]), shown.view, shown.hidden, view))
        others = partners(len(images))
        for i in (i for i, image in enumerate(images) if image is None):
            if images[others[i]] is not None:
                pixels[i], showings[i] = pixels[others[i]], showings[others[i]]
        return pixels, showings


def _keep_open(join: Join[Any], order: Ids) -> None:
    """Let the store keep as many of its shards as are in use at once, so that each is read once an epoch and worker."""
    store, with_ticket = join.store, order[join.ticket_row[order] >= 0]
    in_use = live_shards(with_ticket, store.shard_and_row(join.ticket_row)[0]) if len(with_ticket) else 0
    store.cache_shards = max(store.cache_shards, in_use + 2)
