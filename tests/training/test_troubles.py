"""Runs that meet trouble and go on: steps without images, epochs without a loss, runs that are finished already."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from dlth.pipeline.cli_train import ConsoleReporter
from dlth.tickets.errors import MismatchError
from dlth.training import checkpoint
from dlth.training.config import TrainConfig
from dlth.training.loop import train
from dlth.training.reporter import Reporter

MakeRun = Callable[..., TrainConfig]
DENSE: dict[str, Any] = {"arm": "dense", "tickets": None, "val": None, "val_tickets": None}


class Listener(Reporter):
    """Remembers what a run says."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def refuse(word: str) -> None:
    raise AssertionError(f"{word} is not JSON")


def records(out: str, kind: str) -> list[dict[str, Any]]:
    """Records of a run's log, read as strict JSON."""
    text = (Path(out) / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line, parse_constant=refuse) for line in text]
    return [row for row in rows if row["kind"] == kind]


def test_a_step_whose_images_are_all_corrupt_moves_nothing_and_is_no_bad_step(
    make_run: MakeRun, make_tar: Callable[..., Any]
) -> None:
    """One image a step, three of 24 corrupt, a patience of 1: three steps without a loss, and the run goes on."""
    config = make_run(bad_images="skip", batch_size=1, epochs=1, warmup_epochs=0, nan_patience=1, **DENSE)
    broken = [
        (f"broken{n}.{end}", content) for n in range(3) for end, content in (("jpg", b"\xff\xd8 no"), ("cls", b"0"))
    ]
    make_tar(Path(config.data) / "train-000009.tar", broken)
    result = train(config)
    assert (result.status, result.steps) == ("finished", 24)
    losses = [row["loss"] for row in records(config.out, "train")]
    assert losses.count(None) == 3
    (row,) = records(config.out, "epoch")
    assert row["bad_images"] == 3
    assert row["train_loss"] == pytest.approx(sum(loss for loss in losses if loss is not None) / 21)


def test_an_epoch_without_any_loss_is_reported_as_such(make_run: MakeRun, capsys: pytest.CaptureFixture[str]) -> None:
    """Pixels divided by 1e-45 are infinite: three bad steps are under a patience of 9, and the epoch has no loss."""
    config = make_run(epochs=1, warmup_epochs=0, std=(1e-45,) * 3, nan_patience=9, **DENSE)
    result = train(config, reporter=ConsoleReporter())
    assert (result.status, result.steps, result.train_loss) == ("finished", 3, None)
    assert "epoch 1 | loss no number" in capsys.readouterr().err
    assert [row["loss"] for row in records(config.out, "train")] == [None] * 3
    assert records(config.out, "epoch")[0]["train_loss"] is None


def test_the_result_holds_the_last_epochs_loss(make_run: MakeRun) -> None:
    """result.json and the last row of the log agree."""
    config = make_run(**DENSE)
    result = train(config)
    assert result.train_loss == records(config.out, "epoch")[-1]["train_loss"]
    assert json.loads((Path(config.out) / "result.json").read_text())["train_loss"] == result.train_loss


def test_resuming_a_finished_run_gives_its_result_and_writes_nothing(make_run: MakeRun) -> None:
    """--resume auto on a whole run: the same result, no file touched; a run that lacks a part of it ends anew."""
    config = make_run(epochs=1, warmup_epochs=0)
    first = train(config)
    out, again = Path(config.out), config.model_copy(update={"resume": "auto"})
    times = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    listener = Listener()
    assert train(again, reporter=listener).to_json() == json.loads(json.dumps(first.to_json()))
    assert any("finished already" in note for note in listener.notes)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == times
    with pytest.raises(MismatchError, match="seed"):
        train(again.model_copy(update={"seed": 5}))
    (out / "model.safetensors").unlink()
    assert train(again).evaluation == first.evaluation
    newest = checkpoint.newest(out / "checkpoints")
    assert newest is not None
    assert load_file(out / "model.safetensors").keys() == load_file(newest / "model.safetensors").keys()
    (out / "result.json").write_text("{")
    assert train(again).weights_sha256 == first.weights_sha256
