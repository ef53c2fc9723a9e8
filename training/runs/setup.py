"""Every part of a run, opened, checked against the others, and built: what can be wrong is found here, before step 1.

The order is that of cost: settings, index, model, tickets, and only then the optimizer and the loaders.
"""

from collections.abc import Generator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from timm.utils import ModelEmaV3

from dlth.data.loading.batch import Batch, StepBatches
from dlth.data.loading.loader import TrainLoader
from dlth.tickets import Budget, Grid, TicketStore
from dlth.tickets.errors import InputError
from dlth.training.device.feed import sent_ahead
from dlth.training.device.numerics import tell_tf32
from dlth.training.distributed.agreement import agree, settings_of
from dlth.training.distributed.process_group import World
from dlth.training.evaluation.evalset import DROPPING
from dlth.training.evaluation.measure import EvalResult
from dlth.training.evaluation.ticket_fit import fitted_student, tickets_crop, tokens_kept
from dlth.training.models.frame import Frame, described
from dlth.training.models.lvvit import LVViT
from dlth.training.models.pixels import Pixels
from dlth.training.models.registry import patch_size_of, resolve
from dlth.training.models.student import Student
from dlth.training.models.weights import weights_digest
from dlth.training.models.weights_metadata import (
    ABOUT_IMAGES,
    NOT_THE_MODELS,
    SelectionNote,
    WeightsFile,
    WeightsNote,
)
from dlth.training.pruning.mask_file import MaskFile
from dlth.training.reporter import Reporter
from dlth.training.runs.inputs import Inputs, open_files
from dlth.training.runs.keep_schedule import KeepMilestones, KeepSchedule, Schedule, final_budget
from dlth.training.runs.optim import SetRate, lowest_rate, make_ema, make_optimizer, make_schedule
from dlth.training.runs.pruned import check_steps, held_to, mask_facts, opened_mask, weights_fact
from dlth.training.runs.start import begins_with, starting_model, starts_from, with_recorded
from dlth.training.runs.step import Stepper
from dlth.training.runs.step_flops import StepFlops
from dlth.training.selectors.online import OnlineSelector, open_selector
from dlth.training.selectors.patch_ranker import Select
from dlth.training.selectors.selector_student import SelectorStudent
from dlth.training.selectors.trainable import EViT
from dlth.training.settings.fields import NO_SCHEDULE, settings_digest
from dlth.training.settings.recipes import RECIPE_BATCH
from dlth.training.settings.selector_config import DEFAULT_STAGE_KEEP, SelectorTrainConfig
from dlth.training.settings.train_config import TrainConfig

HEADLINE = {
    "ticket": ("ticket", "dense"),
    "random": ("ticket", "random", "dense"),
    "dense": ("dense",),
    "selector": (DROPPING, "dense"),
}
"""Arms of an evaluation by which a run's best epoch is chosen, the first that was measured; the paper's choice."""


