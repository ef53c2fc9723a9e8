"""What tickets cost before a student sees them: the selector's training, and stage 1's pass over the images.

Counted in operations, so that it can be charged to the arm that trains on tickets, wholly or by the share of one run of
the many that will use the file. The online mode's selector is in every step, and counted there.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from dlth.pipeline.studies.arms import Arm
from dlth.pipeline.studies.study_config import CompareConfig
from dlth.tickets import TicketStore
from dlth.tickets.errors import DlthError, InputError, shown
from dlth.tickets.format.provenance import DEFAULT_RANKER, ranker_of, views_averaged
from dlth.training.models.registry import build, grid_of
from dlth.training.models.weights_metadata import WeightsFile
from dlth.training.runs.result import read_result
from dlth.training.runs.runlog import RESULT
from dlth.training.selectors.evit import Selector

ADVICE = "give the --selector-run that trained it, or --selector-cost none"


@dataclass(frozen=True)
class SelectorCost:
    """Operations of stage 1 and of the selector's training, and by how many runs they are shared; 0 charges nothing."""

    stage1: float = 0.0
    training: float = 0.0
    shared_by: int = 0

    @property
    def charged(self) -> float:
        """Operations that one run on these tickets is charged with."""
        return (self.stage1 + self.training) / self.shared_by if self.shared_by else 0.0


def selector_cost(arm: Arm, config: CompareConfig) -> SelectorCost:
    """What a run of an arm is charged with; nothing but for tickets.

    Raises InputError for a selector whose cost cannot be worked out.
    """
    if config.selector_cost == "none" or arm.key.arm != "ticket":
        return SelectorCost()
    cached = arm.tickets if arm.config.mode != "online" else None
    stage1 = stage1_flops(cached, config.selector_run) if cached is not None else 0.0
    training = training_flops(Path(config.selector_run)) if config.selector_run is not None else 0.0
    return SelectorCost(stage1, training, config.selector_runs if config.selector_cost == "amortised" else 1)


def told(costs: Sequence[SelectorCost], config: CompareConfig) -> tuple[str, ...]:
    """What is said of the selector's cost, once for all arms."""
    if config.selector_cost == "none":
        unused = config.selector_run is not None or config.selector_runs > 1
        more = "; without it --selector-run and --selector-runs say nothing" if unused else ""
        return (f"what the tickets cost (stage 1, the selector's training) is left out: --selector-cost{more}",)
    how = "charged to each ticket run" if config.selector_cost == "charged" else ""
    how = how or f"shared by {config.selector_runs} runs"
    which = dict.fromkeys(cost for cost in costs if cost.shared_by)
    training = "" if config.selector_run else " (name the --selector-run to count it)"
    return tuple(
        f"the selector, {how}: stage 1 {cost.stage1 / 1e15:.4g} PFLOP, its training"
        f" {cost.training / 1e15:.4g} PFLOP{training}"
        for cost in which
    )


def training_flops(folder: Path) -> float:
    """Operations of a finished run. Raises InputError for what is none, or does not say."""
    result = read_result(folder / RESULT)
    if result is None or result.status != "finished":
        raise InputError(f"--selector-run {shown(folder)} is no finished run")
    if result.train_flops is None:
        raise InputError(f"--selector-run {shown(folder)} is of an older version, which did not count its operations")
    return result.train_flops


def stage1_flops(store: TicketStore, selector_run: str | None) -> float:
    """Operations of ranking every image that has a ticket, in each view; of a rule that is not EViT's, a whole forward.

    The model is that of the file's header, built without weights or memory for them; its arguments beyond timm's name
    are known from the `selector_run` alone.
    """
    header, name = store.header, shown(store.path.name)
    blocks = header.selector.blocks if ranker_of(header).startswith(DEFAULT_RANKER) else None
    if header.selector.heads == "none":
        raise InputError(f"{name} does not say what ranking cost ({shown(header.selector.model)}): {ADVICE}")
    model, options = header.selector.model, {}
    if selector_run is not None and (note := WeightsFile.find(selector_run).note) is not None:
        model, options = note.model, note.model_kwargs
    with torch.device("meta"):
        try:
            vit = build(model, img_size=header.view.height, **options)
        except DlthError as error:
            raise InputError(f"what ranked {name} cannot be built to count what it cost ({error}): {ADVICE}") from error
        if grid_of(vit) != header.grid:
            raise InputError(
                f"{name} is of {header.grid} patches, and {shown(model)} has {grid_of(vit)}: the file does not say"
                f" how its selector was built; {ADVICE}"
            )
        fuse_tokens = header.selector.fuse_tokens
        selector = Selector(vit, blocks=blocks, fuse_tokens=fuse_tokens, stage_keep=None, tokens=header.k)
        ranking, whole = selector.flops
    images = store.num_rows - store.num_skipped
    of_one = whole if blocks is None else ranking
    return float(images * views_averaged(header) * of_one)
