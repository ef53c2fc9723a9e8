"""Runs that meet trouble and go on: steps without images, epochs without a loss, runs that are finished already."""

import copy
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from makers.pictures import make_tar
from makers.runs import KWARGS, Listener
from safetensors.torch import load_file

from dlth.pipeline.cli.training import ConsoleReporter
from dlth.tickets.errors import MismatchError
from dlth.training.distributed.process_group import World
from dlth.training.distributed.signals import stop_on_signals
from dlth.training.reporter import Reporter
from dlth.training.runs import checkpoint
from dlth.training.runs.loop import Training, train
from dlth.training.runs.result import DivergedError
from dlth.training.runs.setup import Parts, prepare
from dlth.training.settings.train_config import TrainConfig

MakeRun = Callable[..., TrainConfig]
DENSE: dict[str, Any] = {"arm": "dense", "tickets": None, "val": None, "val_tickets": None}


def refuse(word: str) -> None:
    raise AssertionError(f"{word} is not JSON")


def records(out: str, kind: str) -> list[dict[str, Any]]:
    """Records of a run's log, read as strict JSON."""
    text = (Path(out) / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line, parse_constant=refuse) for line in text]
    return [row for row in rows if row["kind"] == kind]


def test_a_step_whose_images_are_all_corrupt_moves_nothing_and_is_no_bad_step(make_run: MakeRun) -> None:
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


ALONE = World(0, 1, torch.device("cpu"))


def spoil(parts: Parts, *steps: int) -> None:
    """Let the gradient of one weight be infinite at these backward passes (from 0), or at all of them."""
    seen: list[int] = []

    def hook(gradient: torch.Tensor) -> torch.Tensor:
        seen.append(len(seen))
        return gradient / 0.0 if not steps or seen[-1] in steps else gradient

    parts.student.model.head.weight.register_hook(hook)


def moving(parts: Parts) -> dict[str, Any]:
    """A copy of all that a step moves: weights, averages, the optimizer's state."""
    assert parts.ema is not None
    states = {
        "model": parts.student.model.state_dict(),
        "ema": parts.ema.module.state_dict(),
        "opt": parts.optimizer.state_dict(),
    }
    return copy.deepcopy(states)


def equal(left: Any, right: Any) -> bool:
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(equal(left[name], right[name]) for name in left)
    return torch.equal(left, right) if isinstance(left, torch.Tensor) else bool(left == right)


@pytest.mark.parametrize(
    "options",
    [{}, {"clip_grad": 1.0}, {"model": "lvvit_t", "model_kwargs": KWARGS | {"depth": 2, "stem_width": 8}}],
    ids=["plain", "clipped", "batch norm"],
)
def test_a_finite_loss_with_an_infinite_gradient_moves_nothing(make_run: MakeRun, options: dict[str, Any]) -> None:
    """Weights, averages, batch norm's statistics and optimizer state stay to the bit at such a step; the steps around
    it move them."""
    training = Training(make_run(model_ema=True, **DENSE | options), ALONE, Reporter())
    parts = training.parts
    spoil(parts, 1)
    for step, batches in enumerate(parts.train_steps(0, 0)):
        before = moving(parts)
        result = parts.stepper(batches, step, None)
        assert (result.moved, result.grad_norm < 1e9, result.loss < 9) == (step != 1, step != 1, True)
        assert equal(before, moving(parts)) == (step == 1)


def test_infinite_gradients_end_the_run_when_patience_does(make_run: MakeRun) -> None:
    """Steps 2 and 3 of six are spoilt: under a patience of 3 the run ends well, under one of 2 it ends there."""
    patient = make_run("patient", nan_patience=3, **DENSE)
    impatient = make_run("impatient", nan_patience=2, **DENSE)
    with stop_on_signals() as stop:
        training = Training(patient, ALONE, Reporter())
        spoil(training.parts, 1, 2)
        assert training.run(stop).status == "finished"
        training = Training(impatient, ALONE, Reporter())
        spoil(training.parts, 1, 2)
        with pytest.raises(DivergedError, match=r"the norm of its gradient inf for 2 steps in a row, up to step 3"):
            training.run(stop)
    norms = [row["grad_norm"] for row in records(patient.out, "train")]
    assert [norm is None for norm in norms] == [False, True, True, False, False, False]


def test_a_step_that_float16s_scaler_skips_is_not_moved_and_no_bad_step_while_the_scale_may_be_to_blame(
    make_run: MakeRun,
) -> None:
    """From a scale of 4, two infinite gradients halve it; at 1 the third and fourth use up a patience of 2."""
    config = make_run(amp=True, amp_dtype="float16", model_ema=True, nan_patience=2, **DENSE)
    listener = Listener()
    training = Training(config, ALONE, listener)
    parts = training.parts
    parts.stepper.scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    spoil(parts)
    before = moving(parts)
    with stop_on_signals() as stop, pytest.raises(DivergedError, match="for 2 steps in a row, up to step 4"):
        training.run(stop)
    assert equal(before | {"opt": 0}, moving(parts) | {"opt": 0})
    assert not parts.optimizer.state
    assert ["halved" in note for note in listener.notes if "step" in note] == [True, True, False, False]
    (epoch,) = records(config.out, "epoch")
    assert epoch["train_loss"] is not None


def test_a_corrupt_image_that_another_rank_met_is_named_with_what_is_wrong(make_run: MakeRun) -> None:
    """The rank that speaks for all has not read it: it finds the cause in the image itself."""
    config = make_run(bad_images="skip", **DENSE)
    make_tar(Path(config.data) / "train-000009.tar", [("broken.jpg", b"\xff\xd8 no"), ("broken.cls", b"0")])
    inputs = prepare(config, World(0, 1, torch.device("cpu")), Reporter()).inputs
    causes = inputs.why_bad([3, 21], {3: "met here"})
    assert list(causes) == [inputs.files.index.key(3), "broken"]
    assert causes[inputs.files.index.key(3)] == "met here"
    assert causes["broken"].startswith("shard train-000009.tar, key broken: ")


def test_an_image_that_crashed_at_another_rank_is_named_without_a_crash_here(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rank that speaks for all finds the cause in a process of its own, and lives."""
    inputs = prepare(make_run(bad_images="skip", **DENSE), World(0, 1, torch.device("cpu")), Reporter()).inputs
    here = os.getpid()

    def crash(buffer: torch.Tensor, mode: Any) -> None:
        assert os.getpid() != here, "decoded in the main process"
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr("dlth.data.images.decode.decode_image", crash)
    assert "(killed by signal: Killed)" in inputs.why_bad([3], {})[inputs.files.index.key(3)]
