"""Do the runs of a study that nobody else does, until all of them are over.

Any number of processes may do this at once, on any machines that see the folder. A run is claimed by a lock beside its
folder, and looked at again under that lock; a claim ends with its process, however that ends, so a killed worker's run
is taken over at its last checkpoint by the next who looks. A pruned run is taken once the runs that its mask is made of
are finished, those first that the longest chain of others waits for; the mask is made under the run's claim, again at
each start, and is then the very same file. Rejected: dealing runs out beforehand (worker i of n), which
leaves a dead worker's share undone, and a process that leads, which can die itself.

What a run does by itself (it diverges, or is refused) is marked in its folder, and the others go on. What a machine
does to it (a full disk, no memory, files that are not there) ends this worker and marks nothing: another may do better.
So do files that were exchanged since the plan was made: put back, they serve the same run.
"""

import json
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from dlth.pipeline.evidence.arm_key import CONTROL
from dlth.pipeline.evidence.failure import FAILED, Failure, read_failure, write_failure
from dlth.pipeline.evidence.parents import altered_parents
from dlth.pipeline.evidence.run_states import RunState, failed_by_need, other_run, planned_state
from dlth.pipeline.evidence.study_plan import RUNS, PlannedRun, StudyPlan
from dlth.pipeline.studies.identity import MADE_OF_RUNS
from dlth.pipeline.studies.launched import batch_shared_by, train_on_gpus
from dlth.tickets.errors import (
    DlthError,
    InputError,
    LockedError,
    MismatchError,
    MissingFileError,
    SpaceError,
    TransferError,
    shown,
)
from dlth.tickets.format.jsontext import strict
from dlth.tickets.store.disk import make_folder, refuse_linked
from dlth.tickets.store.locks import owned
from dlth.training.distributed.process_group import pick_device
from dlth.training.distributed.signals import StopRequest, stop_on_signals
from dlth.training.machine_errors import BugError, MachineError, OutOfMemoryError, RankError
from dlth.training.pruning.making import make_mask
from dlth.training.reporter import Reporter
from dlth.training.runs.loop import train
from dlth.training.runs.survey import read_now
from dlth.training.settings.fields import names_code
from dlth.training.settings.layering import checked
from dlth.training.settings.train_config import TrainConfig

BETWEEN_LOOKS, MOST_BETWEEN_LOOKS = 2.0, 30.0
"""Seconds between two looks at all runs; more where a look is slow, as at hundreds of runs over a network."""
SHARE_OF_LOOKS = 0.05
POLL = 0.2
"""Seconds after which a worker that waits for others asks whether it should stop."""
MACHINES = (
    *(SpaceError, LockedError, TransferError, MissingFileError),
    *(MachineError, OutOfMemoryError, RankError, BugError),
)
"""Errors that are no fault of a run's."""


@dataclass(frozen=True)
class StudyState:
    """How a study stands when a worker leaves it; `stopped`: because it was asked to."""

    runs: tuple[RunState, ...]
    stopped: bool = False

    @property
    def failed(self) -> tuple[RunState, ...]:
        """The runs that failed by themselves, whose folder holds another run, or that need one of these."""
        return tuple(run for run in self.runs if run.state == "failed")


class StudyReporter:
    """Base of everything that listens to a study; all methods do nothing here."""

    def note(self, text: str) -> None:
        """Something a person should know."""

    def looked(self, states: Sequence[RunState]) -> None:
        """How all runs stand now, in the order of the plan; every few seconds."""


def run_study(
    folder: Path,
    plan: StudyPlan,
    *,
    gpus: int = 1,
    retry: bool = False,
    own_code: Collection[str] = (),
    reporter: StudyReporter | None = None,
) -> StudyState:
    """Do every run of a study that nobody else does, wait for those of others, and return when all are over.

    SIGTERM and SIGINT let the run in hand save; the state is then `stopped`.

    Args:
        folder: the study's
        plan: its plan, as its study.json has it
        gpus: processes that train a run together, each on its GPU; steps have the plan's number of images for any
        retry: try failed runs again
        own_code: places of one's own code (`module:name`) that runs may import
        reporter: told how all runs stand
    Raises:
        InputError: a device that this machine has not, a number of GPUs that no step can be shared by, or code to
            import that is not among `own_code`
        UnsafeError: its folder of runs is a link
        DlthError: what the machine refuses, as `MACHINES`; the run in hand can be taken over
    """
    _refuse_code(folder, plan, own_code)
    worker = Worker(folder, plan, gpus, reporter or StudyReporter())
    worker.check_machine()
    refuse_linked(folder / RUNS)
    make_folder(folder / RUNS)
    if retry:
        worker.forgive()
    with stop_on_signals() as stop:
        return worker.work(stop)


