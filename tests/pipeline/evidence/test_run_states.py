"""How runs stand is told by what they leave: locks, settings, logs, results and marks of failure."""

import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from makers.studies import tiny_study

from dlth.pipeline.evidence.failure import FAILED, Failure, write_failure
from dlth.pipeline.evidence.run_states import RunState, run_states, study_states
from dlth.pipeline.evidence.study_plan import STUDY, StudyPlan, write_study
from dlth.tickets.errors import DamageError, InputError, MissingFileError
from dlth.tickets.store.locks import owned
from dlth.training.distributed.signals import StopRequest
from dlth.training.reporter import Reporter
from dlth.training.runs.loop import train
from dlth.training.runs.runlog import METRICS, RESULT
from dlth.training.runs.sealed_json import sealed
from dlth.training.settings.layering import checked
from dlth.training.settings.toml_text import CONFIG
from dlth.training.settings.train_config import TrainConfig


class StopAt(Reporter):
    """Asks a run to stop at a step, as a signal would."""

    def __init__(self, step: int) -> None:
        self.step, self.stop = step, StopRequest()

    def stepped(self, record: Mapping[str, Any]) -> None:
        self.stop.requested = record["step"] == self.step


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, StudyPlan]:
    """Four runs: the first is finished, the second stopped in its second epoch, the others nobody began."""
    base = tmp_path_factory.mktemp("study")
    folder, plan = base / "study", tiny_study(base)
    folder.mkdir()
    write_study(folder, plan)
    for run, stop_at in zip(plan.runs, (99, 11), strict=False):
        config = checked(TrainConfig, {**run.settings, "out": str(plan.folder(folder, run))})
        watch = StopAt(stop_at)
        train(config, reporter=watch, stop=watch.stop)
    return folder, plan


def changed(states: tuple[RunState, ...], name: str) -> RunState:
    return next(state for state in states if state.name == name)


def test_a_study_says_how_each_run_stands(study: tuple[Path, StudyPlan]) -> None:
    """Finished with its accuracy, stopped with epoch and step, and those that nobody began, in the plan's order."""
    folder, plan = study
    finished, stopped, *waiting = run_states(folder)
    assert [run.name for run in plan.runs] == [state.name for state in run_states(folder)]
    result = json.loads((finished.folder / RESULT).read_text())
    assert (finished.state, finished.epoch, finished.step, finished.done) == ("finished", 2, 16, 1.0)
    assert (finished.k, finished.top1) == (8, result["evaluation"]["model"]["ticket"]["top1"])
    assert (stopped.state, stopped.epoch, stopped.epochs, stopped.step, stopped.steps) == ("stopped", 1, 2, 10, 16)
    assert stopped.done == 10 / 16
    assert stopped.top1 is not None
    assert stopped.k == 16
    assert [(state.state, state.age, state.done) for state in waiting] == [("waiting", None, 0.0)] * 2


def test_who_holds_a_lock_is_running(study: tuple[Path, StudyPlan]) -> None:
    """A worker's claim and a run's own lock both count; a lock file that a kill left does not."""
    folder, plan = study
    name = plan.runs[2].name
    with owned(folder / "runs", name):
        assert changed(run_states(folder), name).state == "running"
    with owned(folder / "runs" / name):
        assert changed(run_states(folder), name).state == "running"
    (folder / "runs" / f".{name}.lock").write_text("4242")
    assert changed(run_states(folder), name).state == "waiting"
    os.remove(folder / "runs" / f".{name}.lock")


def test_a_mark_of_failure_is_told_and_never_hides(study: tuple[Path, StudyPlan]) -> None:
    """The message is passed on; a mark that was altered still is one."""
    folder, plan = study
    run = plan.folder(folder, plan.runs[3])
    write_failure(run, Failure("E_DIVERGED", "the loss was nan"))
    state = changed(run_states(folder), run.name)
    assert (state.state, state.problem) == ("failed", "E_DIVERGED: the loss was nan")
    (run / FAILED).write_text((run / FAILED).read_text().replace("nan", "one"))
    state = changed(run_states(folder), run.name)
    assert state.state == "failed"
    assert "damaged" in state.problem
    (run / FAILED).unlink()
    run.rmdir()


def test_a_folder_of_another_run_is_no_state_of_this(study: tuple[Path, StudyPlan]) -> None:
    """Settings that decide the result and differ from the plan's are named, and the finished run does not count."""
    folder, plan = study
    path = plan.folder(folder, plan.runs[0]) / CONFIG
    text = path.read_text()
    path.write_text(text.replace("weight_decay = 0.05", "weight_decay = 0.5"))
    state = study_states(folder, plan)[0]
    path.write_text(text)
    assert state.state == "failed"
    assert "weight_decay is 0.5, not 0.05" in state.problem


