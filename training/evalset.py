"""A validation set as a student sees it: images in timm's evaluation crop, with the patches of each kind of tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import timm.data
import torch

from dlth.data.evaluation import EvalLoader
from dlth.data.index import ShardIndex
from dlth.data.join import Join, check_compatible, join
from dlth.data.patches import Arm
from dlth.tickets import Grid, TicketStore, ViewSpec, num_kept
from dlth.training.distributed import World
from dlth.training.measure import EvalResult, measure
from dlth.training.models import grid_of, patch_size_of
from dlth.training.step import Pixels, Precision, Rank
from dlth.training.ticket_vit import TicketViT

Note = Callable[[str], None]


@dataclass(frozen=True)
class Frame:
    """What the student looks at: its grid, its image size (height, width) in pixels, and how its pixels are made."""

    grid: Grid
    size: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str
    crop_pct: float

    @classmethod
    def of(
        cls,
        vit: torch.nn.Module,
        mean: tuple[float, float, float] | None,
        std: tuple[float, float, float] | None,
        crop_pct: float | None,
    ) -> Frame:
        """As the settings say, otherwise as timm's configuration of the model does."""
        own, grid, patch = timm.data.resolve_model_data_config(vit), grid_of(vit), patch_size_of(vit)
        size = grid.rows * patch, grid.cols * patch
        return cls(
            grid, size, mean or own["mean"], std or own["std"], own["interpolation"], crop_pct or own["crop_pct"]
        )

    @property
    def eval_view(self) -> ViewSpec:
        """The frame of evaluation: timm's crop."""
        return ViewSpec("center", *self.size, str(self.crop_pct), self.interpolation, antialias=True)


@dataclass(frozen=True)
class EvalSet:
    """Images with labels, their tickets where there are any (`join`), and how many patches `k` are kept (None: all)."""

    index: ShardIndex
    frame: Frame
    k: int | None
    join: Join | None
    seed: int
    batch_size: int
    workers: int
    bad_images: Literal["error", "skip"]

    def kinds(self, has_selector: bool = False) -> tuple[Arm, ...]:
        """Kinds of tokens to measure: dense always; with k, random, and ticket where tickets can be had."""
        if self.k is None:
            return ("dense",)
        return ("dense", "ticket", "random") if self.join is not None or has_selector else ("dense", "random")

    def evaluate(
        self, student: TicketViT, world: World, pixels: Pixels, precision: Precision, rank: Rank | None = None
    ) -> EvalResult:
        """Measure a student on the whole set; `rank` is a selector that stands in where there is no ticket file."""
        loader = EvalLoader(
            self.index,
            view=self.frame.eval_view,
            grid=self.frame.grid,
            arms=self.kinds(),
            k=self.k,
            join=self.join,
            seed=self.seed,
            batch_size=self.batch_size,
            rank=world.rank,
            world=world.size,
            workers=self.workers,
            bad_images=self.bad_images,
        )
        rank = rank if self.join is None else None
        kinds = self.kinds(rank is not None)
        results = measure(student, loader, kinds, self.index.num_samples, world, pixels, precision, self._best(rank))
        every = self.frame.grid.num_patches
        keys = tuple(key for shard in range(len(self.index.shards)) for key in self.index.keys(shard))
        tokens: dict[str, int] = {kind: every if kind == "dense" else self.k or every for kind in kinds}
        return EvalResult(keys, self.index.label, results, tokens)

    def _best(self, rank: Rank | None) -> Rank | None:
        return None if rank is None else lambda images: rank(images)[:, : self.k]


def tokens_kept(keep: str | None, grid: Grid, *stores: TicketStore | None) -> int | None:
    """How many patches are kept: the share asked for, else the number of the first ticket file; None without either.

    The number is never worked out from a file's share, which has six digits: 7 of 9 patches would become 8.

    Raises:
        InputError: a share that makes no sense
    """
    if keep is not None:
        return num_kept(keep, grid.num_patches)
    return next((store.header.k for store in stores if store is not None), None)


def join_val(
    index: ShardIndex,
    store: TicketStore | None,
    frame: Frame,
    k: int | None,
    split: str | None,
    missing: Literal["error", "dense", "random", "skip"],
    note: Note,
) -> Join | None:
    """Find the ticket of every validation image; None without a ticket file.

    Raises:
        MismatchError: tickets of another grid, split or data set, or fewer patches than asked for
        MissingTicketError: images without a ticket, if that is an error
    """
    if store is None:
        return None
    moved = store.header.view != frame.eval_view
    check_compatible(store.header, grid=frame.grid, k=k, moved=moved, split=split or "")
    found = join(index, store, missing)
    note(f"validation: {found.coverage}")
    return found