def _refuse_code(folder: Path, plan: StudyPlan, own_code: Collection[str]) -> None:
    """Raises InputError for code that nobody here asked for: a study's folder may have come from anywhere."""
    for name, value in (setting for run in plan.runs for setting in run.settings.items()):
        if names_code(name, value) and value not in own_code:
            raise InputError(
                f"the study in {shown(folder)} names code to import ({name} = {shown(value)!r}), and its folder may"
                f" have come from somebody else: give --{name.replace('_', '-')} {shown(value)} with --out, or"
                " the --config that the study was made with"
            )


class Worker:
    """One process at work on a study; what it remembers is only to spare another look."""

    def __init__(self, folder: Path, plan: StudyPlan, gpus: int, reporter: StudyReporter) -> None:
        self.folder, self.plan, self.gpus, self.reporter = folder, plan, gpus, reporter
        self.finished: dict[str, RunState] = {}
        self.failed: dict[str, str] = {}  # why, of those that failed under this worker, which does not retry them
        self.awaited = chains(plan)
        self.next_look = 0.0

    def check_machine(self) -> None:
        """Raises InputError for what is wrong with this machine and would else be taken for a run's failure."""
        configs = [self.config(run) for run in self.plan.runs]
        for name in sorted({config.device for config in configs}):
            device = pick_device(name)
            if device.type == "cuda" and torch.cuda.device_count() < self.gpus:
                raise InputError(f"--gpus {self.gpus}: this machine has {torch.cuda.device_count()}")
        for config in configs:
            batch_shared_by(config, self.planned_gpus, self.gpus)

    @property
    def planned_gpus(self) -> int:
        """The processes that the plan's batch sizes are meant for."""
        return int(self.plan.settings.get("gpus", 1))

    def config(self, run: PlannedRun) -> TrainConfig:
        """The settings of a run, in its place."""
        return checked(TrainConfig, {**self.plan.train_settings(self.folder, run), "resume": "auto"})

    def forgive(self) -> None:
        """Take the marks of failure away; a folder that holds another run stays as it is."""
        for run in self.plan.runs:
            place = self.plan.folder(self.folder, run)
            if not other_run(place, self.plan.train_settings(self.folder, run)) and read_failure(place) is not None:
                with suppress(LockedError), owned(self.folder / RUNS, run.name):
                    (place / FAILED).unlink(missing_ok=True)

    def work(self, stop: StopRequest) -> StudyState:
        """Take one run after another, until none is left or a stop is asked for."""
        while not stop.requested:
            states = self.look()
            if all(state.is_over for state in states):
                return StudyState(states)
            if not any(self.take(run, stop) for run in self._open(states)):
                while time.monotonic() < self.next_look and not stop.requested:
                    time.sleep(POLL)
        return StudyState(self.look(), stopped=True)

    def _open(self, states: Sequence[RunState]) -> Iterator[PlannedRun]:
        """Runs that may be had, those first that somebody began, then those that the longest chain waits for."""
        finished = {state.name for state in states if state.state == "finished"}
        both = zip(self.plan.runs, states, strict=True)
        may = [(run, state.state) for run, state in both if finished.issuperset(run.needs)]
        for wanted in ("stopped", "waiting"):
            of_state = [run for run, state in may if state == wanted]
            yield from sorted(of_state, key=lambda run: self.awaited[run.name], reverse=True)

    def take(self, run: PlannedRun, stop: StopRequest) -> bool:
        """Claim a run and do it to its end; False where another has it, or had it since the last look."""
        try:
            with owned(self.folder / RUNS, run.name):
                state = planned_state(self.folder, self.plan, run, mine=True)
                if state.state not in ("waiting", "stopped") or run.name in self.failed:
                    return False
                self._do(run, stop)
                return True
        except LockedError:
            return False

    def _do(self, run: PlannedRun, stop: StopRequest) -> None:
        config = self.config(run)
        try:
            exchanged = altered_parents(self.folder, run.mask) if run.mask is not None else ""
            if not exchanged:
                self._make_mask(run)
                exchanged = self._exchanged(run, config)
            if not exchanged:
                self._train(run, config, stop)
        except MACHINES:
            raise
        except DlthError as error:
            self.failed[run.name] = f"{error.code}: {error}"
            write_failure(Path(config.out), Failure(error.code, str(error)))
            self.reporter.note(f"{run.name} failed [{error.code}]: {error}")
            return
        if exchanged:
            raise MismatchError(
                f"{run.name} would not be the run that was planned, as files were exchanged since: {exchanged}. Put"
                " them back, or begin another study with another --out"
            )

    def _make_mask(self, run: PlannedRun) -> None:
        """Make the mask of a pruned run, or check that the one which is there is what the plan makes of its parent."""
        if run.mask is not None:
            runs, rewinds_to = self.folder / RUNS, run.mask.rewinds_to
            make_mask(run.mask.recipe, runs / run.mask.of, runs / rewinds_to if rewinds_to else None, runs / run.name)

    def _exchanged(self, run: PlannedRun, config: TrainConfig) -> str:
        """What the run would read that is not what it was planned to read; empty where all is.

        What a study makes itself was not there when it was planned: a control's tickets, a pruned run's mask and the
        weights that it is rewound to, which its mask tells of.
        """
        if not run.contents:
            return ""
        now = json.loads(json.dumps(strict(read_now(config, processes=self.planned_gpus))))
        made = {"tickets"} if run.arm.arm.startswith(CONTROL) else set()
        made |= MADE_OF_RUNS if run.mask is not None else set()
        names = [name for name in {**run.contents, **now} if name not in made]
        return "; ".join(
            f"{shown(name)} is {shown(now.get(name))}, was {shown(run.contents.get(name))}"
            for name in names
            if now.get(name) != run.contents.get(name)
        )

    def _train(self, run: PlannedRun, config: TrainConfig, stop: StopRequest) -> None:
        if self.gpus == 1:
            train(config, reporter=_Watch(self, run.name), stop=stop)
        else:
            train_on_gpus(batch_shared_by(config, self.planned_gpus, self.gpus), self.gpus, stop, self.look_again)

    def look(self, at: Mapping[str, Any] | None = None, name: str = "") -> tuple[RunState, ...]:
        """Look at all runs and tell of them; `at`: the newest step of the one that this process trains."""
        begun = time.monotonic()
        states = []
        for run in self.plan.runs:
            state = self.finished.get(run.name) or planned_state(self.folder, self.plan, run)
            if state.state == "finished":
                self.finished[run.name] = state
            elif run.name in self.failed and not state.is_over and state.state != "running":
                state = replace(state, state="failed", problem=self.failed[run.name])
            elif at is not None and run.name == name:
                state = replace(state, step=at["step"], epoch=at["epoch"], steps=at["num_steps"], k=at["k"])
            states.append(state)
        told = failed_by_need(self.plan, states)
        self.reporter.looked(told)
        now = time.monotonic()
        self.next_look = now + min(max(BETWEEN_LOOKS, (now - begun) / SHARE_OF_LOOKS), MOST_BETWEEN_LOOKS)
        return told

    def look_again(self, at: Mapping[str, Any] | None = None, name: str = "") -> None:
        """Look if the last look is long enough ago."""
        if time.monotonic() >= self.next_look:
            self.look(at, name)


def chains(plan: StudyPlan) -> dict[str, int]:
    """By name, how many runs the longest chain has that waits for a run."""
    longest = dict.fromkeys((run.name for run in plan.runs), 0)
    for run in reversed(plan.runs):
        for need in run.needs:
            longest[need] = max(longest[need], longest[run.name] + 1)
    return longest


class _Watch(Reporter):
    """Looks at the study from within the run that this process trains."""

    def __init__(self, worker: Worker, name: str) -> None:
        self.worker, self.name = worker, name

    def note(self, text: str) -> None:
        self.worker.reporter.note(f"{self.name}: {text}")

    def stepped(self, record: Mapping[str, Any]) -> None:
        self.worker.look_again(record, self.name)
