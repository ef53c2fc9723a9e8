"""From folders to evidence: studies by their plan, loose runs by what their results say they are.

Folders may come from another lab: what cannot be read is told and left out, and nothing in one leads to another.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from dlth.pipeline.evidence.agreement import Agreement, read_agreement
from dlth.pipeline.evidence.arm_key import CONTROL, MASKED, ArmKey
from dlth.pipeline.evidence.evidence import DENSE, Evidence
from dlth.pipeline.evidence.finished_run import FinishedRun
from dlth.pipeline.evidence.placing import BASE_ARMS, Placed, by_arm
from dlth.pipeline.evidence.pruned_as import pruned_as
from dlth.pipeline.evidence.run_states import RunState, run_states, study_states
from dlth.pipeline.evidence.study_plan import RUNS, STUDY, StudyPlan, read_study
from dlth.tickets.callbacks import Note
from dlth.tickets.errors import DamageError, DlthError, InputError, shown
from dlth.training.runs.result import RunResult
from dlth.training.settings.train_config import TrainConfig

AGREEMENTS, MAX_AGREEMENTS = "agreement*.json", 100
"""Files of a study's folder, or a run's, and how many are looked at."""


@dataclass(frozen=True)
class _Source:
    """A folder that was named: its plan, if it is a study, and its runs."""

    folder: Path
    plan: StudyPlan | None
    states: tuple[RunState, ...]


def gather(folders: Sequence[Path], note: Note = lambda text: None) -> Evidence:
    """Read what studies, folders of runs, and runs hold; `note` is told what was left out.

    Raises:
        InputError: no folder, or one without runs
        MissingFileError, DamageError, LimitError: a folder that is not there, a damaged plan, too many runs
    """
    if not folders:
        raise InputError("name at least one folder: of a study, of runs, or of one run")
    sources = [_source(folder) for folder in dict.fromkeys(folders)]
    notes: list[str] = []

    def tell(text: str) -> None:
        notes.append(text)
        note(text)

    loaded = [list(_loaded(source.states, tell)) for source in sources]
    placed = [each for source, read in zip(sources, loaded, strict=True) for each in _placed(source, read, tell)]
    runs = by_arm(placed, tell)
    unfinished = tuple(each for read in loaded for each in read if isinstance(each, RunState))
    studies = {source.folder: source.plan for source in sources if source.plan is not None}
    agreements = _agreements([source.folder for source in sources], runs, tell)
    return Evidence(runs, unfinished, studies, tuple(notes), agreements)


def arm_key(result: RunResult) -> ArmKey:
    """Which arm a run is of, by its result: that of a control's tickets is the control's."""
    if result.arm == DENSE:
        return ArmKey(DENSE)
    said, _, rest = result.tickets_are.partition(": ")
    made = result.arm == "ticket" and f"{said}-" == CONTROL
    arm = CONTROL + rest.partition(";")[0] if made else result.arm
    mode = result.mode or str(TrainConfig.model_fields["mode"].default)
    return ArmKey(shown(arm, 60), shown(result.keep, 20), shown(mode, 20))


def _source(folder: Path) -> _Source:
    if (folder / STUDY).is_file():
        plan = read_study(folder)
        return _Source(folder, plan, study_states(folder, plan))
    inside = folder / RUNS  # of what is laid out as a study, and has no plan: a bundle of a selector's runs
    if not (states := run_states(inside if inside.is_dir() and not inside.is_symlink() else folder)):
        raise InputError(f"{shown(folder)} holds no run and no study: name a folder that dlth train or compare made")
    return _Source(folder, None, states)


def _loaded(states: Sequence[RunState], tell: Note) -> Iterator[FinishedRun | RunState]:
    """Each run that is finished, with its images; the state of each other."""
    for state in states:
        if state.state != "finished":
            yield state
            continue
        try:
            run = FinishedRun.load(state.folder)
            _check(run, state)
            yield run
        except DlthError as error:
            tell(f"left out: {error}")
            yield replace(state, state="failed", problem=str(error))


def _check(run: FinishedRun, state: RunState) -> None:
    """Refuse a result of another run than the folder's, as the plan or its settings say."""
    arm = "ticket" if state.arm.arm.startswith(CONTROL) else state.arm.arm
    if (run.result.arm, run.seed) != (arm, state.seed):
        raise DamageError(
            f"{shown(state.folder)} should hold a run of arm {shown(arm)}, seed {state.seed}; its result is of arm"
            f" {shown(run.result.arm)}, seed {run.seed}"
        )
    if bool(state.arm.pruned) != bool(run.result.mask):
        should, is_ = ("pruned", "unpruned") if state.arm.pruned else ("unpruned", "pruned")
        raise DamageError(f"{shown(state.folder)} should hold the run of {should} weights; its result is of {is_} ones")
    first = run.mask.initial if run.mask is not None and state.arm.pruned != MASKED else ""
    if first and run.result.initial_weights not in ("", first):
        raise DamageError(
            f"{shown(state.folder)} should hold a run that begins with the weights {first[:12]}, to which its mask sets"
            f" back; its result is of one that began with {shown(run.result.initial_weights[:12])}"
        )


def _placed(source: _Source, read: Sequence[FinishedRun | RunState], tell: Note) -> Iterator[Placed]:
    """The finished runs of a source with their arms: the plan's, or those that results say."""
    planned = {state.folder: state.arm for state in source.states} if source.plan is not None else {}
    for run in read:
        if isinstance(run, FinishedRun) and run.result.arm not in BASE_ARMS:
            tell(f"left out: {shown(run.folder)} is a run of arm {shown(run.result.arm)}, which no clause is about")
        elif isinstance(run, FinishedRun):
            yield Placed(source.folder, planned.get(run.folder) or pruned_as(arm_key(run.result), run), run)


def _agreements(
    folders: Sequence[Path], runs: Mapping[ArmKey, Mapping[int, FinishedRun]], tell: Note
) -> dict[str, Agreement]:
    """What was measured of the tickets that a run was trained on, by folder and file."""
    trained_on = {run.result.tickets for by_seed in runs.values() for run in by_seed.values()}
    found = {}
    for path in (path for folder in folders for path in sorted(islice(folder.glob(AGREEMENTS), MAX_AGREEMENTS))):
        try:
            agreement = read_agreement(path)
        except DlthError as error:
            tell(f"left out: {error}")
            continue
        if agreement.tickets in trained_on:
            found[f"{path.parent.name}/{path.name}"] = agreement
        else:
            tell(f"left out: {shown(path)} is about tickets that none of these runs was trained on")
    return found
