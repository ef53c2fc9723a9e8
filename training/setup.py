"""Every part of a run, opened, checked against the others, and built: what can be wrong is found here, before step 1.

The order is that of cost: settings, index, model, tickets, and only then the optimizer and the loaders.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import timm.data
import torch
from timm.utils import ModelEmaV3

from dlth.tickets import Grid
from dlth.tickets.errors import InputError
from dlth.tickets.seeding import derive
from dlth.training.config import TrainConfig
from dlth.training.distributed import World
from dlth.training.evalset import Frame
from dlth.training.inputs import Inputs, open_inputs
from dlth.training.measure import EvalResult
from dlth.training.models import build, default_blocks, resolve
from dlth.training.optim import SetRate, make_ema, make_optimizer, make_schedule
from dlth.training.outcome import LOOSE, STRICT, versions
from dlth.training.reporter import Reporter
from dlth.training.selector import Selector
from dlth.training.settings import is_free
from dlth.training.step import Pixels, Precision, Rank, Stepper
from dlth.training.ticket_vit import TicketViT
from dlth.training.weights import checkpoint_classes, load_weights, weights_digest

HEADLINE = {"ticket": ("ticket", "dense"), "random": ("ticket", "random", "dense"), "dense": ("dense",)}
"""Kinds of tokens by which an arm's best epoch is chosen, the first that was measured; the paper's choice."""


@dataclass
class Parts:
    """What a run is made of."""

    config: TrainConfig
    world: World
    inputs: Inputs
    student: TicketViT
    ema: ModelEmaV3 | None
    optimizer: torch.optim.Optimizer
    set_rate: SetRate
    stepper: Stepper
    pixels: Pixels
    selector: Selector | None
    rank: Rank | None
    parameters: int = field(init=False)

    def __post_init__(self) -> None:
        self.parameters = sum(parameter.numel() for parameter in self.vit.parameters())

    @property
    def grid(self) -> Grid:
        """The student's patches."""
        return self.inputs.frame.grid

    @property
    def k(self) -> int | None:
        """Patches kept at the end of training and in evaluation; None where nobody said how many."""
        return self.inputs.k

    @property
    def mode(self) -> str:
        """How rankings met the views; empty where that is the usual way and nothing but chance was ranked."""
        config = self.config
        return config.mode if config.arm == "ticket" or config.mode != "projected" else ""

    @property
    def vit(self) -> torch.nn.Module:
        """The timm model inside the student: what is saved, under timm's names."""
        return self.student.vit

    def tokens_per_image(self, k: int) -> int:
        """Tokens that the student's blocks compute for an image of which k patches are kept: prefix tokens too."""
        return k + int(getattr(self.vit, "num_prefix_tokens", 0))

    def ema_student(self) -> TicketViT:
        """A student with the averaged weights."""
        assert self.ema is not None
        return TicketViT(self.ema.module)

    def evaluate(self, student: TicketViT) -> EvalResult:
        """Measure a student on the whole validation set with each kind of tokens there is."""
        assert self.inputs.val is not None
        precision = Precision.of(self.config.amp, self.config.amp_dtype, self.world.device)
        return self.inputs.val.evaluate(student, self.world, self.pixels, precision, self.rank)

    def headline(self, table: Mapping[str, Any]) -> str:
        """The kind of tokens by which this arm is judged."""
        return next(kind for kind in HEADLINE[self.config.arm] if kind in table)

    def facts(self) -> dict[str, Any]:
        """The plan as a person would read it."""
        config, inputs, views = self.config, self.inputs, self.inputs.batching.num_views
        kept = self.grid.num_patches if self.k is None or config.arm == "dense" else self.k
        return {
            "model": f"{resolve(config.model)}, {self.parameters / 1e6:.1f} M parameters",
            "arm": ", ".join(filter(None, (config.arm, self.mode))),
            "tokens": f"{kept} of {self.grid.num_patches} patches",
            "images": inputs.num_train,
            "an epoch shows": f"{inputs.epoch_images} images in {views} view{'s' if views > 1 else ''}",
            "validation images": inputs.num_val,
            "steps": f"{config.epochs} epochs of {inputs.steps_per_epoch} steps of {inputs.global_batch} images",
            "learning rate": self.optimizer.param_groups[0]["initial_lr"],
            "device": f"{self.world.size} x {self.world.device}",
            "out": config.out,
        } | inputs.facts()

    def facts_to_resume(self) -> dict[str, dict[str, Any]]:
        """What a run that goes on from a checkpoint must have alike, and what it should know if it has not."""
        strict = self._fixed_settings() | self.inputs.identities() | {"global batch": self.inputs.global_batch}
        if self.selector is not None:
            strict["selector weights"] = weights_digest(self.selector.vit)
        loose = {"processes": self.world.size, "threads": torch.get_num_threads(), "device": self.world.device.type}
        return {STRICT: strict, LOOSE: loose | versions()}

    def identity(self) -> dict[str, Any]:
        """What a weights file says of itself: enough to build its model and to find its run."""
        config = self.config
        return {
            "model": config.model,
            "model_kwargs": config.model_kwargs,
            "num_classes": int(getattr(self.vit, "num_classes", 0)),
            "img_size": config.img_size,
            "mean": self.pixels.mean,
            "std": self.pixels.std,
            "num_patches": self.grid.num_patches,
            "crop_pct": self.inputs.frame.crop_pct,
            "seed": config.seed,
            "config_sha256": self.config_sha256,
        } | self._arm()

    def facts_of_result(self) -> dict[str, Any]:
        """The fields of a result that do not depend on how training went."""
        inputs, config = self.inputs, self.config
        return {
            "model": resolve(config.model),
            "num_patches": self.grid.num_patches,
            "seed": config.seed,
            "val_tickets": inputs.val_identity,
            "data": inputs.identities()
            | {"images": inputs.num_train, "epoch_images": inputs.epoch_images}
            | {"validation_images": inputs.num_val, "coverage": inputs.coverage()},
            "parameters": self.parameters,
            "config": config.model_dump(mode="json"),
            "config_sha256": self.config_sha256,
        } | self._arm()

    @property
    def config_sha256(self) -> str:
        """Digest of the settings that decide the result: paths and machine matters are not in it."""
        return hashlib.sha256(json.dumps(self._fixed_settings(), sort_keys=True).encode()).hexdigest()

    def _arm(self) -> dict[str, Any]:
        config = self.config
        return {
            "arm": config.arm,
            "mode": self.mode,
            "k": self.grid.num_patches if self.k is None or config.arm == "dense" else self.k,
            "keep": "1" if config.arm == "dense" else self.inputs.keep,
            "tickets": self.inputs.identity if config.arm == "ticket" else "",
        }

    def _fixed_settings(self) -> dict[str, Any]:
        values = self.config.model_dump(mode="json")
        return {name: values[name] for name, kind in TrainConfig.model_fields.items() if not is_free(kind)}


