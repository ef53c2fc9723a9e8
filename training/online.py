"""The selector of the online mode: it ranks the student's images in the loop, seeing them as it was trained to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dlth.tickets import Budget, Grid, SelectorInfo
from dlth.tickets.errors import InputError
from dlth.tickets.origin import describe_selector
from dlth.training.config import TrainConfig
from dlth.training.frame import Frame
from dlth.training.models import build, default_blocks, on_black_image, resolve
from dlth.training.pixels import Pixels
from dlth.training.reporter import Reporter
from dlth.training.selector import Selection, Selector, check_weights
from dlth.training.step import Rank
from dlth.training.weights import weights_digest
from dlth.training.weights_note import ABOUT_IMAGES, WeightsFile

FLAGS = {"model": "--selector", "model_kwargs": "--selector-kwargs"}
"""Flags of what a selector's weights record, where a training run gives the bare name to its student."""


@dataclass(frozen=True)
class OnlineSelector:
    """A selector, what its images must be (`frame`), and what a result says of it."""

    selector: Selector
    frame: Frame
    info: SelectorInfo

    def ranking(self, students: Pixels) -> Rank:
        """Its `select` for images [B, 3, H, W] that are normalised, and sized, as the student wants them."""
        own = Pixels(self.frame.mean, self.frame.std)

        def rank(images: Tensor, budget: Budget | None = None) -> Selection:
            images = own.renormalised(images, students)
            if images.shape[-2:] != self.frame.size:  # the same grid with patches of another size
                images = F.interpolate(images, self.frame.size, mode="bicubic", antialias=True)
            return self.selector.select(images, budget)

        return rank

    @property
    def text(self) -> str:
        """What it is, in one line."""
        return f"{describe_selector(self.info)}, in the loop"

    def facts(self) -> dict[str, Any]:
        """What ranks the patches: model, digest and source of its weights, blocks, and its rates."""
        budget = self.selector.budget
        return {
            "model": self.info.model,
            "weights_sha256": self.info.weights_sha256,
            "weights_source": self.info.weights_source,
            "blocks": list(self.info.blocks),
            "fuse_tokens": self.info.fuse_tokens,
            "stage_keep": budget.stage_keep,
            "stage_tokens": list(budget.stage_tokens),
            "mean": list(self.frame.mean),
            "std": list(self.frame.std),
            "img_size": list(self.frame.size),
        }


def open_selector(
    config: TrainConfig, k: int | None, grid: Grid, device: torch.device, reporter: Reporter
) -> OnlineSelector:
    """Build the selector that the settings name, with what its weights record, in evaluation mode on the device.

    Raises:
        InputError: no trained weights or some that are no numbers, no model, or a grid that is not the student's
    """
    if not (config.selector_checkpoint or config.selector_pretrained):
        raise InputError(
            "the online mode needs a trained selector: --selector-checkpoint FILE or --selector-pretrained"
        )
    said: dict[str, Any] = {"model": config.selector, "model_kwargs": config.selector_kwargs, "img_size": None}
    said |= dict.fromkeys(ABOUT_IMAGES)
    weights = WeightsFile.find(config.selector_checkpoint) if config.selector_checkpoint else None
    if weights is not None:
        said, against = weights.settle(said, FLAGS)
        if against:
            reporter.note(against)
    if said["model"] is None:
        raise InputError(f"{config.selector_checkpoint} does not say of which model it is: give --selector")
    options = {"img_size": said["img_size"] or config.img_size, **(said["model_kwargs"] or {})}
    if weights is not None:
        vit, source = weights.build(said["model"], **options), weights.path.name
    else:
        vit, source = build(said["model"], pretrained=config.selector_pretrained, **options), "timm hub"
    blocks = config.selector_blocks or default_blocks(vit)
    tokens = k if config.keep is None else None  # a share says more than its k: the rates of stages and schedules
    selector = Selector(vit, blocks=blocks, fuse_tokens=config.selector_fuse_tokens, keep=config.keep, tokens=tokens)
    if selector.grid != grid:
        raise InputError(f"the selector ranks {selector.grid} patches, the student has {grid}: both need the same grid")
    digest = weights_digest(vit)
    check_weights(vit, source, digest)
    info = SelectorInfo(resolve(said["model"]), digest, source, selector.blocks, fuse_tokens=selector.fuse_tokens)
    frame = Frame.of(vit, **{name: said[name] for name in ABOUT_IMAGES})
    on_black_image(selector.to(device).rank, frame.size, device, "--selector-kwargs")
    return OnlineSelector(selector, frame, info)
