"""A validation set as a student sees it: images in timm's evaluation crop, with the patches of each arm.

Every image is decoded once and run once per arm. Ranks fill in the results of their images, and the tables are summed.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray

from dlth.data.joining.join import NO_TICKET, Join, check_compatible, join
from dlth.data.loading.batch import EvalBatch
from dlth.data.loading.evaluation import EvalLoader
from dlth.data.loading.patches import Arm
from dlth.data.shards.index import ShardIndex
from dlth.tickets import TicketStore
from dlth.tickets.callbacks import Note
from dlth.tickets.format.provenance import describe
from dlth.training.device.feed import sent_ahead
from dlth.training.device.precision import Precision
from dlth.training.device.reading import one_behind, read_later
from dlth.training.distributed.process_group import World
from dlth.training.evaluation.measure import EvalResult, ImageResults, scores
from dlth.training.evaluation.ticket_fit import moved_text, other_grid_text
from dlth.training.models.frame import Frame, described
from dlth.training.models.pixels import Pixels
from dlth.training.models.student import Student
from dlth.training.selectors.patch_ranker import Select
from dlth.training.settings.eval_config import EvalConfig
from dlth.training.settings.train_config import TrainConfig

DROPPING = "dropping"
"""The arm of a selector in training: patches fall on the way, as it picks them."""


@dataclass(frozen=True)
class EvalSet:
    """Images with labels, their tickets where there are any (`join`), and how many patches `k` are kept (None: all)."""

    config: TrainConfig | EvalConfig
    index: ShardIndex
    frame: Frame
    k: int | None
    join: Join[TicketStore] | None
    seed: int
    batch_size: int

    @classmethod
    def joined(
        cls,
        config: TrainConfig | EvalConfig,
        index: ShardIndex,
        store: TicketStore | None,
        frame: Frame,
        k: int | None,
        seed: int,
        batch_size: int,
        note: Note,
    ) -> Self:
        """The set with every image's ticket found, where there is a ticket file.

        Raises:
            MismatchError: tickets of another split or data set, that cannot be moved, or of too few patches
            MissingTicketError: images without a ticket, if that is an error
        """
        tickets = None
        if store is not None:
            moved, split = moved_text(store.header.view, frame.eval_view), config.val_split or ""
            check_compatible(store.header, grid=frame.grid, k=k, moved=bool(moved), split=split)
            tickets = join(index, store, config.missing)
            regridded = other_grid_text(store.header, frame.grid, frame.patch_size)
            for text in filter(None, (str(tickets.coverage), moved, regridded)):
                note(f"validation: {text}")
        return cls(config, index, frame, k, tickets, seed, batch_size)

    def arms(self, has_selector: bool = False) -> tuple[Arm, ...]:
        """Arms to measure: dense always; with k, random, and ticket where tickets can be had."""
        if self.k is None:
            return ("dense",)
        return ("dense", "ticket", "random") if self.join is not None or has_selector else ("dense", "random")

    def evaluate(
        self,
        student: Student,
        world: World,
        pixels: Pixels,
        precision: Precision,
        select: Select | None = None,
        selected_by: str = "",
    ) -> EvalResult:
        """Measure a student, which is on the world's device, on the whole set.

        Args:
            student: the model; its mode is put back afterwards
            world, pixels, precision: as in training
            select: a selector that gives the tickets where there is no ticket file
            selected_by: which selector that is, in words
        """
        loader = self._loader(world)
        if self.join is not None:
            select = None
        arms: tuple[str, ...] = self.arms(select is not None)
        arms, was_training = (*arms, *([DROPPING] if student.budget is not None else [])), student.training
        tables = {arm: torch.zeros(self.index.num_samples, 4, dtype=torch.float64) for arm in arms}
        student.eval()
        with torch.inference_mode():
            asked = (
                self._asked(batch, arms, student, pixels, precision, select)
                for batch in sent_ahead(loader, world.device)
            )
            for ids, found in one_behind(asked):
                for arm, rows in found.items():
                    tables[arm].index_add_(0, ids, rows)
        student.train(was_training)
        results: dict[str, ImageResults] = {arm: ImageResults.of(world.sum_(table)) for arm, table in tables.items()}
        every = self.frame.grid.num_patches
        keys = tuple(key for shard in range(len(self.index.shards)) for key in self.index.keys(shard))
        tokens: dict[str, int] = {arm: every if arm == "dense" else self.k or every for arm in arms}
        if student.budget is not None:
            tokens[DROPPING] = student.budget.k
        about = self.about_tickets() or {"tickets_are": selected_by}
        return EvalResult(keys, self.index.label, results, tokens, about, *self._stand_ins())

    def _asked(
        self,
        batch: EvalBatch,
        arms: tuple[str, ...],
        student: Student,
        pixels: Pixels,
        precision: Precision,
        select: Select | None,
    ) -> Callable[[], tuple[torch.Tensor, dict[str, torch.Tensor]]]:
        """Run a batch on every arm, on a GPU without waiting for it; the call that comes back waits, and gives the
        images' ids, and their `scores` for each arm.
        """
        ids, images, found = batch.ids, pixels(batch.images), []
        for arm in arms:
            with precision():
                selection = select(images) if arm == "ticket" and select is not None else None
                patches = batch.patches.get(arm) if selection is None else selection.patches[:, : self.k]
                own = {"budget": student.budget} if arm == DROPPING else {}
                logits = student(images, patches, **own).float()
            if selection is not None:  # where the selector's scores are no numbers, what it kept is no ticket
                logits = logits.masked_fill(selection.gap.isnan()[:, None], math.nan)
            found.append(scores(logits, batch.labels))
        reading = read_later(found)
        return lambda: (ids, dict(zip(arms, reading(), strict=True)))

    def _loader(self, world: World) -> EvalLoader:
        return EvalLoader(
            self.index,
            view=self.frame.eval_view,
            grid=self.frame.grid,
            arms=self.arms(),
            k=self.k,
            join=self.join,
            seed=self.seed,
            batch_size=self.batch_size,
            rank=world.rank,
            world=world.size,
            workers=self.config.workers,
            bad_images=self.config.bad_images,
        )

    def _stand_ins(self) -> tuple[NDArray[np.bool_] | None, Literal["whole", "random"]]:
        """Which images stand under "ticket" without one, and on what they are shown."""
        if self.join is None or self.join.coverage.policy not in ("dense", "random"):
            return None, "whole"
        lacking = self.join.ticket_row == NO_TICKET
        return (lacking if lacking.any() else None), "whole" if self.join.coverage.policy == "dense" else "random"

    def about_tickets(self) -> dict[str, str]:
        """What the ticket file's tickets are, the view they were made in and the one they are measured in, in words."""
        if self.join is None:
            return {}
        header = self.join.store.header
        views = {"view": described(self.frame.eval_view), "tickets_view": described(header.view)}
        return {"tickets_are": describe(header)} | views
