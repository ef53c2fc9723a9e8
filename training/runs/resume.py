"""From where a run goes on: which checkpoint, and taking it over into a run that is built.

Everything is held against the run first, then loaded. Shapes and types of an optimizer's state are asked of the
optimizer itself: it takes one step on zero gradients, on weights that the checkpoint's replace right after. Loaded as
it comes, a wrong shape would fail in the middle of a step.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from dlth.tickets.errors import DamageError, InputError, MismatchError, shown
from dlth.tickets.store.disk import refuse_linked
from dlth.training.device.facts import device_versions
from dlth.training.models.weights import check_fits
from dlth.training.models.weights_metadata import EMA_FILE, MODEL_FILE
from dlth.training.pruning.recipe import MASK, REWIND
from dlth.training.runs.checkpoint import FIRST_VERSION, Checkpoint, newest, put_together
from dlth.training.runs.optim import MAX_RATE
from dlth.training.runs.result import versions
from dlth.training.runs.run_progress import RunProgress, RunSize
from dlth.training.runs.runlog import CURVES, METRICS, RESULT, SUMMARY, Mark
from dlth.training.runs.setup import Parts
from dlth.training.settings.fields import fixed_settings, unknown_to
from dlth.training.settings.layering import is_written
from dlth.training.settings.toml_text import CONFIG
from dlth.training.settings.train_config import TrainConfig

CHECKPOINTS = "checkpoints"
BEST, VAL_RESULTS = "model_best.safetensors", "eval.npz"
WRITTEN = (CONFIG, METRICS, SUMMARY, CURVES, RESULT, MODEL_FILE, EMA_FILE, BEST, VAL_RESULTS, REWIND, MASK)
"""Names that a run takes in its folder."""
STRICT, LOOSE = "must_agree", "may_change"
"""Keys of a checkpoint's state: what a resumed run must have alike, and what changes rounding at most."""
LOG = "log"
"""In a checkpoint's state: lines and digest of the run's log up to there; version 1 alone may have none."""
_FIELDS = (STRICT, LOOSE, "progress", "optimizer", "scaler")


def resume_path(config: TrainConfig) -> Path | None:
    """The checkpoint to go on from, or None to start anew.

    Raises:
        InputError: the folder holds a run already and nothing was said about going on with it, or a finished one that
            the checkpoint is not of, or anybody's files under names that a run writes
        UnsafeError: its folder of checkpoints is a link
        MissingFileError: no checkpoint at the path given
    """
    out = Path(config.out)
    refuse_linked(out / CHECKPOINTS)
    path = newest(out / CHECKPOINTS)
    if config.resume is None and path is not None:
        raise InputError(
            f"{config.out} holds a run already ({path.name}): --resume auto goes on with it; or take another --out"
        )
    if config.resume not in (None, "auto"):
        named = Path(str(config.resume))
        path = newest(named / CHECKPOINTS) or named
    if path is None or path.parent.resolve() != (out / CHECKPOINTS).resolve():
        _refuse_losses(out, "anew" if path is None else f"from {shown(path)}", config)
    return path


def _refuse_losses(out: Path, start: str, config: TrainConfig) -> None:
    """Raises InputError where files would be overwritten that no begun run can spare: a result, or anybody's own.

    A run that was killed before its first checkpoint leaves its settings; its few lines are begun anew. A mask may lie
    there before its run, as a study's do: `check_kept` asks whether it is the run's own.
    """
    names = WRITTEN if config.mask is None else [name for name in WRITTEN if name != MASK]
    there = [name for name in names if os.path.lexists(out / name) and (out / name).lstat().st_size]
    begun = is_written(out / CONFIG, type(config))
    if not there or (begun and RESULT not in there):
        return
    what = f"a finished run ({RESULT})" if begun else f"files of other origin ({', '.join(there)})"
    lost = RESULT if begun else there[0] if len(there) == 1 else ""
    raise InputError(
        f"{shown(out)} holds {what}, which a run that starts {start} would overwrite: take another --out, or remove"
        f" {shown(out / lost) if lost else 'them'}"
    )