def test_any_folder_of_runs_is_listed(study: tuple[Path, StudyPlan]) -> None:
    """Runs without a plan tell arm and place by their own files; one run's folder is a list of one."""
    folder, plan = study
    states = {state.name: state for state in run_states(folder / "runs")}
    assert sorted(states) == sorted(run.name for run in plan.runs[:2])
    dense = states[plan.runs[1].name]
    assert (str(dense.arm), dense.state, dense.epoch, dense.step, dense.steps) == ("dense", "stopped", 1, 10, 16)
    assert [state.name for state in run_states(folder / "runs" / dense.name)] == [dense.name]
    with pytest.raises(MissingFileError, match="no folder of runs"):
        run_states(folder / "nowhere")


@pytest.mark.parametrize(
    "bytes_",
    [
        *(b"\x00\xff\n", b"[]\n", b'{"kind": "train", "step": "x"}\n'),
        b'{"kind": "epoch", "step": 1, "epoch": null, "lr": 0.1}\n',
    ],
)
def test_a_log_that_is_none_is_said_and_stops_nothing(study: tuple[Path, StudyPlan], bytes_: bytes) -> None:
    """What cannot be read is the problem of one run, and the others are listed."""
    folder, plan = study
    path = plan.folder(folder, plan.runs[1]) / METRICS
    log = path.read_bytes()
    path.write_bytes(bytes_)
    states = run_states(folder)
    path.write_bytes(log)
    assert (states[0].state, states[1].state) == ("finished", "stopped")
    assert METRICS in states[1].problem


@pytest.mark.parametrize("name", [CONFIG, METRICS, RESULT])
def test_no_link_is_followed(study: tuple[Path, StudyPlan], name: str) -> None:
    """A link in the place of a run's file is that run's problem, wherever it leads."""
    folder, plan = study
    path = plan.folder(folder, plan.runs[1]) / name
    aside = path.rename(path.with_name("aside")) if path.exists() else None
    path.symlink_to("/dev/zero")
    states = run_states(folder / "runs"), run_states(folder)
    path.unlink()
    if aside is not None:
        aside.rename(path)
    assert all(any("link" in state.problem or "regular" in state.problem for state in seen) for seen in states)


@pytest.mark.parametrize("name", ["../../elsewhere", "/tmp/x", ".hidden", "", "a/b", "a\n"])
def test_a_plan_names_folders_of_its_study_alone(study: tuple[Path, StudyPlan], name: str, tmp_path: Path) -> None:
    """A name that leads anywhere else is refused when a plan is read, though its seal is right."""
    plan = json.loads((study[0] / STUDY).read_text())
    plan["runs"][0]["name"] = name
    del plan["sha256"]
    (tmp_path / STUDY).write_text(json.dumps(sealed(plan)))
    with pytest.raises(DamageError, match="no name of a run's folder"):
        run_states(tmp_path)


def test_dlth_runs_lists_a_line_for_each_run(study: tuple[Path, StudyPlan], dlth: Callable[..., Any]) -> None:
    """Lines for people, objects for scripts; an unknown folder is one error."""
    folder, plan = study
    code, out, err = dlth("runs", folder)
    lines = out.splitlines()
    assert (code, err, len(lines)) == (0, "", 5)
    assert [line.split()[-1] for line in lines] == ["run", *(run.name for run in plan.runs)]
    told = r"^finished +ticket, keep 0.5, projected +0 +2/2 +\d+\.\d\d +16/16 +\d+ (s|min) +8 +ticket"
    assert re.search(told, lines[1])
    assert re.search(r"^stopped +dense +0 +1/2 +\d+\.\d\d +10/16 +\d+ (s|min) +16 +dense", lines[2])
    listed = json.loads(dlth("runs", folder, "--json")[1])["runs"]
    assert next((run["name"], run["state"]) for run in listed) == (plan.runs[0].name, "finished")
    assert dlth("runs", folder / "nowhere")[0] == 2


def test_a_plan_that_none_could_read_is_not_written(study: tuple[Path, StudyPlan], tmp_path: Path) -> None:
    """What reading refuses, such as a thousand million GPUs, is refused before it is written."""
    plan = study[1]
    with pytest.raises(InputError, match="could be planned and never read again"):
        write_study(tmp_path, replace(plan, settings={**plan.settings, "gpus": 10**9}))
    assert not (tmp_path / STUDY).exists()