@dataclass(frozen=True, eq=False)
class Parts:
    """What a run is made of.

    `starts_from`: whose weights, in words; `schedule`: what each step keeps; `online`: the selector in the loop, and
    `select` what it makes of the student's images, None without one; `step_flops`: what a step computes; `mask`: of
    the student's weights, None where all train; `read`: digests of all that the run has read; `initial_weights`: digest
    of those that the student begins with, before any is masked.
    """

    config: TrainConfig
    world: World
    inputs: Inputs
    student: Student
    starts_from: str
    ema: ModelEmaV3 | None
    optimizer: torch.optim.Optimizer
    set_rate: SetRate
    schedule: Schedule
    loader: TrainLoader
    stepper: Stepper
    pixels: Pixels
    online: OnlineSelector | None
    select: Select | None
    step_flops: StepFlops
    mask: MaskFile | None
    read: dict[str, Any]
    initial_weights: str

    @property
    def grid(self) -> Grid:
        """The student's patches."""
        return self.inputs.frame.grid

    def budget(self, epoch: int, step: int) -> Budget:
        """What is kept at `step` of `epoch`, as the student can take it."""
        return _served(self.schedule.budget(epoch, step), self.student)

    def train_steps(self, epoch: int, start: int) -> Generator[list[Batch], None, None]:
        """This rank's micro-batches of each step of an epoch, from step `start` on, on its device: those of a step are
        sent together, while the step before is computed.
        """
        steps = StepBatches.gathered(self.loader.epoch(epoch, start))
        for step in sent_ahead(steps, self.world.device):
            yield step.batches

    def evaluate(self, student: Student) -> EvalResult:
        """Measure a student on the whole validation set in each arm that there is."""
        assert self.inputs.val is not None
        standing_in = self.online.text if self.online is not None else ""
        precision = self.stepper.precision
        return self.inputs.val.evaluate(student, self.world, self.pixels, precision, self.select, standing_in)

    def facts(self) -> dict[str, Any]:
        """The plan as a person would read it."""
        config, inputs, record, views = self.config, self.inputs, self.record, self.inputs.batching.num_views
        global_batch = inputs.batching.global_batch
        return {
            "model": f"{record['model']}, {record['parameters'] / 1e6:.1f} M parameters",
            "starts from": self.starts_from,
            **({"weights": weights_fact(self.mask)} if self.mask is not None else {}),
            "recipe": recipe_fact(config.recipe, global_batch, config.lr is None),
            "arm": ", ".join(filter(None, (config.arm, record["mode"]))),
            "tokens": str(self.schedule),
            "student": f"{record['how']}, {record['tokens']} tokens, {record['flops'] / 1e9:.3g} GFLOP an image",
            "images": inputs.left_out.num_trained,
            "an epoch shows": f"{inputs.epoch_images} images in {views} view{'s' if views > 1 else ''}",
            "validation images": inputs.num_val,
            "steps": f"{config.epochs} epochs of {inputs.steps_per_epoch} steps of {global_batch} images",
            "learning rate": self.optimizer.param_groups[0]["initial_lr"],
            "device": f"{self.world.size} x {self.world.device}",
            "precision": precision_fact(config, self.world.device),
            "out": config.out,
            **({"selector": self.online.text} if self.online is not None else {}),
            **({"stages": self.student.text} if isinstance(self.student, SelectorStudent) else {}),
        } | inputs.facts()

    @cached_property
    def record(self) -> dict[str, Any]:
        """What a result says of its run, however training goes. The mode is empty where nothing but chance is ranked in
        the usual way; what tickets are is said in words, empty where there are none.
        """
        config, inputs, online = self.config, self.inputs, self.online
        ticket_arm, in_loop = config.arm == "ticket", online.text if online is not None else ""
        k = inputs.k if config.arm != "dense" and inputs.k is not None else self.grid.num_patches
        k = self.student.budget.k if self.student.budget is not None else k  # a selector's own
        val = inputs.val.about_tickets() if inputs.val is not None else {}
        return {
            "arm": config.arm,
            "mode": config.told_mode,
            "model": resolve(config.student),
            "k": k,
            "k_last": self.budget(config.epochs - 1, inputs.steps_per_epoch - 1).k,
            "keep": "1" if config.arm == "dense" else inputs.keep or (online.selector.budget.keep if online else ""),
            "num_patches": self.grid.num_patches,
            "how": self.student.how,
            "patch_size": self.student.patch_size,
            "tokens": self.student.num_tokens(k),
            "flops": self.student.flops(None if k == self.grid.num_patches else k),
            "seed": config.seed,
            "tickets": inputs.identity if ticket_arm else "",
            "tickets_are": (in_loop or inputs.tickets_are) if ticket_arm else "",
            "val_tickets": inputs.val_identity,
            "val_tickets_are": val.get("tickets_are", in_loop if inputs.val is not None else ""),
            "val_tickets_view": val.get("tickets_view", ""),
            "val_view": described(inputs.frame.eval_view) if inputs.val is not None else "",
            "selector": online.facts() if online is not None else self._selection(),
            "parameters": sum(parameter.numel() for parameter in self.student.parameters()),
            "config": config.model_dump(mode="json"),
            "config_sha256": settings_digest(config),
            "initial_weights": self.initial_weights,
        } | mask_facts(self.mask)

    def note(self, epoch: int, step: int) -> dict[str, Any]:
        """What a weights file says of itself: enough to build its model, make its images and find its run."""
        config, frame = self.config, self.inputs.frame
        how_built = {
            "model": config.student,
            "model_kwargs": {name: value for name, value in config.model_kwargs.items() if name not in NOT_THE_MODELS},
            "num_classes": self.student.num_classes,
            "img_size": config.img_size,
            "crop_chosen": config.users_crop_pct is not None,
        }
        images = {name: getattr(frame, name) for name in ABOUT_IMAGES}
        selection = self._selection()
        how = {"selection": SelectionNote(**selection | {"blocks": tuple(selection["blocks"])})} if selection else {}
        return WeightsNote(**(self.record | how_built | images | how), epoch=epoch, step=step).to_json()

    def _selection(self) -> dict[str, Any]:
        """How the model is trained to select; empty for a student."""
        return self.student.facts() if isinstance(self.student, SelectorStudent) else {}


