"""How every run of a study, or of a folder of runs, stands, read from what the runs leave while they go on.

Nobody keeps a table of runs: a kill would leave it wrong. A run is running while a process holds a lock on it, and what
else there is to know stands in its settings, the end of its log and its result. So any process on any machine that sees
the folder can say how a study stands.
"""

import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from dlth.pipeline.evidence.arm_key import MASKED, ArmKey, judged_on
from dlth.pipeline.evidence.failure import read_failure
from dlth.pipeline.evidence.study_plan import MAX_RUNS, STUDY, PlannedRun, StudyPlan, read_study
from dlth.tickets.errors import DlthError, LimitError, MissingFileError, shown
from dlth.tickets.store.disk import read_file
from dlth.tickets.store.locks import is_owned
from dlth.training.runs.result import RunResult, read_result
from dlth.training.runs.runlog import METRICS, RESULT, newest_records
from dlth.training.settings.fields import fixed_settings
from dlth.training.settings.layering import checked
from dlth.training.settings.toml_text import CONFIG, MAX_CONFIG_BYTES, parse_toml
from dlth.training.settings.train_config import TrainConfig

State = Literal["waiting", "running", "stopped", "failed", "finished"]


@dataclass(frozen=True)
class RunState:
    """How a run stands.

    state: waiting (nobody began it), running (a process owns it), stopped (begun, and left to whoever goes on with it),
        failed (by itself, or its folder holds another run, or one that it needs failed), finished
    k: patches kept in the newest step; epoch: whole epochs done, of epochs; step: steps done, of steps
    top1: accuracy in percent at the newest evaluation, on the tokens that the arm is judged by
    written: when it wrote last, in seconds since 1970; None of a run that did not
    problem: why it failed, or what of its folder cannot be read
    """

    name: str
    folder: Path
    state: State
    arm: ArmKey
    seed: int | None = None
    k: int | None = None
    epoch: int = 0
    epochs: int | None = None
    step: int = 0
    steps: int | None = None
    top1: float | None = None
    written: float | None = None
    problem: str = ""

    @property
    def done(self) -> float:
        """Share of its steps that is done; 0 while their number is not known."""
        return 1.0 if self.state == "finished" else min(1.0, self.step / self.steps) if self.steps else 0.0

    @property
    def age(self) -> float | None:
        """Seconds since it wrote; None of a run that did not."""
        return None if self.written is None else max(0.0, time.time() - self.written)

    @property
    def is_over(self) -> bool:
        """Whether nothing is left to do for it."""
        return self.state in ("finished", "failed")


def run_states(folder: Path) -> tuple[RunState, ...]:
    """The runs of a study in the order of its plan, or those of any folder by name, or the one that a folder is.

    Raises:
        MissingFileError: no such folder
        DamageError: a study's plan that is none
        LimitError: more than `MAX_RUNS` folders
    """
    if os.path.lexists(folder / STUDY):
        return study_states(folder, read_study(folder))
    if not folder.is_dir():
        raise MissingFileError(f"{shown(folder)} is no folder of runs: name a study's, a run's, or one that holds runs")
    if os.path.lexists(folder / CONFIG):
        return (loose_state(folder.resolve()),)
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    if len(names) > MAX_RUNS:
        raise LimitError(f"{shown(folder)} holds {len(names)} folders; at most {MAX_RUNS} are looked at")
    return tuple(loose_state(folder / name) for name in sorted(names) if os.path.lexists(folder / name / CONFIG))


def study_states(study: Path, plan: StudyPlan) -> tuple[RunState, ...]:
    """How the runs of a study stand, in the order of the plan."""
    return failed_by_need(plan, [planned_state(study, plan, run) for run in plan.runs])


def failed_by_need(plan: StudyPlan, states: Iterable[RunState]) -> tuple[RunState, ...]:
    """The states of a plan's runs, in its order, where a run that needs a failed one has failed as well.

    That is worked out and never written, so it ends by itself once the other is tried again and finishes.
    """
    known: dict[str, RunState] = {}
    for run, state in zip(plan.runs, states, strict=True):
        failed = next((name for name in run.needs if known[name].state == "failed"), None)
        if failed is not None and state.state in ("waiting", "stopped"):
            state = replace(state, state="failed", problem=f"it is made of {failed}, which failed")
        known[run.name] = state
    return tuple(known.values())


def planned_state(study: Path, plan: StudyPlan, run: PlannedRun, mine: bool = False) -> RunState:
    """How one run of a study stands; what its folder holds counts only if it is that run's.

    mine: the caller has claimed it, which does not make it a running one
    """
    folder = plan.folder(study, run)
    steps = run.cost.steps and run.cost.steps + run.settings.get("start_step", 0)  # it is logged at steps of the whole
    begun = RunState(
        run.name, folder, "waiting", run.arm, run.seed, epochs=run.cost.epochs or None, steps=steps or None
    )
    if other := other_run(folder, plan.train_settings(study, run)):
        return replace(begun, state="failed", problem=other)
    return _seen(begun, not mine and is_owned(folder.parent, run.name))


