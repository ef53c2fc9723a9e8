"""A selector's training end to end: what it measures and records, how it resumes, who selects with its weights."""

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from makers.runs import Listener, select_config, train_config
from safetensors.torch import load_file

from dlth.pipeline.selection.stage import plan
from dlth.tickets.errors import InputError, MismatchError
from dlth.training.distributed.process_group import World
from dlth.training.evaluation.evaluate import evaluate
from dlth.training.reporter import Reporter
from dlth.training.runs.loop import planned, train
from dlth.training.runs.setup import prepare
from dlth.training.selectors.selector_student import SelectorStudent
from dlth.training.settings.eval_config import EvalConfig
from dlth.training.settings.layering import layered
from dlth.training.settings.selector_config import SelectorTrainConfig

MakeRun = Callable[..., SelectorTrainConfig]
DROPS = {"blocks": (0, 1), "stage_keep": "0.6", "fuse_tokens": True}
"""Of 16 patches 10 and a fused token go on, then 7 of these."""
SELECTION = {"blocks": [0, 1], "stage_keep": "0.6", "fuse_tokens": True, "stage_tokens": [10, 7]}
WORLD = World(0, 1, torch.device("cpu"))
TIMES = {"images_per_second", "tokens_per_second", "data_seconds", "compute_seconds", "peak_memory_bytes"}


@pytest.fixture
def make_selector(make_shards: Callable[..., Any], tmp_path: Path) -> MakeRun:
    """``make_selector(out="run", **overrides)`` -> settings of a tiny selector's training; 21 images and 6 of val."""
    make_shards(2, [12, 9], split="train")
    make_shards(1, [6], split="val", seed=1)

    def make(out: str = "run", **overrides: Any) -> SelectorTrainConfig:
        values = {"val": str(tmp_path / "val"), **DROPS} | overrides
        return train_config(str(tmp_path / "train"), tmp_path / out, SelectorTrainConfig, **values)

    return make


class Halt(Reporter):
    """Ends a process, as it were, at a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def stepped(self, record: Any) -> None:
        if record["step"] == self.step:
            raise InterruptedError


def log(out: str) -> list[dict[str, Any]]:
    records = [json.loads(line) for line in (Path(out) / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in record.items() if name not in TIMES} for record in records]


def test_a_run_says_accuracy_with_and_without_dropping_and_how_to_select(make_selector: MakeRun) -> None:
    """Both arms in result, table and per-image results; the weights alone then give evaluation the same numbers."""
    config = make_selector(model_ema=True, model_ema_decay=0.5, drop_path=0.2, mixup=0.8)
    result = train(config)
    assert (result.status, result.arm, result.mode, result.k, result.num_patches) == ("finished", "selector", "", 7, 16)
    assert (result.selector, result.tokens) == (SELECTION, 17)
    out = Path(config.out)
    for table in result.evaluation.values():
        assert {arm: (row["tokens"], row["images"]) for arm, row in table.items()} == {
            "dense": (16, 6),
            "dropping": (7, 6),
        }
        assert table["dense"]["loss"] != table["dropping"]["loss"]
    assert result.best["tokens"] == "dropping"
    with np.load(out / "eval.npz", allow_pickle=False) as images:
        measured = images["dropping_loss"].mean(dtype=np.float64)
    assert measured == pytest.approx(result.evaluation["model"]["dropping"]["loss"])
    assert {"eval_dropping_top1", "eval_dense_top1"} <= log(config.out)[-1].keys()
    values = {"val": config.val, "workers": 0, "device": "cpu", "batch_size": 8}
    assert evaluate(EvalConfig(checkpoint=config.out, **values)).table() == result.evaluation["model"]
    assert layered({}, config_file=out / "config.toml", kind=SelectorTrainConfig) == config


def test_what_was_trained_to_select_selects_so_unless_told_otherwise(make_selector: MakeRun, tmp_path: Path) -> None:
    """Stage 1 takes blocks, rate, fused token, size, mean and deviation from the weights; a flag wins and is named."""
    config = make_selector(epochs=1, mean=(0.1,) * 3, std=(0.2,) * 3)
    train(config)
    unsaid: dict[str, Any] = dict.fromkeys(("model", "img_size", "keep", "num_classes")) | {"model_kwargs": {}}
    notes: list[str] = []
    header = plan(select_config(config.data, tmp_path / "t.zarr", checkpoint=config.out, **unsaid), notes.append).header
    assert (header.selector.blocks, header.selector.fuse_tokens, header.stage_keep) == ((0, 1), True, "0.6")
    assert (header.stage_tokens, header.k, header.preprocessing.mean) == ((10, 7), 7, (0.1,) * 3)
    assert not any("records" in text for text in notes)
    told = {"blocks": (1,), "fuse_tokens": False, "stage_keep": "0.5"}
    other = select_config(config.data, tmp_path / "t.zarr", checkpoint=config.out, **unsaid | told)
    header = plan(other, notes.append).header
    assert (header.selector.blocks, header.selector.fuse_tokens, header.k) == ((1,), False, 8)
    named = " ".join(notes)
    assert "--blocks 1 (recorded: 0,1), --fuse-tokens False (recorded: True)" in named
    assert "--stage-keep 0.5 (recorded: stage keep 0.6)" in named
    listener = Listener()
    again = prepare(make_selector("again", init_from=config.out, **dict.fromkeys(DROPS)), WORLD, listener)
    digest = header.selector.weights_sha256[:16]
    assert again.facts()["starts from"] == f"{config.out} (sha256 {digest})"
    assert not any("random weights" in text for text in listener.notes)
    assert isinstance(again.student, SelectorStudent)
    assert again.student.facts() == SELECTION


def test_a_selector_from_no_weights_is_told_so(make_selector: MakeRun) -> None:
    """The plan says random weights, and a note what fine-tuning wants."""
    listener = Listener()
    assert planned(make_selector(), reporter=listener)["starts from"] == "random weights (no --init-from)"
    assert any("fine-tuning wants trained ones: --init-from" in text for text in listener.notes)


def test_the_selector_in_the_loop_needs_its_weights_alone(make_selector: MakeRun, tmp_path: Path) -> None:
    """An online run of a student says nothing of the selector but its file; its k is the selector's."""
    config = make_selector(epochs=1)
    train(config)
    online = {"mode": "online", "selector_checkpoint": config.out, "val": config.val, "epochs": 1}
    result = train(train_config(config.data, tmp_path / "student", **online))
    assert (result.k, result.keep, result.selector["blocks"]) == (7, "0.4375", [0, 1])
    assert (result.selector["stage_keep"], result.selector["stage_tokens"]) == ("0.6", [10, 7])
    assert result.evaluation["model"]["ticket"]["tokens"] == 7


