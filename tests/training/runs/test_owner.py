"""A run's folder has one owner: a second run is refused, on all its ranks, and leaves nothing behind."""

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from dlth.tickets.errors import DlthError, InputError, LockedError, MissingFileError
from dlth.tickets.store.locks import owned
from dlth.training.distributed.process_group import World
from dlth.training.evaluation.evaluate import evaluate
from dlth.training.reporter import Reporter
from dlth.training.runs.loop import planned, train
from dlth.training.runs.resume import WRITTEN
from dlth.training.settings.eval_config import EvalConfig
from dlth.training.settings.toml_text import to_toml
from dlth.training.settings.train_config import TrainConfig

MakeRun = Callable[..., TrainConfig]
DENSE: dict[str, Any] = {"arm": "dense", "tickets": None, "val": None, "val_tickets": None, "epochs": 1}


def test_a_second_run_of_one_folder_is_refused(make_run: MakeRun) -> None:
    """While a process owns the folder nothing is read or written there; its number is told; then the run works."""
    config = make_run(warmup_epochs=0, **DENSE)
    out = Path(config.out)
    with owned(out):
        for begin in (train, planned):
            with pytest.raises(LockedError, match=rf"process \(number {os.getpid()} on its machine\)"):
                begin(config)
        assert [path.name for path in out.iterdir()] == [".lock"]
    assert not out.exists()
    assert train(config).status == "finished"
    assert not (out / ".lock").exists()


def test_a_folder_that_is_removed_during_its_run_is_not_made_anew(make_run: MakeRun) -> None:
    """The run says so at its next save, and leaves no folder without settings and log."""
    config = make_run(warmup_epochs=0, **DENSE)

    class Remover(Reporter):
        def stepped(self, record: Mapping[str, Any]) -> None:
            shutil.rmtree(config.out, ignore_errors=True)

    with pytest.raises(MissingFileError, match="was removed while the run went on"):
        train(config, reporter=Remover())
    assert not Path(config.out).exists()


def test_a_second_evaluation_into_one_file_is_refused(tmp_path: Path) -> None:
    """It is told before anything is opened, and nothing is left beside the file."""
    config = EvalConfig(checkpoint="none", val="none", out=str(tmp_path / "results" / "eval.npz"))
    with owned(tmp_path / "results", "eval.npz"), pytest.raises(LockedError, match=r"results/eval\.npz belongs to"):
        evaluate(config)
    with pytest.raises(MissingFileError):
        evaluate(config)
    assert list(tmp_path.iterdir()) == []


def test_a_refused_run_leaves_no_folder(make_run: MakeRun) -> None:
    """Neither the folder nor the folders above it that had to be made; a folder that was there stays."""
    config = make_run("deep/down/run", warmup_epochs=0, resume="nowhere", **DENSE)
    out = Path(config.out)
    with pytest.raises(MissingFileError, match="nowhere is no checkpoint of dlth"):
        train(config)
    assert not out.parents[1].exists()
    out.mkdir(parents=True)
    with pytest.raises(MissingFileError):
        planned(config)
    assert list(out.iterdir()) == []


def test_a_finished_run_is_not_overwritten(make_run: MakeRun, tmp_path: Path) -> None:
    """Without its checkpoints, or with those of another folder, it is left as it is; without its result it may go."""
    config = make_run(warmup_epochs=0, **DENSE)
    out, moved = Path(config.out), tmp_path / "moved"
    train(config)
    (out / "checkpoints").rename(moved)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    for resume in (None, "auto", str(next(moved.glob("step-*")))):
        for begin in (train, planned):
            with pytest.raises(InputError, match=r"a finished run .* another --out, or remove .*result\.json"):
                begin(config.model_copy(update={"resume": resume}))
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    moved.rename(out / "checkpoints")
    assert train(config.model_copy(update={"resume": str(out)})).status == "finished"
    shutil.rmtree(out / "checkpoints")
    (out / "result.json").unlink()
    assert train(config).status == "finished"


def test_files_of_other_origin_are_not_overwritten(make_run: MakeRun) -> None:
    """Under any name that a run takes, whatever is asked for; a run that was killed before it saved is begun anew."""
    config = make_run(warmup_epochs=0, **DENSE)
    out = Path(config.out)
    out.mkdir()
    for name in WRITTEN:
        (out / name).write_text("seed = 3\n")
        for resume in (None, "auto"):
            for begin in (train, planned):
                with pytest.raises(InputError, match=rf"files of other origin \({name}\).* or remove .*{name}"):
                    begin(config.model_copy(update={"resume": resume}))
        assert (out / name).read_text() == "seed = 3\n"
        (out / name).unlink()
    (out / "metrics.jsonl").touch()
    (out / "config.toml").write_text(to_toml(config))
    assert train(config).status == "finished"


def test_what_can_be_no_folder_is_refused(make_run: MakeRun, tmp_path: Path) -> None:
    """A file, a name under one, a name that is too long or holds a NUL, a place where nothing can be made, the root."""
    config = make_run(warmup_epochs=0, **DENSE)
    (tmp_path / "file").write_text("here")
    for name in ("file", "file/below", "x" * 300, "a\0b", "/proc/no", "/"):
        for begin in (planned, train):
            with pytest.raises(InputError, match="cannot be a folder of results"):
                begin(config.model_copy(update={"out": str(tmp_path / name)}))


def test_what_one_rank_refuses_no_rank_goes_on_after(tmp_path: Path) -> None:
    """Two processes of one group: rank 0 raises in the block, rank 1 does not, and both end with an error."""
    children = []
    for rank in range(2):
        child = os.fork()
        if child == 0:
            os._exit(_as_rank(rank, tmp_path / "meeting"))
        children.append(child)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [10, 11]


def _as_rank(rank: int, meeting: Path) -> int:
    """10 if the rank's own error came, 11 if another's was told, 0 if it went on."""
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    try:
        with World(rank, 2, torch.device("cpu")).together():
            if rank == 0:
                raise LockedError("mine")
    except LockedError:
        return 10
    except DlthError as error:
        return 11 if "another rank" in str(error) else 12
    finally:
        dist.destroy_process_group()
    return 0
