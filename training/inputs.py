"""The images and tickets of a run: opened, joined, and handed out as steps and as evaluation batches.

A thin layer between settings and `dlth.data`: it decides nothing that the loaders decide, and holds what a result must
name (fingerprints of the images, identities of the ticket files, k).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dlth.data.augment import Augmentation
from dlth.data.batch import Batch
from dlth.data.classes import check_head, check_labels, require_labels
from dlth.data.crashes import crashing
from dlth.data.identity import DataIdentity
from dlth.data.index import ShardIndex, open_index
from dlth.data.join import Join, check_compatible, join
from dlth.data.left_out import LeftOut
from dlth.data.loader import TrainLoader
from dlth.data.mixing import Mixing
from dlth.data.order import Batching, epoch_order
from dlth.data.reader import Reader
from dlth.data.splits import EVALUATION
from dlth.data.ticket_cache import local_tickets
from dlth.tickets import Budget, TicketHeader, TicketStore
from dlth.tickets.errors import InputError, shown
from dlth.tickets.origin import describe
from dlth.tickets.progress import Note
from dlth.training.config import TrainConfig
from dlth.training.distributed import World
from dlth.training.evalset import EvalSet, Frame, described, join_val, moved_text, tokens_kept
from dlth.training.schedule import KeepSchedule


@dataclass
class Inputs:
    """What a run reads. `join_tickets` must be called once the model is known, and before anything is read.

    `left_out`: the training images that the tickets rule out; `met`: the corrupt ones that this rank has met since it
    started, by id, and what was wrong with each; `schedule`: what each step keeps, None where that is every patch.
    """

    config: TrainConfig
    world: World
    index: ShardIndex
    val_index: ShardIndex | None
    store: TicketStore | None
    val_store: TicketStore | None
    k: int | None = None
    schedule: KeepSchedule | None = None
    frame: Frame = field(init=False)
    join: Join | None = None
    val: EvalSet | None = None
    left_out: LeftOut = field(init=False)
    met: dict[int, str] = field(default_factory=dict)
    _loader: TrainLoader | None = None

    @property
    def global_batch(self) -> int:
        """Images of a step over all ranks."""
        return self.config.batch_size * self.config.grad_accum_steps * self.world.size

    @property
    def batching(self) -> Batching:
        """How an epoch's order is cut into steps, ranks and micro-batches."""
        config = self.config
        micro_batches, repeats = config.grad_accum_steps, config.aug_repeats
        return Batching(self.global_batch, self.world.size, micro_batches, repeats, config.drop_last)

    @property
    def num_classes(self) -> int:
        """Size of the student's head."""
        return self.config.num_classes or self.index.num_classes

    @property
    def num_train(self) -> int:
        """Images of an epoch's order: those left out for want of a ticket are not counted, corrupt ones are."""
        return self.left_out.num_ordered

    @property
    def epoch_images(self) -> int:
        """Images that one epoch shows: fewer than there are with repeated views, or where the last batch is dropped."""
        return self.batching.num_shown(self.num_train)

    @property
    def steps_per_epoch(self) -> int:
        """Steps of an epoch, the same on every rank; the last two may be short."""
        return self.batching.num_steps(self.num_train)

    @property
    def num_val(self) -> int:
        """Images of the validation set, 0 without one."""
        return 0 if self.val_index is None else self.val_index.num_samples

    @property
    def identity(self) -> str:
        """Identity of the training tickets; empty without them, and where a selector in the loop takes their place."""
        return self.store.identity if self.store is not None and self.config.mode != "online" else ""

    @property
    def tickets_are(self) -> str:
        """What the training tickets are, in words; empty where there is no identity."""
        return describe(self.store.header) if self.store is not None and self.identity else ""

    @property
    def val_identity(self) -> str:
        """Identity of the validation tickets, empty without them."""
        return self.val_store.identity if self.val_store is not None else ""

    @property
    def keep(self) -> str:
        """The share of patches as it was asked for, or as the ticket file has it, rounded; empty where all are kept."""
        if self.config.keep is not None:
            return self.config.keep
        return self.store.header.keep if self.store is not None else ""

    def join_tickets(self, frame: Frame, note: Note) -> None:
        """Fix k, and find every image's ticket.

        Raises:
            MismatchError: tickets of another grid, split or data set, or fewer patches than asked for
            MissingTicketError: images without a ticket, if that is an error
            InputError: a share of patches that makes no sense, labels that the head does not have
        """
        config, self.frame = self.config, frame
        self.k = tokens_kept(config.keep, frame.grid, self.store, self.val_store)
        check_labels(self.num_classes, self.index, self.val_index)
        if self.store is not None and config.mode != "online":
            split = config.split or ""
            moved, grid = config.arm == "ticket", frame.grid
            check_compatible(
                self.store.header, grid=grid, k=self.k, moved=moved, split=split, patch_size=frame.patch_size
            )
            if config.arm == "ticket" and (text := made_for_evaluation(self.store.header)):
                note(f"training: {text}")
            self.join = join(self.index, self.store, config.missing)
            note(f"training: {self.join.coverage}")
        self.left_out = LeftOut.known(self.index.num_samples, self.join)
        if self.val_index is not None:
            if self.val_index.fingerprint == self.index.fingerprint:
                note("the validation images are the training images, by their keys: accuracies say nothing of new ones")
            found = join_val(self.val_index, self.val_store, frame, self.k, config.val_split, config.missing, note)
            self.val = EvalSet(
                self.val_index,
                frame,
                self.k,
                found,
                config.seed,
                config.validation_batch_size or config.batch_size,
                config.workers,
                config.bad_images,
            )

    def train_steps(self, epoch: int, start: int) -> Iterator[list[Batch]]:
        """This rank's micro-batches of each step of an epoch, from step `start` on."""
        step: list[Batch] = []
        for batch in self._train_loader().epoch(epoch, start):
            self.met |= batch.bad
            step.append(batch)
            if batch.last:
                yield step
                step = []

    def check(self) -> None:
        """Put the training loader together, so that what it refuses is refused before the first step.

        Raises:
            DlthError: augmentation, batches, tickets or workers that do not fit
        """
        parts, steps = self.batching.num_parts, self.config.grad_accum_steps
        if steps > 1 and parts > self.num_train:
            raise InputError(
                f"--grad-accum-steps {steps} cuts a step into {parts} forwards, and an epoch has {self.num_train}"
                f" images for them: give at most {max(1, self.num_train // self.world.size)}"
            )
        self._train_loader()

    def _train_loader(self) -> TrainLoader:
        config, frame = self.config, self.frame
        if self._loader is None:
            selects = config.mode == "online" and config.arm == "ticket"
            self._loader = TrainLoader(
                self.index,
                grid=frame.grid,
                batching=self.batching,
                augmentation=self._augmentation(),
                seed=config.seed,
                arm="dense" if selects else config.arm,
                k=None if selects or config.arm == "dense" else self.tokens,
                join=self.join,
                random_tokens=config.random_tokens,
                drawn_in="view" if config.mode == "online" else "image",
                hidden=config.hidden,
                mixing=self._mixing(),
                window=config.shuffle_window,
                view_epochs=config.frozen_views if config.mode == "frozen" else None,
                rank=self.world.rank,
                workers=config.workers,
                bad_images=config.bad_images,
            )
        return self._loader

    def budget(self, epoch: int, step: int = 0) -> Budget | None:
        """What a step of an epoch keeps; None where all patches are trained on."""
        return None if self.schedule is None else self.schedule.budget(epoch, step)

    def tokens(self, epoch: int, step: int = 0) -> int:
        """Patches kept at a step of an epoch."""
        kept = self.budget(epoch, step)
        return self.frame.grid.num_patches if kept is None else kept.k

    def _augmentation(self) -> Augmentation:
        config, frame = self.config, self.frame
        return Augmentation(
            size=frame.size,
            scale=config.scale,
            ratio=config.ratio,
            interpolation=config.train_interpolation,
            hflip=config.hflip,
            rand_augment=config.aa or "",
            color_jitter=config.color_jitter,
            reprob=config.reprob,
            mean=frame.mean,
            std=frame.std,
        )

    def _mixing(self) -> Mixing:
        config = self.config
        return Mixing(
            mixup_alpha=config.mixup,
            cutmix_alpha=config.cutmix,
            prob=config.mixup_prob,
            switch_prob=config.mixup_switch_prob,
            off_epoch=config.mixup_off_epoch,
            group=config.mix_group,
        )

    def why_bad(self, ids: Sequence[int]) -> dict[str, str]:
        """Keys of corrupt training images, and what is wrong with each; those that other ranks met are read again."""
        others = [sample_id for sample_id in ids if sample_id not in self.met]
        reader, crashed = Reader(self.index, bad_images="skip"), crashing(self.index, others)
        causes = self.met | reader.read(np.array(others, dtype=np.int64), crashed)[1]
        return {self.index.key(number): causes.get(number, "another process could not read it") for number in ids}

    def trained_on(self, met: Sequence[int]) -> dict[str, Any]:
        """Which images a run has trained on; `met`: ids of the corrupt ones that any rank met."""
        left_out = self.left_out.with_bad(met)
        rows, config = np.diff(self.index.row_start), self.config
        first = epoch_order(rows, config.seed, 0, config.shuffle_window, left_out.missing)
        return {
            "images": left_out.num_trained,
            "left_out": left_out.counts(),
            "visited_sha256": left_out.visited_sha256(first[: self.epoch_images]),
        }

    def keys(self, ids: Sequence[int]) -> list[str]:
        """Keys of training images."""
        return [self.index.key(number) for number in ids]

    def identities(self) -> dict[str, Any]:
        """What the images and tickets are, whatever they are called and wherever they lie."""
        val = self.val_index.identity if self.val_index is not None else DataIdentity("", "", "", "")
        return {
            **self.index.identity.named("data"),
            **val.named("val"),
            "tickets": self.identity,
            "val_tickets": self.val_identity,
            "k": self.k,
        }

    def coverage(self) -> dict[str, str]:
        """How images and tickets met, as the join reports it, by set; and where validation tickets were moved."""
        joins = {"data": self.join, "val": self.val.join if self.val is not None else None}
        texts = {name: str(found.coverage) for name, found in joins.items() if found is not None}
        if self.val_store is not None and (moved := moved_text(self.val_store.header.view, self.frame.eval_view)):
            texts["val"] += "\n" + moved
        return texts

    def facts(self) -> dict[str, Any]:
        """Tickets as a person would read them."""
        facts = {"tickets": self.identity, "tickets are": self.tickets_are, "validation tickets": self.val_identity}
        if self.val is not None:
            about = self.val.about_tickets()
            facts["validation tickets are"] = about.get("tickets_are", "")
            facts["validation view"] = described(self.frame.eval_view)
        return {name: value for name, value in facts.items() if value}


