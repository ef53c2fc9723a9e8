"""A row's settings as `dlth train` or `train-selector` takes them, and in what a run is not the row's.

Both read the same description, so that what is run by a row and what counts as the row cannot drift apart.
"""

from collections.abc import Mapping
from typing import Any

from dlth.pipeline.reproduction.experiment import STAGES, Experiment
from dlth.tickets.errors import DlthError, shown
from dlth.tickets.format.header import TicketHeader
from dlth.tickets.format.provenance import DEFAULT_RANKER, describe, ranker_of, views_averaged
from dlth.tickets.ranking.budget import Budget
from dlth.training.models.registry import resolve
from dlth.training.runs.result import RunResult
from dlth.training.settings.fields import fixed_settings
from dlth.training.settings.layering import layered
from dlth.training.settings.selector_config import SelectorTrainConfig
from dlth.training.settings.train_config import TrainConfig

THE_RUNS_OWN = (
    *("mode", "seed", "missing", "bad_images", "num_classes", "nan_patience", "init_from", "pretrained", "crop_pct"),
    *("amp", "amp_dtype", "tf32", "torchcompile", "channels_last"),
    *(name for name in TrainConfig.model_fields if name.startswith("selector")),
)
"""Settings that a row leaves to whoever runs it: what a table says besides, what follows from the images and tickets,
and how a machine computes."""
LEVELS_OWN = ("rewind_step", "init_seed")
"""Settings by which a level of a pruned row is begun, or begins others."""
MOST_LEFT_OUT = 0.001
"""Share of the training images that may be missing, as corrupt, from the paper's row."""


def row_settings(row: Experiment) -> dict[str, Any]:
    """The settings of a row, as flags would give them; images, tickets, weights, seed and batch are not among them."""
    if not row.is_student:
        return {**row.settings, "epochs": row.epochs, "stage_keep": row.rate}
    keep = {"keep": row.keep} if row.keep else {}
    return {**row.settings, "epochs": row.epochs, "arm": row.trained_as, **keep}


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


def ranked_unlike(row: Experiment, selector: Experiment, header: TicketHeader) -> list[str]:
    """In what tickets are not the row's: ranked by another model than its selector's, by another rule, at another rate.

    A control's are no model's, and so of another. Where two models have one name in timm, as DeiT-S and that of width
    576 have, a header does not tell them apart.
    """
    who, views = header.selector, views_averaged(header)
    found = _selected_unlike(row, selector, who.model, ranker_of(header), who.fuse_tokens, header.stage_tokens)
    found += [f"ranked by the mean of {views} views, not by one"] if views > 1 else []
    return [f"tickets are of {describe(header)}: {text}" for text in found]


def online_unlike(row: Experiment, selector: Experiment, facts: Mapping[str, Any]) -> list[str]:
    """The same of a selector in the loop, by what a result says of it (`RunResult.selector`)."""
    names = ("model", "ranker", "fuse_tokens", "stage_tokens")
    return [f"the selector's {text}" for text in _selected_unlike(row, selector, *(facts.get(name) for name in names))]


def _selected_unlike(
    row: Experiment, selector: Experiment, model: Any, ranker: Any, fuse_tokens: Any, stage_tokens: Any
) -> list[str]:
    own = resolve(str(selector.settings["model"]))
    kept = tuple(stage_tokens) if isinstance(stage_tokens, list | tuple) else stage_tokens
    by_rate = Budget.from_stage_keep(row.rate, row.patches, STAGES).stage_tokens
    by_share = Budget.from_keep(row.keep, row.patches, STAGES).stage_tokens  # what a selector in the loop is given
    facts = {
        "model": (str(model).partition(".")[0] == own.partition(".")[0], model, own),
        "ranker": (ranker == DEFAULT_RANKER, ranker, DEFAULT_RANKER),
        "fused tokens": (fuse_tokens is False, fuse_tokens, False),
        "patches of each stage": (kept in (by_rate, by_share), kept, by_rate),
    }
    return [f"{name} {shown(ours)}, not {shown(theirs)}" for name, (alike, ours, theirs) in facts.items() if not alike]


def _expected(row: Experiment) -> Mapping[str, Any]:
    """The settings that decide a row's result, by name, but for those of `THE_RUNS_OWN` and a level's."""
    kind = TrainConfig if row.is_student else SelectorTrainConfig
    named = {"data": "images", "out": "run"} | ({"tickets": "tickets"} if row.trained_as == "ticket" else {})
    try:
        config = layered(row_settings(row) | named, kind=kind)
    except DlthError as error:  # a row that dlth cannot run has settings that are none of its
        raise AssertionError(f"{row.name}: {error}") from error
    own = (*THE_RUNS_OWN, *(LEVELS_OWN if row.pruning is not None else ()))
    return {name: value for name, value in fixed_settings(config).items() if name not in own}
