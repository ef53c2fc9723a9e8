"""A study's runs by several processes that are killed and stopped: the same runs as by one that nobody disturbs."""

import resource
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest
from makers.studies import leavings, tiny_study
from makers.workers import SignalAt, ended, forked

from dlth.pipeline.evidence.failure import FAILED, read_failure
from dlth.pipeline.evidence.run_states import study_states
from dlth.pipeline.evidence.study_plan import StudyPlan
from dlth.pipeline.studies.launched import _problem, batch_shared_by
from dlth.pipeline.studies.worker import StudyReporter, StudyState, run_study
from dlth.tickets.errors import InputError, LockedError, SpaceError, UnsafeError
from dlth.tickets.store.locks import owned
from dlth.training.machine_errors import RankError
from dlth.training.runs.result import DivergedError, read_result
from dlth.training.settings.layering import checked
from dlth.training.settings.train_config import TrainConfig


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> StudyPlan:
    """Two arms, two seeds, each run two epochs of 8 steps."""
    return tiny_study(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def whole(plan: StudyPlan, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, StudyState]:
    """The study as one undisturbed worker does it."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, run_study(folder, plan)


pytestmark = pytest.mark.usefixtures("often")


def test_two_workers_of_which_one_is_killed_leave_what_one_undisturbed_does(
    plan: StudyPlan, whole: tuple[Path, StudyState], tmp_path: Path
) -> None:
    """kill -9 in the middle of a run: the other worker takes the run over at its checkpoint; logs, results, per-image
    results and weights of all runs are the same to the bit, but for what is measured in seconds.
    """
    killed = forked(lambda: run_study(tmp_path, plan, reporter=SignalAt(signal.SIGKILL, 12)))
    other = forked(lambda: run_study(tmp_path, plan))
    assert ended(killed) == -signal.SIGKILL
    assert ended(other) == 0
    assert leavings(tmp_path, plan) == leavings(whole[0], plan)


def test_a_stopped_worker_saves_and_the_same_call_goes_on(
    plan: StudyPlan, whole: tuple[Path, StudyState], tmp_path: Path
) -> None:
    """SIGTERM: the state says stopped, and what is begun; the next call ends with an undisturbed worker's results."""
    two = replace(plan, runs=plan.runs[:2])
    state = run_study(tmp_path, two, reporter=SignalAt(signal.SIGTERM, 10))
    assert state.stopped
    assert [run.state for run in state.runs] == ["stopped", "waiting"]
    again = run_study(tmp_path, two)
    assert not again.stopped
    assert leavings(tmp_path, two) == leavings(whole[0], two)


def test_the_same_call_again_does_nothing(plan: StudyPlan, whole: tuple[Path, StudyState]) -> None:
    """A study that is over is read, and no file of it changes."""
    folder, state = whole
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    again = run_study(folder, plan)
    assert again == state
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_a_run_that_fails_by_itself_is_marked_and_the_others_go_on(tmp_path: Path) -> None:
    """A learning rate of 1e30 diverges: code and message stand in its folder, and only retry tries it again."""
    broken = {"lr": 1e30, "nan_patience": 1, "warmup_lr": 1e30}
    plan = tiny_study(tmp_path, arms=("dense", "ticket"), seeds=(0,), changes={"dense": broken}, epochs=1)
    state = run_study(tmp_path, plan)
    assert [run.state for run in state.runs] == ["failed", "finished"]
    assert "E_DIVERGED" in state.failed[0].problem
    mark = state.failed[0].folder / FAILED
    written = mark.stat().st_mtime_ns
    assert run_study(tmp_path, plan).failed
    assert mark.stat().st_mtime_ns == written
    assert run_study(tmp_path, plan, retry=True).failed
    assert mark.stat().st_mtime_ns > written


def test_a_run_that_failed_is_not_taken_again(plan: StudyPlan, whole: tuple[Path, StudyState], tmp_path: Path) -> None:
    """A link in the place of a result, which nothing can be read of: the run fails once, and is failed for all."""
    one = replace(plan, runs=plan.runs[:1])
    shutil.copytree(plan.folder(whole[0], one.runs[0]), one.folder(tmp_path, one.runs[0]))
    result = one.folder(tmp_path, one.runs[0]) / "result.json"
    result.unlink()
    result.symlink_to("/dev/zero")

    class Once(StudyReporter):
        failures = 0

        def note(self, text: str) -> None:
            self.failures += " failed [" in text
            assert self.failures <= 1, text

    assert "E_UNSAFE" in run_study(tmp_path, one, reporter=Once()).failed[0].problem
    assert study_states(tmp_path, one)[0].state == "failed"


def test_a_folder_of_another_run_is_left_alone(plan: StudyPlan, whole: tuple[Path, StudyState], tmp_path: Path) -> None:
    """Another run under a planned name stays as it is to the last byte, with and without retry, and is told."""
    one = replace(plan, runs=plan.runs[:1])
    place = plan.folder(tmp_path, plan.runs[0])
    place.parent.mkdir()
    plan.folder(whole[0], plan.runs[2]).rename(place)
    try:
        before = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
        for retry in (False, True):
            state = run_study(tmp_path, one, retry=retry)
            assert "seed is 1, not 0" in state.failed[0].problem
        assert {path: path.read_bytes() for path in place.rglob("*") if path.is_file()} == before
    finally:
        place.rename(plan.folder(whole[0], plan.runs[2]))


@pytest.mark.parametrize("kind", ["link", "file"])
def test_what_stands_in_place_of_a_runs_folder_is_left_alone(plan: StudyPlan, tmp_path: Path, kind: str) -> None:
    """A link leads no run elsewhere, a file ends no worker: the run is told as failed."""
    first = plan.runs[0]
    study, elsewhere = tmp_path / "study", tmp_path / "elsewhere"
    place = plan.folder(study, first)
    place.parent.mkdir(parents=True)
    elsewhere.mkdir()
    place.symlink_to(elsewhere) if kind == "link" else place.write_text("mine")
    for retry in (False, True):
        state = run_study(study, replace(plan, runs=(first,)), retry=retry)
        assert "is a link or a file" in state.failed[0].problem
    assert list(elsewhere.iterdir()) == []
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "runs").symlink_to(elsewhere)
    with pytest.raises(UnsafeError, match="is a link"):
        run_study(tmp_path / "other", replace(plan, runs=(first,)))


