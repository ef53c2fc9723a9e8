"""The plan of a pruning study: the unpruned run opened and checked as an arm of `dlth compare` is, and levels upon it.

What the masks will be is not known before training, and how many weights each leaves is: so a rate that would empty a
layer, a rewinding point that leaves nothing to train and the like are refused before anything is spent. A pruned run is
surveyed as it will be trained but for its mask and its first weights, which the study itself is going to make.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from torch import nn

from dlth.pipeline.evidence.arm_key import LT, RANDOM_MASK, RR, fresh_seed, share_remaining
from dlth.pipeline.evidence.study_plan import MAX_RUNS, MaskPlan, PlannedRun, StudyPlan
from dlth.pipeline.pruning.levels import Level, levels
from dlth.pipeline.pruning.outlook import outlook
from dlth.pipeline.pruning.prune_config import BY_HAND, OWN, PruneConfig, rewind_step
from dlth.pipeline.studies.arms import Arm, Counting, opened
from dlth.pipeline.studies.grid import Cell, Values, grid
from dlth.pipeline.studies.identity import MADE_OF_RUNS, mask_contents, run_digest, run_name
from dlth.pipeline.studies.planning import finished_rates, kept_settings, refuse_unjudged, result_of, run_cost
from dlth.pipeline.studies.study_config import CompareConfig
from dlth.tickets.callbacks import Note
from dlth.tickets.errors import InputError
from dlth.tickets.format.jsontext import strict
from dlth.training.models.registry import outline
from dlth.training.models.weights_metadata import ABOUT_IMAGES, WeightsFile
from dlth.training.pruning.recipe import MaskRecipe
from dlth.training.settings.comparable import ARMS_OWN, comparable
from dlth.training.settings.fields import is_free
from dlth.training.settings.layering import checked
from dlth.training.settings.train_config import TrainConfig

_ABOUT_MODEL = ("model", "model_kwargs", "img_size")
"""What a run is told by the weights that it starts from, and must be told where it starts from others."""


@dataclass(frozen=True)
class Kinds:
    """The three ways in which a study's runs begin, each opened and checked: unpruned, rewound, with fresh weights."""

    unpruned: Arm
    rewound: Arm
    fresh: Arm

    def of(self, level: Level) -> Arm:
        """That of a run."""
        return self.unpruned if not level.arm else self.rewound if level.is_rewound else self.fresh


def plan_prune(
    config: PruneConfig,
    train: Mapping[str, object],
    *,
    note: Note = lambda text: None,
    counting: Counting | None = None,
    known: StudyPlan | None = None,
) -> StudyPlan:
    """Plan a study of levels: check what its runs share, count what remains and what it costs, and name all runs.

    Args:
        config: settings of the study
        train: settings of `dlth train` that its runs share, as a user gave them; a recipe by its name
        note: told what a person should know of the runs
        counting: shows progress
        known: the study's plan so far, whose finished runs tell how fast they were
    Raises:
        InputError: whatever does not fit, before anything is trained
    """
    if given := [name for name in BY_HAND if train.get(name) not in (None, TrainConfig.model_fields[name].default)]:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise InputError(f"{names}: dlth prune gives each level its own (--rewind, --seeds, --draws); leave it out")
    found = levels(config.arm, config.rounds, config.draws)
    if len(found) * len(config.seeds) > MAX_RUNS:
        raise InputError(f"{len(found)} arms with {len(config.seeds)} seeds: at most {MAX_RUNS:,} runs are planned")
    _refuse_equal_shares(config)
    kinds, notes = _opened(config, train, counting, known)
    # a rewound run sees images as the unpruned one does, whose weights tell it how: only fresh ones may differ
    told = [kinds.unpruned, *([kinds.fresh] if any(level.arm == RR for level in found) else [])]
    for text in dict.fromkeys(text for arm in told for text in arm.survey.notes):
        note(text)
    runs = _runs(found, kinds, config)
    may_differ = _differing(runs)
    results = [result_of(arm) | {"mask": arm.key.pruned} for arm in told]  # rr's as it will have one
    refuse_unjudged(comparable(results, may_differ))
    return StudyPlan(
        runs=runs,
        settings=config.model_dump(mode="json"),
        may_differ=may_differ,
        notes=(*notes, *outlook(config, kinds.unpruned, _model(kinds.unpruned), found)),
    )


def _refuse_equal_shares(config: PruneConfig) -> None:
    """Raises InputError where two levels would go by one name."""
    shares = [share_remaining(config.rate, level) for level in range(config.rounds + 1)]
    if len(set(shares)) < len(shares):
        twice = next(share for share, after in pairwise(shares) if share == after)
        raise InputError(f"--rate {config.rate}: two levels leave {twice} of the weights to four digits: a larger rate")