@pytest.mark.parametrize("backend", [None, "eager"])
def test_halted_and_resumed_is_the_unbroken_run_bit_for_bit(make_selector: MakeRun, backend: str | None) -> None:
    """Weights, averages and log, over a falling rate and an epoch's edge; compiled with one graph for each budget."""
    options = {"drop_path": 0.3, "mixup": 0.8, "cutmix": 1.0, "mix_group": 4, "reprob": 0.25, "torchcompile": backend}
    options |= {"model_ema": True, "keep_schedule": "cosine", "keep_schedule_start": 0, "keep_schedule_epochs": 1}
    whole = make_selector("whole", **options)
    train(whole)
    halted = make_selector("halted", checkpoint_steps=1, **options)
    for step in (2, 4):
        with pytest.raises(InterruptedError):
            train(halted.model_copy(update={"resume": "auto"}), reporter=Halt(step))
    train(halted.model_copy(update={"resume": "auto"}))
    for name in ("model.safetensors", "model_ema.safetensors"):
        one, other = (load_file(Path(config.out) / name) for config in (whole, halted))
        assert all(torch.equal(one[key], other[key]) for key in one)
    assert log(halted.out) == log(whole.out)
    assert [row["k"] for row in log(whole.out) if row["kind"] == "train"] == [16, 15, 10, 7, 7, 7]
    with pytest.raises(MismatchError, match=r"stage_keep: the checkpoint has 0\.6, this run 0\.7"):
        planned(halted.model_copy(update={"resume": "auto", "stage_keep": "0.7"}))


def test_two_ranks_train_as_one_process_does(make_selector: MakeRun, train_process: Callable[..., Any]) -> None:
    """Equal global batches: losses within 1e-5; stopped by a signal, they hand over to a single process."""
    alone, shared = make_selector("alone"), make_selector("shared", batch_size=4)
    train(alone)
    stopped = train_process(shared, ranks=2, signals={4: signal.SIGTERM})
    assert stopped.returncode == 75, stopped.stderr
    result = train(shared.model_copy(update={"batch_size": 8, "resume": "auto"}))
    assert (result.status, result.steps) == ("finished", 6), stopped.stderr
    losses = [[row["loss"] for row in log(config.out) if row["kind"] == "train"] for config in (alone, shared)]
    assert losses[1] == pytest.approx(losses[0], abs=1e-5)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"blocks": (7,)}, "from 0 to 1"),
        ({"model": "vit_base_patch16_siglip_224", "model_kwargs": {"depth": 1}}, "no class token"),
        ({"model": "resnet18", "model_kwargs": {}, "img_size": None}, "cannot select patches"),
        ({"tickets": "t.zarr"}, "unknown setting among the flags: 'tickets'"),
        ({"stage_keep": "1.5"}, "--stage-keep: .*above 0 and at most 1"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused(make_selector: MakeRun, changed: dict[str, Any], message: str) -> None:
    """Blocks, rates, models and settings that a selector's training has not, before anything is written."""
    with pytest.raises(InputError, match=message):
        planned(make_selector(**changed))
