"""A row's settings as `dlth train` or `train-selector` takes them, and in what a run is not the row's.

Both read the same description, so that what is run by a row and what counts as the row cannot drift apart.
"""

from collections.abc import Mapping
from typing import Any

from dlth.pipeline.reproduction.experiment import ARMS, Experiment
from dlth.tickets.errors import DlthError, shown
from dlth.training.runs.result import RunResult
from dlth.training.settings.fields import fixed_settings
from dlth.training.settings.layering import layered
from dlth.training.settings.selector_config import SelectorTrainConfig
from dlth.training.settings.train_config import TrainConfig

THE_RUNS_OWN = (
    *("mode", "seed", "missing", "bad_images", "num_classes", "nan_patience", "init_from", "pretrained", "crop_pct"),
    *("amp", "amp_dtype", "torchcompile", "channels_last"),
    *(name for name in TrainConfig.model_fields if name.startswith("selector")),
)
"""Settings that a row leaves to whoever runs it: what a table says besides, what follows from the images and tickets,
and how a machine computes."""
MOST_LEFT_OUT = 0.001
"""Share of the training images that may be missing, as corrupt, from the paper's row."""


def row_settings(row: Experiment) -> dict[str, Any]:
    """The settings of a row, as flags would give them; images, tickets, weights, seed and batch are not among them."""
    if not row.is_student:
        return {**row.settings, "epochs": row.epochs, "stage_keep": row.rate}
    keep = {"keep": row.keep} if row.keep else {}
    return {**row.settings, "epochs": row.epochs, "arm": ARMS[row.arm], **keep}


def unlike(row: Experiment, result: RunResult) -> list[str]:
    """In what a finished run is not the row's run: settings, length, images of a step, patches kept, images."""
    config, data = result.config, result.data
    wanted = _expected(row)
    found = [
        f"{name} is {shown(config.get(name))}, not {shown(value)}"
        for name, value in wanted.items()
        if config.get(name) != value
    ]
    batch = config.get("batch_size", 0) * config.get("grad_accum_steps", 0) * result.world_size
    counts = {
        "images of a step": (batch, row.batch),
        "patches kept": (result.k, row.k),
        "validation images": (data.get("validation_images"), row.dataset.val_images),
    }
    found += [f"{what}: {shown(ours)}, not {theirs}" for what, (ours, theirs) in counts.items() if ours != theirs]
    images, all_images = data.get("images"), row.dataset.images
    if not (isinstance(images, int) and (1 - MOST_LEFT_OUT) * all_images <= images <= all_images):
        found.append(f"training images: {shown(images)}, not {all_images}")
    if "token labels" in row.needs and not data.get("token_labels"):
        found.append("trained without token labels")
    return found


def _expected(row: Experiment) -> Mapping[str, Any]:
    """The settings that decide a row's result, by name, but for those of `THE_RUNS_OWN`."""
    kind = TrainConfig if row.is_student else SelectorTrainConfig
    named = {"data": "images", "out": "run"} | ({"tickets": "tickets"} if ARMS[row.arm] == "ticket" else {})
    try:
        config = layered(row_settings(row) | named, kind=kind)
    except DlthError as error:  # a row that dlth cannot run has settings that are none of its
        raise AssertionError(f"{row.name}: {error}") from error
    return {name: value for name, value in fixed_settings(config).items() if name not in THE_RUNS_OWN}