def other_run(folder: Path, settings: Mapping[str, Any]) -> str:
    """In what the run that a folder holds differs from the one of these settings; empty if in nothing that decides its
    result, or if the folder holds none. What is no folder of its own, but a link or a file, holds another.
    """
    if folder.is_symlink() or (os.path.lexists(folder) and not folder.is_dir()):
        return f"{shown(folder)} is a link or a file where a run has its folder, and is left alone: remove it"
    if not os.path.lexists(folder / CONFIG):
        return ""
    try:
        theirs = fixed_settings(checked(TrainConfig, _settings(folder)))
    except DlthError as error:
        return f"{shown(folder)} holds settings that cannot be read: {error}"
    ours = fixed_settings(checked(TrainConfig, {**settings, "out": str(folder)}))
    differ = [
        f"{name} is {shown(theirs[name])}, not {shown(ours[name])}" for name in ours if theirs[name] != ours[name]
    ]
    return f"{shown(folder)} holds another run, which is left alone: {'; '.join(differ)}" if differ else ""


def loose_state(folder: Path) -> RunState:
    """How the run of a folder stands of which no plan tells; a control's key says ticket, as its settings do."""
    begun = RunState(folder.name, folder, "waiting", ArmKey("?"))
    try:
        values = _settings(folder)
    except DlthError as error:
        return replace(begun, state="stopped", problem=str(error))
    arm = _text(values, "arm") or "selector"  # whose own settings have no arm
    dense = arm in ("dense", "selector")
    key = ArmKey(arm, "" if dense else _text(values, "keep"), "" if dense else _text(values, "mode"))
    key = replace(key, pruned=MASKED if _text(values, "mask") else "")
    return _seen(replace(begun, arm=key, seed=_number(values, "seed"), epochs=_number(values, "epochs")), False)


def _seen(begun: RunState, owned: bool) -> RunState:
    """The state with what the folder tells; `owned`: a worker has the run in hand, whatever its folder says."""
    folder = begun.folder
    begun = replace(begun, written=_written(folder))
    result = None
    try:
        result = read_result(folder / RESULT)
    except DlthError as error:  # a link or a device: whatever it hides, a mark of failure beside it counts
        begun = replace(begun, state="stopped", problem=str(error))
    if result is not None and result.status == "finished":
        return _finished(begun, result)
    failure = read_failure(folder)
    if owned or is_owned(folder):
        begun = replace(begun, state="running")
    elif failure is not None:
        begun = replace(begun, state="failed", problem=f"{failure.code}: {failure.message}")
    elif begun.written is not None:
        begun = replace(begun, state="stopped")
    try:
        return _logged(begun)
    except DlthError as error:
        return replace(begun, problem=begun.problem or str(error))


def _finished(begun: RunState, result: RunResult) -> RunState:
    tokens = result.evaluation.get("model", {})
    judged = tokens.get(judged_on(result.arm, tokens), {})
    key = begun.arm if begun.arm.keep or result.arm == "dense" else replace(begun.arm, keep=result.keep)
    top1 = judged.get("top1")
    return replace(
        begun,
        state="finished",
        arm=key,
        seed=result.seed,
        k=result.k,
        epoch=result.epochs,
        epochs=result.epochs,
        step=result.steps,
        steps=result.steps,
        top1=float(top1) if isinstance(top1, int | float) else None,
    )


def _logged(begun: RunState) -> RunState:
    """What the end of the log tells. Raises DamageError, UnsafeError."""
    step, epoch, top1, k, steps = 0, None, None, None, begun.steps
    column = "eval_dense_top1" if begun.arm.arm == "dense" else "eval_ticket_top1"
    for record in newest_records(begun.folder):
        step = step or record["step"]
        if record["kind"] == "train":
            k = _number(record, "k") if k is None else k
            batches = _number(record, "num_batches")
            steps = steps or (batches * begun.epochs if batches and begun.epochs else None)
            epoch = _number(record, "epoch") if epoch is None else epoch
        else:
            epoch = record["epoch"] + 1 if epoch is None else epoch
            top1 = record.get(column, record.get("eval_dense_top1"))
        if top1 is not None and k is not None:
            break
    return replace(begun, step=step, steps=steps, epoch=epoch or 0, top1=top1, k=k)


def _settings(folder: Path) -> dict[str, Any]:
    """What a run's folder says of its settings. Raises DlthError; no link is followed."""
    path = folder / CONFIG
    return parse_toml(read_file(path, MAX_CONFIG_BYTES, shown(path)).decode("utf-8", "replace"), shown(path))


def _written(folder: Path) -> float | None:
    """When the newest of the files was written that a run keeps writing; None where there is none."""
    there = [folder / name for name in (METRICS, RESULT, CONFIG) if (folder / name).is_file()]
    return max((path.stat().st_mtime for path in there), default=None)


def _text(values: Mapping[str, Any], name: str) -> str:
    return value if isinstance(value := values.get(name), str) else ""


def _number(values: Mapping[str, Any], name: str) -> int | None:
    return value if type(value := values.get(name)) is int else None