def recipe_fact(recipe: str, global_batch: int, scaled: bool = True) -> str:
    """The recipe's name, and what its numbers are meant for where that is another global batch than the run's;
    `scaled`: the learning rate follows the batch.
    """
    meant = RECIPE_BATCH.get(recipe, global_batch)
    if meant == global_batch:
        return recipe or "none"
    rate = "scaled linearly" if scaled else "as given"
    product = "batch size x processes x --grad-accum-steps"
    return f"{recipe}, meant for {meant:,} images a step: {product}; the learning rate is {rate}"


def precision_fact(config: TrainConfig, device: torch.device) -> str:
    """In what numbers a run computes there, whether in a fixed order, and by which compiler."""
    ways = {
        f"{config.amp_dtype} autocast" if config.amp else "float32": True,
        "TF32 products": config.tf32 and device.type == "cuda",
        "deterministic": config.deterministic,
        f"compiled by {config.torchcompile}": config.torchcompile is not None,
    }
    return ", ".join(way for way, taken in ways.items() if taken)


def prepare(config: TrainConfig, world: World, reporter: Reporter) -> Parts:
    """Open, check and build everything a run needs; ranks take each part together, so what one refuses ends them all.

    Raises:
        DlthError: what does not fit together, with both sides shown
    """
    agree(world, settings_of("train", config, also=("out",)) | {"device": world.device.type})
    tell_tf32(config.tf32, world.device, reporter.note)
    with world.together():
        start = WeightsFile.find(config.init_from) if config.init_from is not None else None
        config, images = with_recorded(config, start, reporter.note)
        mask = opened_mask(config)
    files = open_files(config, world)
    with world.together():
        model = starting_model(config, files.num_classes, start, mask)
        student = as_student(config, model, files.store, files.val_store)
        _check_mixing(config, student)
        _check_learns(config, student)
        if config.users_crop_pct is None:
            images |= tickets_crop(files.val_store, images, reporter.note)
        frame = Frame.of(model, student.grid, student.patch_size, **images)
        k, online = tokens_kept(config.share, student, reporter.note, files.store, files.val_store), None
        if config.mode == "online" and (config.selector or config.selector_checkpoint):
            online = open_selector(config, k, frame.grid, world.device, reporter)
            k = k or student.most_kept(online.selector.budget.k)
        inputs = Inputs.joined(config, world, files, frame, k, reporter.note)
        check_steps(config, inputs.steps_per_epoch)
        pixels = Pixels(frame.mean, frame.std, config.channels_last)
        model.to(world.device)
        if config.channels_last:
            model.to(memory_format=torch.channels_last)
        student.flops(inputs.k)  # a model that cannot see such an image says so here
        ema = make_ema(model, config)
        optimizer = make_optimizer(model, config, inputs.batching.global_batch)
        lowest = lowest_rate(config, inputs.batching.global_batch, reporter.note)
        set_rate = make_schedule(optimizer, config, inputs.steps_per_epoch, lowest)
        select = online.ranking(pixels) if online is not None else None
        in_loop = select if config.arm == "ticket" else None  # the random arm's selector serves its evaluation alone
        schedule = _keep_schedule(config, inputs, online, student)
        budget = lambda epoch, step: _served(schedule.budget(epoch, step), student)  # noqa: E731
        loader = inputs.loader(budget, student.embeds_kept_only)
    digest = weights_digest(model)
    read = contents(inputs, online) | begins_with(digest if start is not None else "", mask)
    agree(world, read)
    masks = held_to(mask, model, ema)
    sizes = schedule.most_sizes
    stepper = Stepper(student, optimizer, ema, config, world, pixels, files.num_classes, in_loop, sizes, masks)
    starts = starts_from(config, digest, reporter.note)
    return Parts(
        *(config, world, inputs, student, starts, ema, optimizer, set_rate),
        *(schedule, loader, stepper, pixels, online, select),
        *(StepFlops(student, online if in_loop is not None else None), mask, read, digest),
    )