def _opened(
    config: PruneConfig, train: Mapping[str, Any], counting: Counting | None, known: StudyPlan | None
) -> tuple[Kinds, tuple[str, ...]]:
    """The study's kinds of runs, checked; and what is told of settings that are not taken."""
    patches = config.patches or ("ticket" if train.get("tickets") else "dense")
    like = {name: getattr(config, name) for name in ("out", "seeds", "margin", "gpus", "measure")}
    mode = train.get("mode") or TrainConfig.model_fields["mode"].default
    compare = checked(CompareConfig, {**like, "arms": (patches,), "mode": (mode,)})
    (cell,), notes = grid(compare, {name: value for name, value in train.items() if name not in (*OWN, "mode")})
    if unused := [name for name in ("arm", "seed") if train.get(name) is not None]:
        notes += (f"the study gives its runs their own {', '.join(unused)} (--patches, --seeds)",)
    rates = {} if known is None else finished_rates(Path(config.out), known)
    rate = next((rate for key, rate in rates.items() if not key.pruned), None)
    (first,) = opened((cell,), compare, counting, {} if rate is None else {cell.key: rate})
    step = rewind_step(config.rewind, first.survey.steps_per_epoch, first.config.epochs)
    later = Cell(replace(cell.key, pruned=LT), {**cell.values, **_unstarted(first), "start_step": step})
    fresh = Cell(replace(cell.key, pruned=RR), {**cell.values, **_fresh(first)})
    measured = first.survey.flops_per_second
    rewound, new = opened((later, fresh), compare, None, {each.key: measured for each in (later, fresh) if measured})
    unpruned = replace(first, config=first.config.model_copy(update={"rewind_step": step}))
    return Kinds(unpruned, rewound, new), notes


def _unstarted(arm: Arm) -> Values:
    """Settings that leave out which weights to start from; what those say of the model is said instead."""
    if not arm.config.pretrained and arm.config.init_from is None:
        return {}
    said = arm.survey.record["config"]
    return {"pretrained": False, "init_from": None} | {name: said[name] for name in _ABOUT_MODEL}


def _fresh(arm: Arm) -> Values:
    """The same for random weights, which do not say either how images are made."""
    if arm.config.init_from is None or (about := WeightsFile.find(arm.config.init_from).note) is None:
        return _unstarted(arm)
    said = {name: getattr(about, name) for name in ABOUT_IMAGES if name in TrainConfig.model_fields}
    return _unstarted(arm) | {name: value for name, value in said.items() if getattr(arm.config, name) is None}


def _model(arm: Arm) -> nn.Module:
    """The model of an arm's runs, without memory for its weights."""
    said = arm.survey.record["config"]
    return outline(said["model"], img_size=said["img_size"], **said["model_kwargs"])


def _runs(found: Sequence[Level], kinds: Kinds, config: PruneConfig) -> tuple[PlannedRun, ...]:
    """Every run with every seed, level by level, each after those that it needs."""
    names: dict[tuple[Level, int], str] = {}
    runs = []
    for level in found:
        for seed in config.seeds:
            runs.append(_run(level, seed, kinds.of(level), config, names))
            names[level, seed] = runs[-1].name
    return tuple(runs)


def _run(level: Level, seed: int, arm: Arm, config: PruneConfig, names: Mapping[tuple[Level, int], str]) -> PlannedRun:
    """The run of a level with a seed; `names`: of the runs before it."""
    key, contents, mask = arm.key, dict(arm.survey.contents), None
    own: Values = {"seed": seed}
    if level.arm:
        rewinds_to = names[Level(), seed] if level.is_rewound else ""
        mask = MaskPlan(_recipe(level, seed, config), names[level.of, seed], rewinds_to)
        contents = {name: value for name, value in contents.items() if name not in MADE_OF_RUNS} | mask_contents(mask)
        share = share_remaining(config.rate, level.level)
        key = replace(key, pruned=level.arm, weights=share, draw=level.draw)
    if level.arm == RR:
        own["init_seed"] = fresh_seed(seed, level.level, level.draw)
    settings = arm.config.model_copy(update=own)
    return PlannedRun(
        name=run_name(key, seed, run_digest(settings, contents)),
        arm=key,
        seed=seed,
        settings=kept_settings(settings),
        cost=run_cost(arm),
        contents=strict(contents),
        mask=mask,
    )


def _recipe(level: Level, seed: int, config: PruneConfig) -> MaskRecipe:
    """How a run's mask is made; rr's is lt's to the bit, and names no seed."""
    recipe = MaskRecipe(level.level, config.rate, rounds=level.rounds, scope=config.scope, exclude=config.exclude)
    return replace(recipe, shuffled=True, draw=level.draw, seed=seed) if level.arm == RANDOM_MASK else recipe


def _differing(runs: Sequence[PlannedRun]) -> tuple[str, ...]:
    """Settings in which the runs differ because levels do: that a user's weights are not those of every run."""
    fixed = [name for name, field in TrainConfig.model_fields.items() if not is_free(field) and name not in ARMS_OWN]
    first = runs[0].settings
    return tuple(sorted(name for name in fixed if any(run.settings[name] != first[name] for run in runs)))
