"""The images and tickets of a run: opened, then joined, as the model that was built for them sees them.

A thin layer between settings and `dlth.data`: it decides nothing that the loaders decide, and holds what a result must
name (fingerprints of the images, identities of the ticket files, k). Opening and joining are two steps, as the model
that stands between them takes its head from the images' classes, and gives its grid to the join.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np

from dlth.data.images.augment import Augmentation
from dlth.data.images.mixing import Mixing
from dlth.data.joining.join import Join, check_compatible, join
from dlth.data.loading.crashes import crashing
from dlth.data.loading.left_out import LeftOut
from dlth.data.loading.loader import TrainLoader
from dlth.data.loading.order import Batching, epoch_order
from dlth.data.loading.patches import Arm
from dlth.data.loading.reader import Reader
from dlth.data.shards.classes import check_head, check_labels, require_labels
from dlth.data.shards.identity import DataIdentity
from dlth.data.shards.index import ShardIndex, open_index
from dlth.data.shards.splits import EVALUATION
from dlth.data.sharing.ticket_cache import local_tickets
from dlth.tickets import Budget, TicketHeader, TicketStore
from dlth.tickets.callbacks import Note
from dlth.tickets.errors import InputError, MismatchError, shown
from dlth.tickets.format.provenance import describe
from dlth.tickets.store.label_store import LabelStore
from dlth.training.distributed.process_group import World
from dlth.training.evaluation.evalset import EvalSet
from dlth.training.evaluation.ticket_fit import moved_text, other_grid_text
from dlth.training.models.frame import Frame, described
from dlth.training.settings.selector_config import SelectorTrainConfig
from dlth.training.settings.train_config import TrainConfig


@dataclass(frozen=True)
class Files:
    """What the settings name, opened: images and tickets of training, and of validation where there are any.

    `num_classes`: size of the student's head; `labels`: the training images' token labels.
    """

    index: ShardIndex
    val_index: ShardIndex | None
    store: TicketStore | None
    val_store: TicketStore | None
    num_classes: int
    labels: LabelStore | None = None


@dataclass(frozen=True, eq=False)
class Inputs:
    """What a run reads, as a model of that frame sees it: images that have met their tickets.

    `k`: patches kept at the end of training and in evaluation, None where nobody said how many; `join`: where the
    training images' tickets lie, None where none are trained on; `labels`: where their token labels lie, likewise;
    `val`: the validation set, None without one.
    """

    config: TrainConfig
    world: World
    files: Files
    frame: Frame
    k: int | None
    join: Join[TicketStore] | None
    val: EvalSet | None
    labels: Join[LabelStore] | None = None

    @classmethod
    def joined(cls, config: TrainConfig, world: World, files: Files, frame: Frame, k: int | None, note: Note) -> Self:
        """Find every image's ticket.

        Raises:
            MismatchError: tickets of another split or data set, that cannot be moved, or of too few patches
            MissingTicketError: images without a ticket, if that is an error
            InputError: labels that the head does not have
        """
        index, val_index, store = files.index, files.val_index, files.store
        check_labels(files.num_classes, index, val_index)
        train_join = val = None
        if store is not None and config.mode != "online":
            split, moved = config.split or "", config.arm == "ticket"
            check_compatible(store.header, grid=frame.grid, k=k, moved=moved, split=split)
            texts = made_for_evaluation(store.header), other_grid_text(store.header, frame.grid, frame.patch_size)
            for text in filter(None, texts):
                if config.arm == "ticket":
                    note(f"training: {text}")
            train_join = join(index, store, config.missing)
            note(f"training: {train_join.coverage}")
        if val_index is not None:
            if val_index.fingerprint == index.fingerprint:
                note("the validation images are the training images, by their keys: accuracies say nothing of new ones")
            batch_size = config.validation_batch_size or config.batch_size
            val = EvalSet.joined(config, val_index, files.val_store, frame, k, config.seed, batch_size, note)
        return cls(config, world, files, frame, k, train_join, val, _labels(files, note))

    @cached_property
    def left_out(self) -> LeftOut:
        """The training images that the tickets rule out."""
        return LeftOut.known(self.files.index.num_samples, self.join)

    @cached_property
    def batching(self) -> Batching:
        """How an epoch's order is cut into steps, ranks and micro-batches."""
        config, size = self.config, self.world.size
        global_batch = config.batch_size * config.grad_accum_steps * size
        return Batching(global_batch, size, config.grad_accum_steps, config.aug_repeats, config.drop_last)

    @property
    def epoch_images(self) -> int:
        """Images that one epoch shows: fewer than there are with repeated views, or where the last batch is dropped."""
        return self.batching.num_shown(self.left_out.num_ordered)

    @cached_property
    def steps_per_epoch(self) -> int:
        """Steps of an epoch, the same on every rank; the last two may be short."""
        return self.batching.num_steps(self.left_out.num_ordered)

    @property
    def num_val(self) -> int:
        """Images of the validation set, 0 without one."""
        return 0 if self.val is None else self.val.index.num_samples

    @property
    def identity(self) -> str:
        """Identity of the training tickets; empty without them, and where a selector in the loop takes their place."""
        store = self.files.store
        return store.identity if store is not None and self.config.mode != "online" else ""

    @property
    def tickets_are(self) -> str:
        """What the training tickets are, in words; empty where there is no identity."""
        return describe(self.files.store.header) if self.files.store is not None and self.identity else ""

    @property
    def val_identity(self) -> str:
        """Identity of the validation tickets, empty without them."""
        return self.files.val_store.identity if self.files.val_store is not None else ""

    @property
    def keep(self) -> str:
        """The share of patches as it was asked for, or as the ticket file has it, rounded; empty where all are kept."""
        if self.config.share is not None:
            return self.config.share
        return self.files.store.header.keep if self.files.store is not None else ""

    def loader(self, budget: Callable[[int, int], Budget], embeds_kept_only: bool = False) -> TrainLoader:
        """This rank's training batches, with what `budget(epoch, step)` keeps of each image; where a selector in the
        loop picks it, images come with none. `embeds_kept_only`: of the student. Raises DlthError for augmentation,
        batches, tickets or workers that do not fit.
        """
        config, parts, num_images = self.config, self.batching.num_parts, self.left_out.num_ordered
        if config.grad_accum_steps > 1 and parts > num_images:
            raise InputError(
                f"--grad-accum-steps {config.grad_accum_steps} cuts a step into {parts} forwards, and an epoch has"
                f" {num_images} images for them: give at most {max(1, num_images // self.world.size)}"
            )
        picked_later = config.mode == "online" and config.arm == "ticket"
        arm: Arm = "dense" if picked_later or isinstance(config, SelectorTrainConfig) else config.arm

        def num_kept(epoch: int, step: int) -> int | None:
            kept = budget(epoch, step)
            return None if kept.keeps_all else kept.k

        return TrainLoader(
            self.files.index,
            grid=self.frame.grid,
            batching=self.batching,
            augmentation=augmentation_of(config, self.frame),
            seed=config.seed,
            arm=arm,
            k=None if arm == "dense" else num_kept,
            join=self.join,
            labels=self.labels,
            random_tokens=config.random_tokens,
            drawn_in="view" if config.mode == "online" else "image",
            hidden=config.hidden,
            embeds_kept_only=embeds_kept_only,
            mixing=self._mixing(),
            window=config.shuffle_window,
            view_epochs=config.frozen_views if config.mode == "frozen" else None,
            rank=self.world.rank,
            workers=config.workers,
            bad_images=config.bad_images,
        )

    def _mixing(self) -> Mixing:
        config = self.config
        return Mixing(
            mixup_alpha=config.mixup,
            cutmix_alpha=config.mix_token or config.cutmix,
            prob=config.mixup_prob,
            switch_prob=config.mixup_switch_prob,
            off_epoch=config.mixup_off_epoch,
            group=config.mix_group,
            tokens=config.mix_token > 0,
        )

    def why_bad(self, ids: Sequence[int], met: Mapping[int, str]) -> dict[str, str]:
        """Keys of corrupt training images, and what is wrong with each: as this rank has `met` it, or read again."""
        index, others = self.files.index, [sample_id for sample_id in ids if sample_id not in met]
        reader, crashed = Reader(index, bad_images="skip"), crashing(index, others)
        causes = {**met, **reader.read(np.array(others, dtype=np.int64), crashed)[1]}
        return {index.key(number): causes.get(number, "another process could not read it") for number in ids}

    def trained_on(self, met: Sequence[int]) -> dict[str, Any]:
        """The images and tickets of a run, and which it trained on; `met`: ids of the corrupt ones that ranks met."""
        left_out, config = self.left_out.with_bad(met), self.config
        rows = np.diff(self.files.index.row_start)
        first = epoch_order(rows, config.seed, 0, config.shuffle_window, left_out.missing)
        return self.identities() | {
            "images": left_out.num_trained,
            "left_out": left_out.counts(),
            "visited_sha256": left_out.visited_sha256(first[: self.epoch_images]),
            "epoch_images": self.epoch_images,
            "validation_images": self.num_val,
            "coverage": self._coverage(),
        }

    def identities(self) -> dict[str, Any]:
        """What the images and tickets are, whatever they are called and wherever they lie."""
        val = self.val.index.identity if self.val is not None else DataIdentity("", "", "", "")
        return {
            **self.files.index.identity.named("data"),
            **val.named("val"),
            "tickets": self.identity,
            "val_tickets": self.val_identity,
            **self._moved_from(),
            "k": self.k,
            **({"token_labels": self.labels.store.identity} if self.labels is not None else {}),
        }

    def _moved_from(self) -> dict[str, str]:
        """Grids of ticket files that are not the student's, from which tickets are moved, or random ones drawn."""
        files = {"tickets_grid": self.files.store, "val_tickets_grid": self.files.val_store}
        headers = {name: store.header for name, store in files.items() if store is not None}
        return {name: str(header.grid) for name, header in headers.items() if header.grid != self.frame.grid}

    def _coverage(self) -> dict[str, str]:
        """How images and tickets met, as the join reports it, by set; and where validation tickets were moved."""
        joins = {"data": self.join, "labels": self.labels, "val": self.val.join if self.val is not None else None}
        texts = {name: str(each.coverage) for name, each in joins.items() if each is not None}
        if self.files.val_store is not None:
            moved = moved_text(self.files.val_store.header.view, self.frame.eval_view)
            texts["val"] += "\n" + moved if moved else ""
        return texts

    def facts(self) -> dict[str, Any]:
        """Tickets as a person would read them."""
        facts = {"tickets": self.identity, "tickets are": self.tickets_are, "validation tickets": self.val_identity}
        if self.labels is not None:
            annotator = self.labels.store.header.annotator
            facts["token labels"] = f"{self.labels.store.identity}, of {shown(annotator.model, 80)}"
        if self.val is not None:
            facts["validation tickets are"] = self.val.about_tickets().get("tickets_are", "")
            facts["validation view"] = described(self.frame.eval_view)
        return {name: value for name, value in facts.items() if value}


