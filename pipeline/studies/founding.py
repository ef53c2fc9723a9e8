"""Which plan a study follows: the first process writes it, the others read it, and a grid may grow.

Planning opens every arm and may measure steps, so it happens once, under the study's lock; who comes meanwhile waits
for it. What is asked for stands beside the plan as text: the same text again means the same plan, and nothing is
planned or measured anew.
"""

import itertools
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from dlth.pipeline.evidence.study_plan import STUDY, PlannedRun, StudyPlan, read_study, write_study
from dlth.pipeline.studies.identity import mask_contents, run_digest, run_name
from dlth.tickets.callbacks import Note
from dlth.tickets.errors import InputError, LockedError, MismatchError, MissingFileError, shown
from dlth.tickets.format.jsontext import strict
from dlth.tickets.store.disk import read_file
from dlth.tickets.store.locks import LOCK, owned
from dlth.training.run_files import write_text
from dlth.training.settings.layering import checked
from dlth.training.settings.toml_text import MAX_CONFIG_BYTES
from dlth.training.settings.train_config import TrainConfig

ASKED = "study.toml"
POLL = 0.5
_MOST_TOLD = 10
_MAY_CHANGE = ("out", "gpus", "measure")
"""Settings of a study that say nothing of which runs it has."""

MakePlan = Callable[[StudyPlan | None], StudyPlan]
"""Makes a plan; it is given the one that the study has, None in a new folder."""


def founded(folder: Path, asked: str, make_plan: MakePlan, note: Note = lambda text: None) -> StudyPlan:
    """The plan of the study in a folder, made now if nobody did.

    Args:
        folder: the study's
        asked: TOML of what is asked for, as study.toml keeps it
        make_plan: makes the plan, and what its runs need beside it; called under the study's lock, if at all
        note: told that another process is planning
    Raises:
        MismatchError: the folder's study has runs that the plan has not
        InputError: the folder holds something else
        DlthError: as `make_plan`
    """
    with owned_in_time(folder, note):
        known, plan = _known_and_next(folder, asked, make_plan)
        if plan is not known:
            write_text(folder / ASKED, asked)
            write_study(folder, plan)
        return plan


def foreseen(folder: Path, asked: str, make_plan: MakePlan) -> StudyPlan:
    """The plan that `founded` would give, with nothing written and nobody waited for. Raises as `founded`."""
    return _known_and_next(folder, asked, make_plan)[1]


def _known_and_next(folder: Path, asked: str, make_plan: MakePlan) -> tuple[StudyPlan | None, StudyPlan]:
    """The folder's plan so far, and the one that what is asked for makes of it: the very same if asked before."""
    known = read_study(folder) if os.path.lexists(folder / STUDY) else None
    if known is not None and _asked_before(folder) == asked.encode():
        return known, known
    if known is None and folder.is_dir():
        _refuse_foreign(folder)
    plan = make_plan(known)
    if known is not None:
        _refuse_lost_runs(folder, known, plan)
    return known, plan


def joined_study(folder: Path, command: str = "") -> StudyPlan:
    """The plan of a study that is named by its folder alone, which may have come from anybody.

    Args:
        folder: the study's
        command: of which it must be, "compare" or "prune"; of either where nothing is said
    Raises:
        MissingFileError, DamageError: as `read_study`
        MismatchError: a run's settings are not those that its name was made of
        InputError: it is of the other command; a run's settings cannot be, or have something fetched that nobody here
            asked for
    """
    plan = read_study(folder)
    if command not in ("", plan.command):
        right = f"dlth {plan.command}"
        raise InputError(f"{shown(folder)} holds a study of {right}: {right} --out {shown(folder)} joins it")
    for run in plan.runs:
        where = f"{shown(folder / STUDY)}: {run.name}"
        try:
            config = checked(TrainConfig, plan.train_settings(folder, run))
        except InputError as error:
            raise InputError(f"{where}: {error}") from error
        contents = {**run.contents, **({} if run.mask is None else strict(mask_contents(run.mask)))}
        if contents and run.name != run_name(run.arm, run.seed, run_digest(config, contents)):
            raise MismatchError(f"{where} has other settings than it was named by: the plan was changed since")
        if fetched := [f"{name} = {shown(value)}" for name, value in run.settings.items() if _fetches(name, value)]:
            raise InputError(
                f"{where} would have something fetched ({'; '.join(fetched)}), and the folder may have come from"
                f" somebody else: say so yourself by the flags that the study was made with, or --config"
                f" {shown(folder / ASKED)} once you have read it"
            )
    return plan


def _fetches(name: str, value: Any) -> bool:
    """Whether a setting names an address, anywhere in it, or asks for released weights."""
    return "://" in json.dumps(value) or (name in ("pretrained", "selector_pretrained") and bool(value))


@contextmanager
def owned_in_time(folder: Path, note: Note) -> Iterator[None]:
    """Own the study's folder for the block, however long another does."""
    with ExitStack() as stack:
        for tries in itertools.count():
            try:
                stack.enter_context(owned(folder))
                break
            except LockedError:
                if tries == 0:
                    note(f"another process plans or reports the study in {shown(folder)}: waiting for it")
                time.sleep(POLL)
        yield


def _asked_before(folder: Path) -> bytes:
    try:
        return read_file(folder / ASKED, MAX_CONFIG_BYTES, shown(folder / ASKED))
    except MissingFileError:
        return b""


def _refuse_foreign(folder: Path) -> None:
    """Raises InputError for a folder that holds anything; what a kill left of a plan in the making is none."""
    there = [path.name for path in folder.iterdir() if path.name not in (LOCK, ASKED, "tickets")]
    if there:
        raise InputError(
            f"{shown(folder)} is not empty and holds no study ({shown(', '.join(sorted(there)))}): take another --out"
        )


def _refuse_lost_runs(folder: Path, known: StudyPlan, plan: StudyPlan) -> None:
    """Raises MismatchError unless the plan has every run of the one before, and says in what lost ones differ."""
    names = {run.name for run in plan.runs}
    lost = [run for run in known.runs if run.name not in names]
    if not lost:
        return
    now = {(run.arm, run.seed): run for run in plan.runs}
    told = [f"{run.name}: {_differs(run, now.get((run.arm, run.seed)))}" for run in lost[:_MOST_TOLD]]
    more = [f"and {len(lost) - _MOST_TOLD} more"] if len(lost) > _MOST_TOLD else []
    own = [
        f"{name} is {shown(plan.settings.get(name))}, was {shown(was)}"
        for name, was in known.settings.items()
        if name not in _MAY_CHANGE and plan.settings.get(name) != was
    ]
    raise MismatchError(
        f"{shown(folder)} holds another study"
        + (f" ({'; '.join(own)})" if own else "")
        + ": a grid may grow, but these of its runs are not asked for any more:\n  "
        + "\n  ".join(told + more)
        + "\nAsk for what it has as well, or take another --out."
    )


def _differs(run: PlannedRun, other: PlannedRun | None) -> str:
    if other is None:
        return f"there is no {shown(str(run.arm))} with seed {run.seed}"
    names = [name for name in run.settings if run.settings[name] != other.settings.get(name)]
    told = [f"{name} is {shown(other.settings.get(name))}, was {shown(run.settings[name])}" for name in names]
    return "; ".join(told) or "its images, tickets or weights are others now"
