"""What a run starts from: settings completed by what its weights record, its model, and whose weights those are."""

from typing import Any

import torch

from dlth.tickets.callbacks import Note
from dlth.tickets.seeding import derive
from dlth.training.models.registry import build, resolve
from dlth.training.models.weights_metadata import ABOUT_IMAGES, ABOUT_MODEL, ABOUT_SELECTION, WeightsFile
from dlth.training.pruning.mask_file import MaskFile, check_mask_fits
from dlth.training.settings.selector_config import SelectorTrainConfig
from dlth.training.settings.train_config import TrainConfig


def with_recorded(config: TrainConfig, start: WeightsFile | None, note: Note) -> tuple[TrainConfig, dict[str, Any]]:
    """The settings with what the weights record that a run starts from, and how its images are made (`ABOUT_IMAGES`).

    The head is that of the data; a recipe's crop share gives way to a recorded one. Raises InputError for a model that
    there is not.
    """
    names = [name for name in (*ABOUT_MODEL, *ABOUT_IMAGES) if name != "num_classes"]
    if isinstance(config, SelectorTrainConfig):
        names += [*ABOUT_SELECTION, "stage_keep"]
    settings = {name: getattr(config, name, None) for name in names}
    settings["crop_pct"] = config.users_crop_pct
    if start is not None:
        settings = start.settle(settings, note)
    images = {name: settings.pop(name) for name in ABOUT_IMAGES}
    config = config.model_copy(update=settings | {"model_kwargs": settings["model_kwargs"] or {}})
    config = config.model_copy(update={"model": config.student})
    for name in (config.student, config.selector):
        if name is not None:
            resolve(name)  # a name that is none is told before shards are read
    return config, images | {"crop_pct": images["crop_pct"] or config.crop_pct}


def starting_model(
    config: TrainConfig, num_classes: int, start: WeightsFile | None, mask: MaskFile | None
) -> torch.nn.Module:
    """The model to train, its weights read or drawn. Raises DlthError where weights, or the mask, do not fit it."""
    torch.manual_seed(derive(config.seed if config.init_seed is None else config.init_seed, "weights"))
    options: dict[str, Any] = {"num_classes": num_classes, "img_size": config.img_size, "drop_path": config.drop_path}
    options |= config.model_kwargs
    if start is not None:
        model = start.build(config.student, **options)
    else:
        model = build(config.student, pretrained=config.pretrained, **options)
    if mask is not None:
        check_mask_fits(mask, model, f"--mask {config.mask}")
    return model


def starts_from(config: TrainConfig, digest: str, note: Note) -> str:
    """Whose weights the run starts from; `note` is told of a selector that is to be fine-tuned from none."""
    if config.init_from is not None:
        return f"{config.init_from} (sha256 {digest[:16]})"
    if config.pretrained:
        return "timm's weights"
    if isinstance(config, SelectorTrainConfig):
        note("the selector starts from random weights; fine-tuning wants trained ones: --init-from, or --pretrained")
    return "random weights (no --init-from)"


def begins_with(digest: str, mask: MaskFile | None) -> dict[str, str]:
    """Digests of the weights that a run begins with, and of its mask; of each that it has."""
    begins = {"initial weights": digest, "mask": mask.identity if mask is not None else ""}
    return {name: value for name, value in begins.items() if value}