def facts_to_resume(parts: Parts) -> dict[str, dict[str, Any]]:
    """What a run that goes on from a checkpoint must have alike, and what it should know if it has not."""
    world = parts.world
    loose = {"processes": world.size, "threads": torch.get_num_threads(), "device": world.device.type}
    loose |= {"deterministic": True} if parts.config.deterministic else {}
    return {
        STRICT: fixed_settings(parts.config) | parts.read,
        LOOSE: loose | versions() | device_versions(world.device),
    }


def take_over(saved: Checkpoint, parts: Parts) -> tuple[RunProgress, list[str]]:
    """Load a checkpoint into a run's parts; gives back where it was, and what changed without doing harm.

    Args:
        saved: the checkpoint
        parts: the run's; nothing of them but weights and optimizer, which move by a trial step, changes before all is
            checked
    Raises:
        MismatchError: the checkpoint is of another run
        DamageError: it holds what no checkpoint of this run could
    """
    state, inputs = saved.state, parts.inputs
    wrong = [name for name in (*_FIELDS, LOG) if not isinstance(state.get(name, {} if name == LOG else None), dict)]
    if wrong or set(saved.parts) != {"model", "optimizer"} | ({"ema"} if parts.ema is not None else set()):
        there = f"{', '.join(saved.parts)}; in its state {', '.join(wrong) or 'nothing'} cannot be read"
        raise DamageError(f"{saved.path} is no checkpoint of this run: it holds {shown(there)}")
    notes = _check_alike(saved, parts)
    size = RunSize(
        parts.config.epochs,
        inputs.steps_per_epoch,
        inputs.files.index.num_samples,
        inputs.batching.global_batch,
        parts.student.num_tokens(parts.grid.num_patches),
        parts.config.start_step,
    )
    progress = RunProgress.from_json(state["progress"], size)
    modules = {"model": parts.student.model} | ({"ema": parts.ema.module} if parts.ema is not None else {})
    for name, module in modules.items():
        _same_kind(check_fits(module, saved.parts[name], name), module.state_dict(), f"{saved.path}: {name}")
    optimizer = _stepped_as(put_together(state["optimizer"], saved.parts["optimizer"]), parts.optimizer)
    check_optimizer(optimizer, parts.optimizer, f"{saved.path}: optimizer")
    _same_kind(state["scaler"], parts.stepper.scaler.state_dict(), f"{saved.path}: scaler")
    for name, module in modules.items():
        module.load_state_dict(saved.parts[name])
    try:
        parts.optimizer.load_state_dict(optimizer)
    except (ValueError, TypeError, KeyError) as error:  # what some keep besides, such as a generator's state
        raise DamageError(f"{shown(saved.path)}: optimizer cannot be loaded: {shown(error)}") from error
    parts.stepper.scaler.load_state_dict(state["scaler"])
    if parts.stepper.masks is not None and (revived := parts.stepper.masks.revived(parts.optimizer)):
        raise DamageError(
            f"{shown(saved.path)}: {shown(revived[0])} is not zero where the run's mask has it masked, in weights,"
            " average or optimizer: no run under this mask wrote it"
        )
    return progress, notes


def _check_alike(saved: Checkpoint, parts: Parts) -> list[str]:
    """What changed since a checkpoint without doing harm. Raises MismatchError for whatever does, all of it by name.

    A setting that the checkpoint's version had not is at its default there, which is what that version did.
    """
    ours, unknown = facts_to_resume(parts), unknown_to(saved.state[STRICT], parts.config)
    if wrong := _differences(unknown | saved.state[STRICT], ours[STRICT]):
        raise MismatchError(
            f"{saved.path} is of another run:\n  " + "\n  ".join(wrong) + "\nResume with the same settings and files,"
            " or start anew in another --out (--init-from takes over the weights alone)."
        )
    loose = _differences(saved.state[LOOSE], ours[LOOSE])
    notes = [f"{line}: the run goes on with the same batches, and may round differently" for line in loose]
    if unknown:
        notes.append(f"the checkpoint is of a version without {', '.join(unknown)}: taken as at their defaults there")
    return notes