def made_for_evaluation(header: TicketHeader) -> str:
    """What a person should know of tickets that train a model though they look made to evaluate one; else empty."""
    signs = []
    if header.view.kind == "center":
        signs.append(f"on {described(header.view)}, outside of which nothing has a rank though training crops show it")
    if header.dataset.split.lower() in EVALUATION:
        signs.append(f"for the split {shown(header.dataset.split)!r}")
    return f"these tickets were made {' and '.join(signs)}: they look like tickets for evaluation" if signs else ""


def open_inputs(config: TrainConfig, world: World) -> Inputs:
    """Open the shards' indexes and the ticket files; the leading rank goes first, as it may have to make an index.

    Raises:
        DlthError: shards or ticket files that cannot be read, images or labels that cannot be trained on
    """
    for leads in (True, False):
        with world.together():
            if world.leads is leads:
                inputs = _open(config, world)
    return inputs


def _open(config: TrainConfig, world: World) -> Inputs:
    index = open_index(config.data, split=config.split)
    val_index = open_index(config.val, split=config.val_split) if config.val is not None else None
    for images in (index, val_index):
        if images is not None:
            require_labels(images)
    if config.num_classes is None:
        check_head(index)
    if config.val_tickets is not None and val_index is None:
        raise InputError("--val-tickets was given without --val, the images they belong to")
    store = TicketStore(local_tickets(config.tickets)) if config.tickets is not None else None
    val_store = TicketStore(local_tickets(config.val_tickets)) if config.val_tickets is not None else None
    return Inputs(config, world, index, val_index, store, val_store)