def augmentation_of(config: TrainConfig, frame: Frame) -> Augmentation:
    """What the settings do to an image that a model of that frame is to see."""
    return Augmentation(
        size=frame.size,
        scale=config.scale,
        ratio=config.ratio,
        interpolation=config.train_interpolation,
        hflip=config.hflip,
        rand_augment=config.rand_augment,
        color_jitter=config.color_jitter,
        reprob=config.reprob,
        mean=frame.mean,
        std=frame.std,
    )


def made_for_evaluation(header: TicketHeader) -> str:
    """What a person should know of tickets that train a model though they look made to evaluate one; else empty."""
    signs = []
    if header.view.kind == "center":
        signs.append(f"on {described(header.view)}, outside of which nothing has a rank though training crops show it")
    if header.dataset.split.lower() in EVALUATION:
        signs.append(f"for the split {shown(header.dataset.split)!r}")
    return f"these tickets were made {' and '.join(signs)}: they look like tickets for evaluation" if signs else ""


def _labels(files: Files, note: Note) -> Join[LabelStore] | None:
    """Where the training images' token labels lie. Raises MismatchError for labels of other classes than the head's."""
    if files.labels is None:
        return None
    theirs = files.labels.header.num_classes
    if theirs != files.num_classes:
        raise MismatchError(
            f"the token labels are of {theirs} classes, and the student's head has {files.num_classes}: a class must be"
            " the same number in both (--num-classes)"
        )
    joined = join(files.index, files.labels)
    note(f"training: {joined.coverage}")
    return joined


def open_files(config: TrainConfig, world: World) -> Files:
    """Open the shards' indexes and the ticket files; the leading rank goes first, as it may have to make an index.

    Raises:
        DlthError: shards or ticket files that cannot be read, images or labels that cannot be trained on
    """
    for leads in (True, False):
        with world.together():
            if world.leads is leads:
                files = _open(config)
    return files


def _open(config: TrainConfig) -> Files:
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
    labels = LabelStore(local_tickets(config.token_labels)) if config.token_labels is not None else None
    return Files(index, val_index, store, val_store, config.num_classes or index.num_classes, labels)