def prepare(config: TrainConfig, world: World, reporter: Reporter) -> Parts:
    """Open, check and build everything a run needs.

    Raises:
        DlthError: what does not fit together, with both sides shown
    """
    inputs = open_inputs(config, world)
    vit = _student(config, inputs.num_classes)
    student = TicketViT(vit)
    frame = Frame.of(vit, config.mean, config.std, config.crop_pct)
    inputs.join_tickets(frame, reporter.note)
    pixels = Pixels(frame.mean, frame.std, config.channels_last)
    vit.to(world.device)
    if config.channels_last:
        vit.to(memory_format=torch.channels_last)
    ema = make_ema(vit, config)
    optimizer = make_optimizer(vit, config, inputs.global_batch)
    set_rate = make_schedule(optimizer, config, inputs.steps_per_epoch)
    selector = _selector(config, inputs.k, frame.grid, world)
    rank = ranking(selector, pixels) if selector is not None else None
    in_loop = rank if config.arm == "ticket" else None  # the random arm's selector serves its evaluation alone
    stepper = Stepper(student, optimizer, ema, config, world, pixels, inputs.num_classes, in_loop)
    return Parts(config, world, inputs, student, ema, optimizer, set_rate, stepper, pixels, selector, rank)


def ranking(selector: Selector, pixels: Pixels) -> Rank:
    """A selector's `rank` for images [B, 3, H, W] that are normalised as the student wants them, not the selector."""
    own = timm.data.resolve_model_data_config(selector.vit)
    selectors = Pixels(tuple(own["mean"]), tuple(own["std"]))
    return lambda images: selector.rank(selectors.renormalised(images, pixels))


def _student(config: TrainConfig, num_classes: int) -> torch.nn.Module:
    torch.manual_seed(derive(config.seed, "weights"))
    vit = build(
        config.model,
        num_classes=num_classes,
        img_size=config.img_size,
        drop_path=config.drop_path,
        pretrained=config.pretrained,
        **config.model_kwargs,
    )
    if config.init_from is not None:
        load_weights(vit, config.init_from)
    return vit


def _selector(config: TrainConfig, k: int | None, grid: Grid, world: World) -> Selector | None:
    """The selector of the online mode, in evaluation mode on the world's device."""
    if config.mode != "online" or config.selector is None:
        return None
    if not (config.selector_checkpoint or config.selector_pretrained):
        raise InputError(
            "the online mode needs a trained selector: --selector-checkpoint FILE or --selector-pretrained"
        )
    vit = build(
        config.selector,
        num_classes=checkpoint_classes(config.selector_checkpoint) if config.selector_checkpoint else None,
        img_size=config.img_size,
        pretrained=config.selector_pretrained,
        **config.selector_kwargs,
    )
    if config.selector_checkpoint:
        load_weights(vit, config.selector_checkpoint)
    blocks = config.selector_blocks or default_blocks(vit)
    selector = Selector(vit, blocks=blocks, fuse_tokens=config.selector_fuse_tokens, tokens=k)
    if selector.grid != grid:
        raise InputError(f"the selector ranks {selector.grid} patches, the student has {grid}: both need the same grid")
    return selector.to(world.device)
