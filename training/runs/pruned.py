"""What pruning asks of an ordinary run, checked: its mask, the step at which it begins, and which weights it keeps.

A run keeps its mask beside its weights, so that its folder says by itself what it was trained under.
"""

import os
from pathlib import Path
from typing import Any

from timm.utils import ModelEmaV3
from torch import nn

from dlth.tickets.errors import InputError, MismatchError, shown
from dlth.training.models.registry import same_model
from dlth.training.pruning.mask_file import MaskFile, read_mask, write_mask
from dlth.training.pruning.recipe import MASK
from dlth.training.pruning.weight_masks import WeightMasks
from dlth.training.settings.train_config import TrainConfig


def opened_mask(config: TrainConfig) -> MaskFile | None:
    """The mask that the settings name; None without one.

    Raises:
        MismatchError: a mask that says it is of another model
        DlthError: as `read_mask`
    """
    if config.mask is None:
        return None
    mask = read_mask(Path(config.mask))
    if not same_model(mask.header.model, config.student):
        raise MismatchError(
            f"--mask {shown(config.mask)} is of {shown(mask.header.model)}, and the model to train is"
            f" {shown(config.student)}: a mask is of the model that it was made of"
        )
    return mask


def check_kept(mask: MaskFile | None, folder: Path) -> None:
    """Hold the mask in a run's folder, if there is one, against the run's own; nobody's mask is ever overwritten.

    Raises:
        InputError: another mask, or one beside a run that has none
        DlthError: as `read_mask`
    """
    path = folder / MASK
    if not os.path.lexists(path):
        return
    if mask is None or (there := read_mask(path).identity) != mask.identity:
        run = "a run without --mask" if mask is None else f"a run under mask {mask.identity[:16]}, not {there[:16]},"
        raise InputError(f"{shown(path)} is not of this run: {run} cannot keep it. Take another --out, or remove it")


def keep_mask(mask: MaskFile | None, folder: Path) -> None:
    """Write a run's mask into its folder, the same bytes as it was read from, unless it is there already."""
    if mask is not None and not os.path.lexists(folder / MASK):
        write_mask(folder / MASK, mask.header, mask.masks)


def held_to(mask: MaskFile | None, model: nn.Module, ema: ModelEmaV3 | None) -> WeightMasks | None:
    """The masks of a model that is to train, and of its average; both are masked with them. None without any."""
    if mask is None:
        return None
    held = WeightMasks(model, mask.masks, None if ema is None else ema.module)
    held.mask_weights()
    held.mask_averages()
    return held


def mask_facts(mask: MaskFile | None) -> dict[str, Any]:
    """What a result says of a run's mask; nothing without one."""
    if mask is None:
        return {}
    return {"mask": mask.identity, "prunable_weights": mask.prunable, "remaining_weights": mask.remaining}


def weights_fact(mask: MaskFile) -> str:
    """How many weights a run trains, for a person."""
    about = f"mask {mask.identity[:16]}, level {mask.header.recipe.level}"
    return f"{mask.remaining:,} of {mask.prunable:,} prunable remain ({about})"


def later_start(config: TrainConfig) -> str:
    """What a user should know of a run that begins at a later step with nobody's weights; empty of any other."""
    if not config.start_step or config.init_from is not None or config.pretrained:
        return ""
    return (
        f"--start-step {config.start_step} begins with fresh random weights: --init-from would name those that another"
        f" run kept at that step (--rewind-step {config.start_step})"
    )


def check_steps(config: TrainConfig, steps_per_epoch: int) -> None:
    """Raises InputError for a first step, or a rewinding point, at which no step of the run is left to take."""
    last = config.epochs * steps_per_epoch - 1
    run = f"{config.epochs} epochs of {steps_per_epoch} steps, {last + 1} in all"
    if config.start_step > last:
        raise InputError(
            f"--start-step {config.start_step} is at or beyond the end of the run, which has {run}: no step would be"
            f" taken. Give at most {last}"
        )
    if config.rewind_step is not None and not config.start_step <= config.rewind_step <= last:
        raise InputError(
            f"--rewind-step {config.rewind_step} is no step from which a run can go on: it begins at step"
            f" {config.start_step} and has {run}. Give {config.start_step} to {last}"
        )