def test_what_the_machine_does_to_a_run_is_no_failure_of_it(plan: StudyPlan, tmp_path: Path) -> None:
    """A disk that takes no file of 20 kB ends the worker with SpaceError and leaves no mark; a lock is waited for."""

    def on_a_small_disk() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        with pytest.raises(SpaceError):
            run_study(tmp_path, plan)

    assert ended(forked(on_a_small_disk)) == 0
    assert read_failure(plan.folder(tmp_path, plan.runs[0])) is None
    stopping = SignalAt(signal.SIGTERM, 0)
    with owned(plan.folder(tmp_path, plan.runs[0])):
        state = run_study(tmp_path, replace(plan, runs=plan.runs[:1]), reporter=stopping)
    assert (state.stopped, [run.state for run in state.runs]) == (True, ["running"])


def test_a_run_on_two_processes_is_one_run(plan: StudyPlan, tmp_path: Path) -> None:
    """Two ranks share the plan's steps: as many images each, and the result says that there were two."""
    one = replace(plan, runs=plan.runs[:1])
    state = run_study(tmp_path, one, gpus=2)
    assert [run.state for run in state.runs] == ["finished"]
    result = read_result(state.runs[0].folder / "result.json")
    assert result is not None
    assert (result.world_size, result.steps, result.config["batch_size"]) == (2, 16, 4)


@pytest.mark.parametrize(
    ("gpus", "planned", "expected"), [(1, 2, (8, 4)), (2, 2, (8, 2)), (4, 1, (4, 1)), (8, 2, (4, 1)), (16, 1, (1, 1))]
)
def test_a_step_has_the_same_images_on_any_number_of_gpus(
    plan: StudyPlan, gpus: int, planned: int, expected: tuple[int, int]
) -> None:
    """Forwards make up for processes, and never become larger."""
    config = checked(TrainConfig, {**plan.runs[0].settings, "out": "-", "grad_accum_steps": 2})
    shared = batch_shared_by(config, planned, gpus)
    assert (shared.batch_size, shared.grad_accum_steps) == expected
    assert shared.batch_size * shared.grad_accum_steps * gpus == 16 * planned
    with pytest.raises(InputError, match="16 images, which do not divide"):
        batch_shared_by(config, 1, 3)


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ("note\nerror[E_RANK]: another rank of this run ended\nerror[E_DIVERGED]: the loss was nan\n", DivergedError),
        ("error[E_MISMATCH]: another rank of this run was refused; …\nerror[E_LOCK]: taken\n", LockedError),
        ("error[E_SPACE]: full\n", SpaceError),
        ("Killed\n", RankError),
    ],
)
def test_what_ranks_say_is_the_error_that_one_of_them_had(tmp_path: Path, said: str, kind: type[Exception]) -> None:
    """Errors that only say that another rank has one are passed over."""
    (tmp_path / "said").write_text(said)
    with (tmp_path / "said").open("rb") as file:
        assert type(_problem(file, 1)) is kind