def _differences(saved: Mapping[str, Any], ours: Mapping[str, Any]) -> list[str]:
    plain = json.loads(json.dumps(ours))  # tuples become lists, as in the checkpoint
    return [
        f"{shown(name)}: the checkpoint has {shown(saved.get(name))}, this run {shown(plain.get(name))}"
        for name in dict.fromkeys((*saved, *plain))
        if saved.get(name) != plain.get(name)
    ]


def mark_of(saved: Checkpoint) -> Mark | None:
    """What a checkpoint says of the log before it; None if one of version 1 says nothing.

    Raises DamageError for what is no mark.
    """
    mark = saved.state.get(LOG) or {}
    if not mark and saved.version == FIRST_VERSION:
        return None
    if {name: type(value) for name, value in mark.items()} != {"lines": int, "sha256": str}:
        raise DamageError(f"{saved.path}: what it says of the log cannot be read")
    return Mark(**mark)


def _stepped_as(found: Any, optimizer: torch.optim.Optimizer) -> Any:
    """An optimizer's state whose groups say `fused` as this run's do: another device may have written it."""
    groups = found.get("param_groups") if isinstance(found, dict) else None
    if not isinstance(groups, list) or not all(isinstance(group, dict) for group in groups):
        return found  # which is told where it is checked
    own = {"fused": optimizer.defaults.get("fused")}
    return found | {"param_groups": [group | own if "fused" in group else group for group in groups]}


def check_optimizer(found: Any, optimizer: torch.optim.Optimizer, where: str) -> None:
    """Hold an optimizer's state against what this one has after a step: groups alike, and each weight's state.

    A weight may lack a state (it never had a gradient), and have more in it than after one step. Raises DamageError.
    """
    for group in optimizer.param_groups:
        for weight in group["params"]:
            weight.grad = torch.zeros_like(weight)
    optimizer.step()
    optimizer.zero_grad()
    wanted = optimizer.state_dict()
    if not isinstance(found, dict) or not isinstance(found.get("state"), dict):
        raise DamageError(f"{where} is no state of an optimizer")
    _same_kind(found.get("param_groups"), wanted["param_groups"], f"{where}, groups")
    for theirs, ours in zip(found["param_groups"], wanted["param_groups"], strict=True):
        for name, value in ours.items():
            if _is_odd(theirs[name], value):
                raise DamageError(f"{where}, groups: {name} is {shown(theirs[name])}, this run's is {shown(value)}")
    for number, state in found["state"].items():
        if number not in wanted["state"] or not isinstance(state, dict):
            raise DamageError(f"{where} has a state of weight {shown(number)}, which the run has not")
        _same_kind({name: state.get(name) for name in wanted["state"][number]}, wanted["state"][number], where)


def _is_odd(found: Any, wanted: Any) -> bool:
    """Whether a group's value, of the kind that is wanted, is another switch than the run's, or a number that is none;
    other numbers may change on the way, as rates do.
    """
    if isinstance(wanted, bool | str | None):
        return bool(found != wanted)
    if isinstance(wanted, list | tuple):
        return any(map(_is_odd, found, wanted))
    return isinstance(found, int | float) and not abs(found) <= MAX_RATE


def _same_kind(found: Any, wanted: Any, where: str) -> None:
    """Raises DamageError unless both have the same names, lengths and types, and tensors the same shapes and dtypes."""
    if _kind(found) != _kind(wanted):
        raise DamageError(f"{where} is not of the shapes and types that this run has")


def _kind(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.dtype, tuple(value.shape)
    if isinstance(value, Mapping):
        return {name: _kind(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_kind(item) for item in value]
    return "number" if isinstance(value, int | float) else type(value)
