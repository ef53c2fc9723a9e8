"""Measure any checkpoint on dense, ticket and random tokens, with the same code as a run's own evaluation."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from dlth.data.index import open_index
from dlth.data.ticket_cache import local_tickets
from dlth.tickets import Grid, TicketStore, num_kept
from dlth.tickets.errors import InputError, shown
from dlth.training.distributed import World, joined
from dlth.training.eval_config import DEFAULT_SEED, EvalConfig
from dlth.training.evalset import EvalSet, Frame, Note, join_val, tokens_kept
from dlth.training.inputs import check_labels
from dlth.training.layers import checked
from dlth.training.measure import EvalResult
from dlth.training.models import build
from dlth.training.step import Pixels, Precision
from dlth.training.ticket_vit import TicketViT
from dlth.training.weights import checkpoint_classes, load_weights

SAID_BY_FILE = ("model", "model_kwargs", "num_classes", "img_size", "mean", "std", "crop_pct", "seed")
"""What a weights file of dlth says of itself, and a setting may say otherwise."""


def evaluate(config: EvalConfig, note: Note = lambda text: None) -> EvalResult:
    """Measure a checkpoint on the whole validation set; under torchrun ranks share the images.

    `note` is told, on the leading rank, how images and tickets met.

    Raises:
        DlthError: weights, model, images and tickets do not fit together
    """
    with joined(config.device) as world:
        weights = weights_file(Path(config.checkpoint), config.use_ema)
        note = note if world.leads else lambda text: None
        result = _evaluate(config, weights, world, note)
        if text := result.left_out_text():
            note(text)
        if config.out is not None and world.leads:
            result.save(Path(config.out))
        return result


def weights_file(path: Path, use_ema: bool) -> Path:
    """The weights that a path means: the file itself, or those of a run's folder."""
    if not path.is_dir():
        return path
    return path / ("model_ema.safetensors" if use_ema else "model.safetensors")


def note_of(path: Path) -> dict[str, Any]:
    """What a weights file written by dlth says of itself (model, grid, budget, digests); empty for other files."""
    if path.suffix != ".safetensors" or not path.is_file():
        return {}
    try:
        with safe_open(path, framework="pt") as file:
            note = json.loads((file.metadata() or {}).get("dlth", "{}"))
    except (SafetensorError, ValueError) as error:
        raise InputError(f"{shown(path)} is no whole safetensors file of dlth: {error}") from error
    return note if isinstance(note, dict) else {}


def _evaluate(config: EvalConfig, weights: Path, world: World, tell: Note) -> EvalResult:
    note = note_of(weights)
    said = {name: note[name] for name in SAID_BY_FILE if note.get(name) is not None}
    config = checked(EvalConfig, said | config.model_dump(exclude_none=True))
    index = open_index(config.val, split=config.val_split)
    store = TicketStore(local_tickets(config.val_tickets)) if config.val_tickets is not None else None
    vit = _load(config, weights, written_by_dlth=bool(note))
    check_labels(int(getattr(vit, "num_classes", 0)), index)
    frame = Frame.of(vit, config.mean, config.std, config.crop_pct)
    k = _trained_k(note, frame.grid, weights) if config.keep is None else None
    k = k or tokens_kept(config.keep, frame.grid, store)
    found = join_val(index, store, frame, k, config.val_split, config.missing, tell)
    seed = DEFAULT_SEED if config.seed is None else config.seed
    images = EvalSet(index, frame, k, found, seed, config.batch_size, config.workers, config.bad_images)
    precision = Precision.of(config.amp, config.amp_dtype, world.device)
    return images.evaluate(TicketViT(vit.to(world.device)), world, Pixels(frame.mean, frame.std), precision)


def _trained_k(note: Mapping[str, Any], grid: Grid, weights: Path) -> int | None:
    """Patches that the run of a weights file kept, on the grid of now; None if it says none, or kept all as dense.

    Raises:
        InputError: a number that the grid cannot have
    """
    k = note.get("k")
    if k is None or note.get("arm") == "dense":
        return None
    if note.get("num_patches", grid.num_patches) != grid.num_patches:
        return num_kept(str(note.get("keep")), grid.num_patches)
    if type(k) is not int or not 1 <= k <= grid.num_patches:
        raise InputError(
            f"{shown(weights)} says that it was trained on {shown(k)} of {grid.num_patches} patches: give --keep"
        )
    return k


def _load(config: EvalConfig, weights: Path, written_by_dlth: bool) -> torch.nn.Module:
    """The model that the settings name, with the file's weights."""
    if config.model is None:
        raise InputError(f"{shown(config.checkpoint)} does not say of which model it is: give --model")
    classes = config.num_classes or checkpoint_classes(weights)
    vit = build(config.model, num_classes=classes, img_size=config.img_size, **(config.model_kwargs or {}))
    load_weights(vit, weights, use_ema=config.use_ema and not written_by_dlth)
    return vit
