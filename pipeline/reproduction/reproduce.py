"""Run rows of the paper's table: selectors and tickets where they are missing, then all students as one study.

    selector rows -> ticket files -> a plan of every student's runs, checked whole -> the runs -> a bundle a row

Every part has its place in the folder and is left alone once it is there, so the same command goes on wherever an
earlier one ended. Students are a study's runs, done by any number of processes; selectors and tickets, which all of
them wait for, are made by one.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dlth.pipeline.evidence.run_states import RunState
from dlth.pipeline.evidence.study_plan import PlannedRun, StudyPlan
from dlth.pipeline.pruning.planning import plan_prune
from dlth.pipeline.pruning.prune_config import PruneConfig
from dlth.pipeline.reproduction.bundle import BundleOf, write_bundle
from dlth.pipeline.reproduction.experiment import Experiment
from dlth.pipeline.reproduction.experiments import EXPERIMENTS
from dlth.pipeline.reproduction.materials import ROWS, Materials
from dlth.pipeline.reproduction.pruned_rows import prune_settings
from dlth.pipeline.reproduction.reproduce_config import ReproduceConfig
from dlth.pipeline.reproduction.scaling import scaled
from dlth.pipeline.selection import stage
from dlth.pipeline.selection.config import SelectConfig
from dlth.pipeline.studies.founding import founded, owned_in_time
from dlth.pipeline.studies.launched import train_on_gpus
from dlth.pipeline.studies.planning import plan_study
from dlth.pipeline.studies.study_config import CompareConfig
from dlth.pipeline.studies.worker import StudyReporter, run_study
from dlth.tickets.callbacks import Note
from dlth.tickets.errors import DlthError, InputError, shown
from dlth.training.distributed.signals import StopRequest, stop_on_signals
from dlth.training.reporter import Reporter
from dlth.training.runs.loop import train
from dlth.training.runs.result import read_result
from dlth.training.runs.runlog import RESULT
from dlth.training.settings.layering import checked
from dlth.training.settings.selector_config import SelectorTrainConfig
from dlth.training.settings.toml_text import to_toml

BUNDLES = "bundles"


@dataclass(frozen=True)
class Listener:
    """Who is told of a reproduction.

    note: what a person should know; training: the training of selectors
    study: shows how all runs of a plan stand, while they go on
    counting: ``counting(label, total)`` shows the images of stage 1
    """

    note: Note = lambda text: None
    training: Reporter = field(default_factory=Reporter)
    study: Callable[[StudyPlan], AbstractContextManager[StudyReporter]] = lambda plan: nullcontext(StudyReporter())
    counting: Callable[..., AbstractContextManager[Any]] = lambda label, total: nullcontext(_Uncounted())


class _Uncounted:
    """Shows nothing."""

    def advance(self, count: int) -> None:
        """Images that were ranked."""

    def skip(self, count: int) -> None:
        """Images that an earlier run had ranked."""


@dataclass(frozen=True)
class Reproduced:
    """What became of rows: the bundles that are complete, runs that failed, and whether a stop was asked for."""

    bundles: tuple[Path, ...] = ()
    failed: tuple[RunState, ...] = ()
    stopped: bool = False


@dataclass(frozen=True)
class Reproduction:
    """The rows that were asked for, at their scale, and what they share."""

    rows: tuple[Experiment, ...]
    materials: Materials
    listener: Listener

    @classmethod
    def of(
        cls,
        config: ReproduceConfig,
        rows: Sequence[Experiment],
        listener: Listener | None = None,
        experiments: Mapping[str, Experiment] = EXPERIMENTS,
    ) -> "Reproduction":
        """Look what can be run of the rows, and open the images.

        Raises:
            InputError: none of them can be run, or something that one needs was not given
            DlthError: shards that cannot be read
        """
        listener = listener or Listener()
        shrunk = {name: scaled(row, config.scale) for name, row in experiments.items()}
        materials = Materials.of(config, shrunk)
        why_not = {row.name: row.missing or materials.unserved(row) for row in rows}
        able = tuple(row for row in rows if not why_not[row.name])
        for name, why in why_not.items():
            if why:
                listener.note(f"{name} is left out: {why}")
        if not able:
            raise InputError(f"none of these rows can be run: {why_not[rows[0].name]}")
        if problems := [f"{row.name}: {why}" for row in able if (why := materials.lacks_start(row))]:
            raise InputError("\n".join(problems))
        if unlabelled := [row.name for row in able if "token labels" in row.needs and config.token_labels is None]:
            if config.is_whole:
                raise InputError(f"{', '.join(unlabelled)}: give --token-labels (`dlth label` makes them)")
            listener.note(f"{', '.join(unlabelled)}: tried without token labels")
        made = cls(tuple(shrunk[row.name] for row in able), materials, listener)
        for row in made.students:  # what a row lacks is told before any other is trained
            made.materials.student_settings(row, made.wanted)
            for text in materials.given_unlike(row):
                listener.note(f"{row.name} will give the table no number: {text}")
        return made

    @property
    def config(self) -> ReproduceConfig:
        """What was asked for."""
        return self.materials.config

    @property
    def students(self) -> tuple[Experiment, ...]:
        """Rows of `dlth train`."""
        return tuple(row for row in self.rows if row.is_student)

    @property
    def wanted(self) -> frozenset[str]:
        """Names of the selector rows that are trained first."""
        return frozenset(row.name for row in self.rows if not row.is_student)

    @property
    def study(self) -> Path:
        """The folder of the students' runs."""
        return self.materials.study

    def selector_runs(self) -> dict[str, list[SelectorTrainConfig]]:
        """The runs of each selector row."""
        seeds = self.config.seeds
        selectors = [row for row in self.rows if not row.is_student]
        return {row.name: [self.materials.selector_run(row, seed) for seed in seeds] for row in selectors}

    def ticket_files(self) -> dict[str, SelectConfig]:
        """The ticket files that the students need and that are not there, by path."""
        files = [file for row in self.students for file in self.materials.tickets_of(row, self.wanted).values()]
        return {file.out: file for file in files if not Path(file.out).exists()}

    def to_make(self) -> list[str]:
        """What is missing and will be made before students are trained, in words."""
        runs = [config for configs in self.selector_runs().values() for config in configs]
        trained = [
            f"train a selector, {config.epochs} epochs: {shown(config.out)}"
            for config in runs
            if not _is_finished(Path(config.out))
        ]
        files = self.ticket_files().values()
        return trained + [f"rank the patches of {shown(config.data)} into {shown(config.out)}" for config in files]

    def run(self) -> Reproduced:
        """Make what is missing, run every row, and bundle those that are complete.

        SIGTERM and SIGINT let the run in hand save.

        Raises:
            DlthError: what does not fit, or the machine refuses
        """
        with stop_on_signals() as stop:
            ready = self._prepare(stop)
        if not ready or not self.students:
            return Reproduced(self._bundles(None), stopped=not ready)
        whole = self.founded()
        mine = self.asked_for(whole)
        with self.listener.study(mine) as reporter:
            state = run_study(self.study, mine, gpus=self.config.gpus, reporter=reporter)
        return Reproduced(self._bundles(whole), state.failed, state.stopped)

    def _prepare(self, stop: StopRequest) -> bool:
        """Selectors and tickets, one process for all that wait; False where a stop was asked for."""
        with owned_in_time(self.materials.home, self.listener.note):
            for name, configs in self.selector_runs().items():
                for config in configs:
                    self.listener.note(f"{name}, seed {config.seed}: {shown(config.out)}")
                    self._train_selector(config, stop)
                    if stop.requested:
                        return False
            for tickets in self.ticket_files().values():
                self._select(tickets)
        return True

    def _train_selector(self, config: SelectorTrainConfig, stop: StopRequest) -> None:
        if _is_finished(Path(config.out)):
            return
        if self.config.gpus == 1:
            train(config, reporter=self.listener.training, stop=stop)
        else:
            train_on_gpus(config, self.config.gpus, stop, lambda: None)

    def _select(self, config: SelectConfig) -> None:
        prepared = stage.plan(config, note=self.listener.note)
        with self.listener.counting(f"tickets {Path(config.out).name}", prepared.index.num_samples) as counter:
            stage.select(prepared, counter.advance, counter.skip, self.listener.note)

    def founded(self) -> StudyPlan:
        """The plan of the study, which also has the runs of earlier calls. Raises as `planned`."""
        asked = to_toml(self.config) + "".join(f"# {row.name}\n" for row in self.students)
        return founded(self.study, asked, self._joined, self.listener.note)

    def asked_for(self, whole: StudyPlan) -> StudyPlan:
        """The runs of a plan that this call is about."""
        names = {name for row in self.students for name in whole.settings[ROWS][self.materials.key(row)]}
        runs = tuple(run for run in whole.runs if run.name in names and run.seed in self.config.seeds)
        return replace(whole, runs=runs)

    def _joined(self, known: StudyPlan | None) -> StudyPlan:
        """The runs of the rows, and those that the study has already."""
        planned = self.planned()
        before = known or StudyPlan((), {ROWS: {}})
        runs = {run.name: run for run in before.runs} | {run.name: run for own in planned.values() for run in own}
        rows = dict(before.settings[ROWS])
        for row in self.students:
            key = self.materials.key(row)
            others = [name for name in rows.get(key, ()) if runs[name].seed not in self.config.seeds]
            rows[key] = sorted({*others, *(run.name for run in planned[row.name])})
        # a row's epochs are its own: random patches with as much computation are held against the tickets
        return StudyPlan(tuple(runs.values()), {"gpus": self.config.gpus, ROWS: rows}, may_differ=("epochs",))

    def foreseen(self) -> StudyPlan:
        """What the students' runs will be, each once; `planned` says how tickets that are not there are counted."""
        own = self.planned(as_random=True)
        return StudyPlan(tuple({run.name: run for runs in own.values() for run in runs}.values()))

    def planned(self, as_random: bool = False) -> dict[str, tuple[PlannedRun, ...]]:
        """The runs of each student's row, opened and checked.

        Args:
            as_random: plan rows whose tickets are not there yet with as many random patches, which cost as much
        Raises:
            InputError: what does not fit, of all rows at once
        """
        found: dict[str, tuple[PlannedRun, ...]] = {}
        problems = []
        for row in self.students:
            try:
                found[row.name] = self._planned(row, as_random)
            except DlthError as error:
                problems.append(f"{row.name}: {error}")
        if problems:
            raise InputError("\n".join(problems))
        return found

    def _planned(self, row: Experiment, as_random: bool) -> tuple[PlannedRun, ...]:
        if row.pruning is not None:
            return self._levels(row)
        values, arm = self.materials.student_settings(row, self.wanted), row.trained_as
        made = self.materials.tickets_of(row, self.wanted)
        absent = [name for name, file in made.items() if not Path(file.out).exists()]
        if as_random and absent:
            values, arm = {name: value for name, value in values.items() if name not in absent}, "random"
        asked = {name: getattr(self.config, name) for name in ("mode", "seeds", "gpus", "measure")}
        asked |= {"out": str(self.study), "arms": arm, "keep": row.keep}
        return _of_row(row, plan_study(checked(CompareConfig, asked), values, note=self.listener.note))

    def _levels(self, row: Experiment) -> tuple[PlannedRun, ...]:
        """The runs of a row of pruned weights: every level, and what it is made of."""
        values = self.materials.student_settings(row, self.wanted)
        del values["arm"]  # that of `dlth prune` is another
        asked = {name: getattr(self.config, name) for name in ("seeds", "gpus", "measure")}
        asked |= {"out": str(self.study), **prune_settings(row)}
        return _of_row(row, plan_prune(checked(PruneConfig, asked), values, note=self.listener.note))

    def _bundles(self, plan: StudyPlan | None) -> tuple[Path, ...]:
        """Bundle every row that was asked for and has no run that is not finished."""
        place = Path(self.config.out) / BUNDLES
        bundles = [self._bundle(row, plan) for row in self.rows if plan is not None or not row.is_student]
        whole = [of for of in bundles if all(map(_is_finished, of.runs.values()))]
        with owned_in_time(place, self.listener.note):
            return tuple(write_bundle(place, of) for of in whole)

    def _bundle(self, row: Experiment, plan: StudyPlan | None) -> BundleOf:
        """What the row's bundle is to be made of: the runs of this call, and finished ones of earlier calls."""
        if plan is None or not row.is_student:
            folders = [Path(self.materials.selector_run(row, seed).out) for seed in self.config.seeds]
            return self.materials.bundle_of(row, {folder.name: folder for folder in folders})
        names = set(plan.settings[ROWS][self.materials.key(row)])
        runs = [run for run in plan.runs if run.name in names]
        begun = {run.seed for run in runs if not _is_finished(plan.folder(self.study, run))}
        runs = [run for run in runs if run.seed in self.config.seeds or run.seed not in begun]
        own = StudyPlan(tuple(runs), {ROWS: {self.materials.key(row): [run.name for run in runs]}})
        return self.materials.bundle_of(row, {run.name: plan.folder(self.study, run) for run in runs}, plan=own)


def _of_row(row: Experiment, plan: StudyPlan) -> tuple[PlannedRun, ...]:
    return tuple(replace(run, arm=replace(run.arm, variant=_variant(row))) for run in plan.runs)


def _variant(row: Experiment) -> str:
    """What of a row's name is neither arm nor rate: "deit-s/rc-matched", which stands beside arms of "deit-s"."""
    return "/".join(part for part in row.name.split("/") if part not in (row.arm, row.rate))


def _is_finished(folder: Path) -> bool:
    result = read_result(folder / RESULT)
    return result is not None and result.status == "finished"
