"""Measure any checkpoint on dense, ticket and random tokens, with the same code as a run's own evaluation."""

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dlth.data.shards.classes import check_labels, require_labels
from dlth.data.shards.index import open_index
from dlth.data.sharing.ticket_cache import local_tickets
from dlth.tickets import Grid, TicketStore, num_kept
from dlth.tickets.callbacks import Note
from dlth.tickets.errors import InputError, shown
from dlth.tickets.store.locks import owned
from dlth.training.device.numerics import numerics, tell_tf32
from dlth.training.device.precision import Precision
from dlth.training.distributed.agreement import agree, settings_of
from dlth.training.distributed.process_group import joined
from dlth.training.evaluation.evalset import EvalSet
from dlth.training.evaluation.measure import EvalResult
from dlth.training.evaluation.ticket_fit import fitted_student, tickets_crop, tokens_kept
from dlth.training.models.frame import Frame, described
from dlth.training.models.pixels import Pixels
from dlth.training.models.registry import resolve
from dlth.training.models.student import Student
from dlth.training.models.weights import weights_digest
from dlth.training.models.weights_metadata import ABOUT_IMAGES, ABOUT_MODEL, ABOUT_STUDENT, WeightsFile
from dlth.training.selectors.selector_student import SelectorStudent
from dlth.training.selectors.trainable import EViT
from dlth.training.settings.eval_config import DEFAULT_SEED, EvalConfig


def evaluate(config: EvalConfig, note: Note = lambda text: None) -> EvalResult:
    """Measure a checkpoint on the whole validation set; under torchrun ranks share the images.

    `note` is told, on the leading rank, how images and tickets met.

    Raises:
        InputError: a name that results do not have
        LockedError: another process writes the results of `config.out`
        RankError: another rank ended
        DlthError: weights, model, images and tickets do not fit together
    """
    if config.out is not None and Path(config.out).suffix != ".npz":  # it could take any other file's place
        raise InputError(f"--out {shown(config.out)}: per-image results are a .npz file, and their name must end so")
    with numerics(config.tf32), joined(config.device) as world, ExitStack() as stack:
        agree(world, settings_of("evaluate", config) | {"device": world.device.type})
        with world.together():
            if config.out is not None and world.leads:
                stack.enter_context(owned(Path(config.out).parent, Path(config.out).name))
        note = note if world.leads else lambda text: None
        tell_tf32(config.tf32, world.device, note)
        with world.together():
            weights = WeightsFile.find(config.checkpoint, config.use_ema)
            student, images = _opened(config, weights, world.device, note)
        agree(world, _contents(student, images))
        precision = Precision.of(config.amp, config.amp_dtype, world.device)
        pixels = Pixels(images.frame.mean, images.frame.std)
        result = images.evaluate(student, world, pixels, precision)
        for text in result.notes():
            note(text)
        if config.out is not None and world.leads:
            result.save(Path(config.out))
        return result


def _opened(config: EvalConfig, weights: WeightsFile, device: torch.device, note: Note) -> tuple[Student, EvalSet]:
    """The model with its weights, on the device, and what to measure it on."""
    about = (*ABOUT_MODEL, *ABOUT_STUDENT, *ABOUT_IMAGES)
    settings = weights.settle({name: getattr(config, name, None) for name in about}, note)
    if settings["model"] is None:
        raise InputError(f"{shown(weights.name)} does not say of which model it is: give --model")
    resolve(settings["model"])  # a name that is none is told before shards are read
    index = open_index(config.val, split=config.val_split)
    require_labels(index)
    store = TicketStore(local_tickets(config.val_tickets)) if config.val_tickets is not None else None
    options = {name: settings[name] for name in ("num_classes", "img_size")} | (settings["model_kwargs"] or {})
    model = weights.build(settings["model"], **options)
    student = _as_trained(config, settings, weights, model, store).eval().to(device)
    check_labels(student.num_classes, index)
    chosen = weights.note is not None and weights.note.crop_chosen
    if config.crop_pct is None and not chosen:  # a crop that the run's user chose gives the run's own numbers again
        settings |= tickets_crop(store, settings, note)
    images = {name: settings[name] for name in ABOUT_IMAGES}
    frame = Frame.of(student.model, student.grid, student.patch_size, **images)
    k = _trained_k(weights, frame.grid) if config.keep is None else None
    k = student.most_kept(k) if k is not None else tokens_kept(config.keep, student, note, store)
    if k is not None and store is None:
        note("no ticket row: --val-tickets names the tickets of these images")
    recorded = DEFAULT_SEED if weights.note is None or weights.note.seed is None else weights.note.seed
    seed = recorded if config.seed is None else config.seed
    val = EvalSet.joined(config, index, store, frame, k, seed, config.batch_size, note)
    student.flops()  # a model that cannot see such an image says so here
    return student, val


def _as_trained(
    config: EvalConfig, settings: Mapping[str, Any], weights: WeightsFile, model: nn.Module, store: TicketStore | None
) -> Student:
    """The model as what its weights were trained as: a selector is one, unless it is given the patches of others."""
    selection = weights.note.selection if weights.note is not None else None
    if selection is None or config.keep is not None or config.val_tickets is not None:
        return fitted_student(model, settings["how"], settings["patch_size"], store)
    return SelectorStudent(EViT(model, selection.stage_keep, selection.blocks, selection.fuse_tokens))


def _contents(student: Student, images: EvalSet) -> dict[str, Any]:
    """What a rank measures, and on what, for the others to compare."""
    frame, tickets = images.frame, images.join.store.identity if images.join is not None else ""
    view = {"view": described(frame.eval_view), "mean": frame.mean, "std": frame.std}
    chosen = {"k": images.k, "seed": images.seed, "val_tickets": tickets}
    return {"weights": weights_digest(student.model)} | images.index.identity.named("val") | chosen | view


def _trained_k(weights: WeightsFile, grid: Grid) -> int | None:
    """Patches that the run of a weights file kept, on the grid of now; None if it says none, or kept all as dense.
    Raises InputError for a number that the grid cannot have.
    """
    note = weights.note
    if note is None or note.k is None or note.arm in ("dense", "selector"):
        return None
    if note.num_patches not in (None, grid.num_patches):
        return num_kept(note.keep, grid.num_patches)
    if note.k > grid.num_patches:
        raise InputError(
            f"{shown(weights.name)} says that it was trained on {note.k} of {grid.num_patches} patches: give --keep"
        )
    return note.k
