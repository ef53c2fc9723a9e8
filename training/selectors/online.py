"""The selector of the online mode: it ranks the student's images in the loop, seeing them as it was trained to."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dlth.tickets import Budget, Grid
from dlth.tickets.errors import InputError
from dlth.tickets.format.provenance import DEFAULT_RANKER, describe_selector
from dlth.training.models.pixels import Pixels
from dlth.training.models.weights_metadata import ABOUT_IMAGES, WeightsFile
from dlth.training.reporter import Reporter
from dlth.training.selectors.chosen import choose
from dlth.training.selectors.patch_ranker import PatchRanker, Select, Selection
from dlth.training.selectors.rankers import RankerSpec
from dlth.training.settings.train_config import TrainConfig

FLAGS = {
    "model": "--selector",
    "model_kwargs": "--selector-kwargs",
    "blocks": "--selector-blocks",
    "fuse_tokens": "--selector-fuse-tokens",
    "tokens": "k of the tickets",
}
"""Flags of what a selector's weights record, where a training run gives the bare name to its student."""


@dataclass(frozen=True)
class OnlineSelector:
    """A ranker in the loop, by which name, and what a result says of it."""

    selector: PatchRanker
    ranker: str = DEFAULT_RANKER

    def ranking(self, students: Pixels) -> Select:
        """Its `select` for images [B, 3, H, W] that are normalised, and sized, as the student wants them."""
        frame = self.selector.frame
        own = Pixels(frame.mean, frame.std)

        def select(images: Tensor, budget: Budget | None = None) -> Selection:
            images = own.renormalised(images, students)
            if images.shape[-2:] != frame.size:  # the same grid with patches of another size
                images = F.interpolate(images, frame.size, mode="bicubic", antialias=True)
            return self.selector.select(images, budget)

        return select

    @property
    def text(self) -> str:
        """What it is, in one line."""
        return f"{describe_selector(self.selector.info, self.ranker)}, in the loop"

    def facts(self) -> dict[str, Any]:
        """What ranks the patches: ranker, model, digest and source of its weights, blocks, and its rates."""
        info, budget, frame = self.selector.info, self.selector.budget, self.selector.frame
        return {
            "ranker": self.ranker,
            "model": info.model,
            "weights_sha256": info.weights_sha256,
            "weights_source": info.weights_source,
            "blocks": list(info.blocks),
            "fuse_tokens": info.fuse_tokens,
            "stage_keep": budget.stage_keep,
            "stage_tokens": list(budget.stage_tokens),
            "mean": list(frame.mean),
            "std": list(frame.std),
            "img_size": list(frame.size),
        }


def open_selector(
    config: TrainConfig,
    k: int | None,
    grid: Grid,
    device: torch.device,
    reporter: Reporter,
    whose: str = "the student has",
) -> OnlineSelector:
    """Make the selector that the settings name, with what its weights record, on the device.

    `k`: how many patches it keeps; None where nothing but its weights may say so. `whose` the grid is, for messages.

    Raises:
        InputError: no trained weights or some that are no numbers, no model, no rate, or another grid
    """
    if not (config.selector_checkpoint or config.selector_pretrained):
        raise InputError(
            "the online mode needs a trained selector: --selector-checkpoint FILE or --selector-pretrained"
        )
    settings: dict[str, Any] = {
        "model": config.selector,
        "model_kwargs": config.selector_kwargs,
        "blocks": config.selector_blocks,
        "fuse_tokens": config.selector_fuse_tokens,
    }
    settings |= dict.fromkeys(("img_size", *ABOUT_IMAGES))
    # a share says more than its k: the rates of stages and schedules
    rates = {"stage_keep": None, "keep": config.share, "tokens": k if config.share is None else None}
    weights = WeightsFile.find(config.selector_checkpoint) if config.selector_checkpoint else None
    if weights is not None:
        settings = weights.settle(settings, reporter.note, FLAGS)
        rates = weights.settle_rates(rates, reporter.note, FLAGS)
    if all(rate is None for rate in rates.values()):
        raise InputError(f"nothing says how many patches the {config.arm} arm keeps: give --keep, or --tickets")
    if settings["model"] is None:
        raise InputError(f"{config.selector_checkpoint} does not say of which model it is: give --selector")
    spec = RankerSpec(
        settings["model"],
        {"img_size": settings["img_size"] or config.img_size, **(settings["model_kwargs"] or {})},
        weights,
        images={name: settings[name] for name in ABOUT_IMAGES},
        blocks=settings["blocks"],
        fuse_tokens=bool(settings["fuse_tokens"]),
        rates=rates,
        flags="--selector-kwargs",
    )
    chosen = choose(config.selector_ranker, spec, device)
    if chosen.why:
        reporter.note(f"selector's ranker: {chosen.name} ({chosen.why})")
    if chosen.ranker.frame.grid != grid:
        theirs = f"the selector ranks {chosen.ranker.frame.grid} patches, {whose} {grid}"
        raise InputError(f"{theirs}: both need the same grid")
    return OnlineSelector(chosen.ranker, chosen.name)