def _check_learns(config: TrainConfig, student: Student) -> None:
    """Raises InputError for token labels that the student has no logits for, patch by patch."""
    model = student.model
    if config.token_labels is None:
        return
    if not isinstance(model, LVViT):
        raise InputError(
            f"{type(model).__name__} has no logits of patches that could learn from token labels: LV-ViT has (--model"
            " lvvit_s); leave out --token-labels for others"
        )
    if student.patch_size != patch_size_of(model):
        raise InputError(
            f"token labels teach LV-ViT's own patches of {patch_size_of(model)} pixels, not of {student.patch_size}:"
            " leave out --patch-size; tickets of another grid are moved to it"
        )


def _check_mixing(config: TrainConfig, student: Student) -> None:
    """Raises InputError for MixToken with a student that has no tokens of its own patches."""
    if config.mix_token and not student.mixes_tokens:
        raise InputError(
            f"--mix-token mixes embedded patches, which {type(student.model).__name__} run as a"
            f" {type(student).__name__} does not give: give --mix-token 0, and --cutmix for boxes of pixels"
        )


def contents(inputs: Inputs, online: OnlineSelector | None) -> dict[str, Any]:
    """What a run has read beside the weights it begins with: for its ranks to compare, and for a run that goes on from
    its checkpoint.

    Weights drawn anew may differ in a bit between machines; the first step's rank 0 sends its own to all.
    """
    frame, facts = inputs.frame, online.facts() if online is not None else {}
    return (
        inputs.identities()
        | {"global batch": inputs.batching.global_batch, "mean": frame.mean, "std": frame.std}
        | {"left out": inputs.left_out.identity()}
        | {"evaluation view": described(frame.eval_view) if inputs.val is not None else ""}
        | {f"selector {name}": fact for name, fact in facts.items() if name != "weights_source"}
    )


def as_student(config: TrainConfig, model: torch.nn.Module, *stores: TicketStore | None) -> Student:
    """The model as what the run trains; where it has no patches of its own, on those of the ticket files.

    Raises InputError for one that cannot be that.
    """
    if not isinstance(config, SelectorTrainConfig):
        return fitted_student(model, config.how, config.patch_size, *stores)
    rate = config.stage_keep or DEFAULT_STAGE_KEEP
    return SelectorStudent(EViT(model, rate, config.blocks, bool(config.fuse_tokens)))


def _served(budget: Budget, student: Student) -> Budget:
    """A budget that ends with as many patches as the student can take."""
    return replace(budget, k=student.most_kept(budget.k))


def _keep_schedule(config: TrainConfig, inputs: Inputs, online: OnlineSelector | None, student: Student) -> Schedule:
    """What each step keeps; a selector in the loop, or in training, comes to it by its own stages."""
    num_patches, files = inputs.frame.grid.num_patches, inputs.files
    if isinstance(student, SelectorStudent):
        final, fuse_tokens = student.budget, student.evit.fuse_tokens
    elif config.arm == "dense" or inputs.k is None:
        return KeepSchedule(Budget.from_keep("1", num_patches, 1))
    elif online is not None:
        final, fuse_tokens = online.selector.budget, online.selector.info.fuse_tokens
    else:
        header = next((store.header for store in (files.store, files.val_store) if store is not None), None)
        final = final_budget(inputs.k, num_patches, config.share, header)
        fuse_tokens = header is not None and header.selector.fuse_tokens
    final = _served(final, student)
    if config.keep_schedule == NO_SCHEDULE:
        return KeepSchedule(final)
    if config.milestones:
        stages = len(final.stage_tokens)
        return KeepMilestones(
            final,
            tuple(
                (epoch, Budget.from_keep(share, num_patches, stages, fuse_tokens)) for epoch, share in config.milestones
            ),
        )
    start, epochs = config.keep_schedule_start, config.keep_schedule_epochs
    return KeepSchedule(final, start, epochs, inputs.steps_per_epoch, fuse_tokens)
