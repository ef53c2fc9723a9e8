"""Every part of a run, opened, checked against the others, and built: what can be wrong is found here, before step 1.

The order is that of cost: settings, index, model, tickets, and only then the optimizer and the loaders.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from timm.utils import ModelEmaV3

from dlth.tickets import Grid
from dlth.tickets.progress import Note
from dlth.tickets.seeding import derive
from dlth.training.agreement import agree, settings_of
from dlth.training.config import DEFAULT_MODEL, RECIPE_BATCH, TrainConfig
from dlth.training.distributed import World
from dlth.training.evalset import Frame, described, tickets_crop
from dlth.training.inputs import Inputs, open_inputs
from dlth.training.measure import EvalResult
from dlth.training.models import build, on_black_image, resolve
from dlth.training.online import OnlineSelector, open_selector
from dlth.training.optim import SetRate, make_ema, make_optimizer, make_schedule
from dlth.training.outcome import LOOSE, STRICT, versions
from dlth.training.reporter import Reporter
from dlth.training.schedule import KeepSchedule, final_budget
from dlth.training.settings import is_free
from dlth.training.step import Pixels, Precision, Rank, Stepper
from dlth.training.ticket_vit import TicketViT
from dlth.training.weights import weights_digest
from dlth.training.weights_note import ABOUT_IMAGES, ABOUT_MODEL, NOT_THE_MODELS, WeightsFile, WeightsNote

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
    online: OnlineSelector | None
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
        standing_in = self.online.text if self.online is not None else ""
        return self.inputs.val.evaluate(student, self.world, self.pixels, precision, self.rank, standing_in)

    def headline(self, table: Mapping[str, Any]) -> str:
        """The kind of tokens by which this arm is judged."""
        return next(kind for kind in HEADLINE[self.config.arm] if kind in table)

    def facts(self) -> dict[str, Any]:
        """The plan as a person would read it."""
        config, inputs, views = self.config, self.inputs, self.inputs.batching.num_views
        every = self.grid.num_patches
        return {
            "model": f"{resolve(config.model or DEFAULT_MODEL)}, {self.parameters / 1e6:.1f} M parameters",
            "recipe": recipe_fact(config.recipe, inputs.global_batch),
            "arm": ", ".join(filter(None, (config.arm, self.mode))),
            "tokens": str(inputs.schedule or f"{every} of {every} patches"),
            "images": inputs.left_out.num_trained,
            "an epoch shows": f"{inputs.epoch_images} images in {views} view{'s' if views > 1 else ''}",
            "validation images": inputs.num_val,
            "steps": f"{config.epochs} epochs of {inputs.steps_per_epoch} steps of {inputs.global_batch} images",
            "learning rate": self.optimizer.param_groups[0]["initial_lr"],
            "device": f"{self.world.size} x {self.world.device}",
            "out": config.out,
            **({"selector": self.online.text} if self.online is not None else {}),
        } | inputs.facts()

    def facts_to_resume(self) -> dict[str, dict[str, Any]]:
        """What a run that goes on from a checkpoint must have alike, and what it should know if it has not."""
        strict = self._fixed_settings() | self.inputs.identities() | {"global batch": self.inputs.global_batch}
        strict |= {"mean": self.pixels.mean, "std": self.pixels.std, "left out": self.inputs.left_out.identity()}
        strict["evaluation view"] = self.about_tickets()["val_view"]
        if self.online is not None:
            facts = {f"selector {name}": fact for name, fact in self.online.facts().items()}
            strict |= {name: fact for name, fact in facts.items() if name != "selector weights_source"}
        loose = {"processes": self.world.size, "threads": torch.get_num_threads(), "device": self.world.device.type}
        return {STRICT: strict, LOOSE: loose | versions()}

    def identity(self) -> WeightsNote:
        """What a weights file says of itself: enough to build its model, make its images and find its run."""
        config, frame = self.config, self.inputs.frame
        return WeightsNote(
            model=config.model or DEFAULT_MODEL,
            model_kwargs={name: value for name, value in config.model_kwargs.items() if name not in NOT_THE_MODELS},
            num_classes=int(getattr(self.vit, "num_classes", 0)),
            img_size=config.img_size,
            mean=frame.mean,
            std=frame.std,
            crop_pct=frame.crop_pct,
            interpolation=frame.interpolation,
            crop_chosen=config.users_crop_pct is not None,
            num_patches=self.grid.num_patches,
            seed=config.seed,
            config_sha256=self.config_sha256,
            **self._arm(),
        )

    def facts_of_result(self, bad_images: Sequence[int]) -> dict[str, Any]:
        """The fields of a result that hardly depend on how training went; `bad_images`: ids of those met."""
        inputs, config = self.inputs, self.config
        facts = {
            "model": resolve(config.model or DEFAULT_MODEL),
            "num_patches": self.grid.num_patches,
            "seed": config.seed,
            "val_tickets": inputs.val_identity,
            "selector": self.online.facts() if self.online is not None else {},
            "data": inputs.identities()
            | inputs.trained_on(bad_images)
            | {"epoch_images": inputs.epoch_images}
            | {"validation_images": inputs.num_val, "coverage": inputs.coverage()},
            "parameters": self.parameters,
            "config": config.model_dump(mode="json"),
            "config_sha256": self.config_sha256,
        }
        return facts | self._arm() | self.about_tickets()

    def about_tickets(self) -> dict[str, str]:
        """What the tickets are that were trained on, and those of the evaluation: in words, empty where there are none.

        With them the views of the evaluation and of its tickets.
        """
        inputs, in_loop = self.inputs, self.online.text if self.online is not None else ""
        val = inputs.val.about_tickets() if inputs.val is not None else {}
        return {
            "tickets_are": (in_loop or inputs.tickets_are) if self.config.arm == "ticket" else "",
            "val_tickets_are": val.get("tickets_are", in_loop if inputs.val is not None else ""),
            "val_view": described(inputs.frame.eval_view) if inputs.val is not None else "",
            "val_tickets_view": val.get("tickets_view", ""),
        }

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


def recipe_fact(recipe: str, global_batch: int) -> str:
    """The recipe's name, and what its numbers are meant for where that is another global batch than the run's."""
    meant = RECIPE_BATCH.get(recipe, global_batch)
    if meant == global_batch:
        return recipe or "none"
    return f"{recipe}, meant for {meant:,} images a step: batch size x processes x --grad-accum-steps"


def prepare(config: TrainConfig, world: World, reporter: Reporter) -> Parts:
    """Open, check and build everything a run needs; ranks take each part together, so what one refuses ends them all.

    Raises:
        DlthError: what does not fit together, with both sides shown
    """
    agree(world, settings_of("train", config, also=("out",)) | {"device": world.device.type})
    with world.together():
        start = WeightsFile.find(config.init_from) if config.init_from is not None else None
        config, images = _settled(config, start, reporter.note)
    inputs = open_inputs(config, world)
    with world.together():
        vit = _student(config, inputs.num_classes, start)
        student = TicketViT(vit)
        if config.users_crop_pct is None:
            images |= tickets_crop(inputs.val_store, images, reporter.note)
        frame = Frame.of(vit, **images)
        inputs.join_tickets(frame, reporter.note)
        pixels = Pixels(frame.mean, frame.std, config.channels_last)
        vit.to(world.device)
        if config.channels_last:
            vit.to(memory_format=torch.channels_last)
        _try_forward(student, frame, inputs.k, world.device)
        ema = make_ema(vit, config)
        optimizer = make_optimizer(vit, config, inputs.global_batch)
        set_rate = make_schedule(optimizer, config, inputs.steps_per_epoch)
        online = None
        if config.mode == "online" and (config.selector or config.selector_checkpoint):
            online = open_selector(config, inputs.k, frame.grid, world.device, reporter)
        inputs.schedule = _keep_schedule(config, inputs, online)
        rank = online.ranking(pixels) if online is not None else None
        in_loop = rank if config.arm == "ticket" else None  # the random arm's selector serves its evaluation alone
        sizes = 1 if inputs.schedule is None else inputs.schedule.most_sizes
        inputs.check()
    agree(world, _contents(inputs, frame, online, weights_digest(vit) if start is not None else ""))
    stepper = Stepper(student, optimizer, ema, config, world, pixels, inputs.num_classes, in_loop, sizes)
    return Parts(config, world, inputs, student, ema, optimizer, set_rate, stepper, pixels, online, rank)


def _contents(inputs: Inputs, frame: Frame, online: OnlineSelector | None, weights: str) -> dict[str, Any]:
    """What a rank has read, for the others to compare; `weights`: digest of those that a file gave, empty without.

    Weights drawn anew may differ in a bit between machines; the first step's rank 0 sends its own to all.
    """
    selector = {f"selector {name}": fact for name, fact in (online.facts() if online is not None else {}).items()}
    selector.pop("selector weights_source", None)
    view = {"evaluation view": described(frame.eval_view), "mean": frame.mean, "std": frame.std}
    left_out = {"left out": inputs.left_out.identity()}
    return inputs.identities() | left_out | view | {"initial weights": weights} | selector


def _try_forward(student: TicketViT, frame: Frame, k: int | None, device: torch.device) -> None:
    """Show the student one image. Raises InputError, as `on_black_image`."""
    training, kept = student.training, None if k is None else torch.arange(k, device=device)[None]
    student.eval()
    on_black_image(lambda image: student(image, kept), frame.size, device)
    student.train(training)


def _keep_schedule(config: TrainConfig, inputs: Inputs, online: OnlineSelector | None) -> KeepSchedule | None:
    """What each step keeps, None where that is every patch; a selector in the loop comes to it by its own stages."""
    if config.arm == "dense" or inputs.k is None:
        return None
    if online is not None:
        final, fuse_tokens = online.selector.budget, online.selector.fuse_tokens
    else:
        header = next((store.header for store in (inputs.store, inputs.val_store) if store is not None), None)
        final = final_budget(inputs.k, inputs.frame.grid.num_patches, config.keep, header)
        fuse_tokens = header is not None and header.selector.fuse_tokens
    if config.keep_schedule == "none":
        return KeepSchedule(final)
    start, epochs = config.keep_schedule_start, config.keep_schedule_epochs
    return KeepSchedule(final, start, epochs, inputs.steps_per_epoch, fuse_tokens)


def _student(config: TrainConfig, num_classes: int, start: WeightsFile | None) -> torch.nn.Module:
    torch.manual_seed(derive(config.seed, "weights"))
    options: dict[str, Any] = {"num_classes": num_classes, "img_size": config.img_size, "drop_path": config.drop_path}
    name, options = config.model or DEFAULT_MODEL, options | config.model_kwargs
    return build(name, pretrained=config.pretrained, **options) if start is None else start.build(name, **options)


def _settled(config: TrainConfig, start: WeightsFile | None, note: Note) -> tuple[TrainConfig, dict[str, Any]]:
    """The settings with what the weights record that a run starts from, and how its images are made (`ABOUT_IMAGES`).

    The head is that of the data; a recipe's crop share gives way to a recorded one.
    """
    said = {name: getattr(config, name, None) for name in (*ABOUT_MODEL, *ABOUT_IMAGES) if name != "num_classes"}
    said["crop_pct"] = config.users_crop_pct
    if start is not None:
        said, against = start.settle(said)
        if against:
            note(against)
    for name in (said["model"] or DEFAULT_MODEL, config.selector):
        if name is not None:
            resolve(name)  # a name that is none is told before shards are read
    said |= {"model": said["model"] or DEFAULT_MODEL, "model_kwargs": said["model_kwargs"] or {}}
    images = {name: said.pop(name) for name in ABOUT_IMAGES}
    return config.model_copy(update=said), images | {"crop_pct": images["crop_pct"] or config.crop_pct}
