"""Any model by any way of leaving patches out: the whole way from training to weights that timm loads."""

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
from makers.runs import KWARGS, Listener
from safetensors.torch import load_file

from dlth.training.evaluation.evaluate import evaluate
from dlth.training.models.weights_metadata import WeightsNote
from dlth.training.runs.loop import planned, train
from dlth.training.runs.result import read_result
from dlth.training.settings.eval_config import EvalConfig
from dlth.training.settings.train_config import TrainConfig

MakeRun = Callable[..., TrainConfig]
RESNET = ("resnet18", {"layers": (1, 1, 1, 1), "channels": (8, 8, 8, 16)})
SWIN = (
    "swin_tiny_patch4_window7_224",
    "patch_size=2,window_size=4,embed_dim=12,depths=[2,1],num_heads=(2,2)",
)
WAYS: dict[str, dict[str, Any]] = {
    "vit small-dense": {"how": "small-dense", "model_kwargs": KWARGS | {"depth": 2, "dynamic_img_size": True}},
    "resnet": {"model": RESNET[0], "model_kwargs": RESNET[1], "model_ema": True},
    "swin zero": {"model": SWIN[0], "model_kwargs": SWIN[1], "how": "zero"},
    "swin small-dense": {"model": SWIN[0], "model_kwargs": SWIN[1], "how": "small-dense"},
}


class Stops(Listener):
    """Asks its run to stop after the second step."""

    def stepped(self, record: Any) -> None:
        if record["step"] == 2:
            signal.raise_signal(signal.SIGTERM)


@pytest.mark.parametrize("way", WAYS)
def test_from_tickets_to_weights_that_timm_loads(make_run: MakeRun, way: str) -> None:
    """Trained in two parts as in one, bit for bit; the folder alone evaluates as the run did; timm loads the weights;
    the result says how patches were left out, on how many tokens, at what cost.
    """
    changes = {"mixup": 0.8, "cutmix": 1.0, "mix_group": 8, "reprob": 0.5, **WAYS[way]}
    config, halves = make_run("whole", **changes), make_run("halves", **changes)
    result = train(config)
    assert train(halves, reporter=Stops()).status == "stopped"
    assert train(halves.model_copy(update={"resume": "auto"})).weights_sha256 == result.weights_sha256

    how, is_vit = changes.get("how", "zero"), config.model == "vit_tiny_patch16_224"
    k = 4 if how == "small-dense" else 8
    assert (result.how, result.patch_size, result.k, result.num_patches) == (how, 8, k, 16)
    per_patch = 16 if config.model == SWIN[0] else 1
    assert result.tokens == is_vit + per_patch * (k if how == "small-dense" else 16)
    assert result.throughput["step_seconds"] > 0
    dense = planned(make_run("dense", **changes, arm="dense"))["student"]
    assert (f"{result.flops / 1e9:.3g} GFLOP" in dense) == (how == "zero")

    val = {"val": config.val, "val_tickets": config.val_tickets, "workers": 0, "device": "cpu"}
    table = evaluate(EvalConfig(checkpoint=config.out, **val)).table()
    losses = {tokens: row["loss"] for tokens, row in result.evaluation["model"].items()}
    assert {tokens: row["loss"] for tokens, row in table.items()} == pytest.approx(losses)
    weights = Path(config.out) / "model.safetensors"
    note = WeightsNote.read(weights)
    assert (note.how, note.patch_size) == (how, 8)
    size = {} if way == "resnet" else {"img_size": 32}
    model = timm.create_model(note.model, num_classes=4, **note.model_kwargs, **size)
    model.load_state_dict(load_file(weights), strict=True)


@pytest.mark.parametrize("arm", ["ticket", "random"])
def test_tickets_of_another_grid_are_moved(make_run: MakeRun, arm: str) -> None:
    """Of 16 patches half are kept, so of 36, too; the random arm draws on the 16 likewise; all is said."""
    listener = Listener()
    result = train(make_run(img_size=48, arm=arm), reporter=listener)
    assert (result.k, result.num_patches, result.tokens) == (18, 36, 19)
    assert result.data["tickets_grid"] == "4x4"
    moved = "tickets of 4x4 patches are moved to the student's 6x6; --img-size 32 would take them as they are"
    assert f"validation: {moved}" in listener.notes
    assert (f"training: {moved}" in listener.notes) == (arm == "ticket")


def test_two_ranks_measure_batch_norm_alike(make_run: MakeRun, train_process: Callable[..., Any]) -> None:
    """Both ranks measure by the same averages, those that are saved, and so does whoever loads them."""
    config = make_run(model=RESNET[0], model_kwargs=RESNET[1], batch_size=4, epochs=1, warmup_epochs=0, model_ema=True)
    ended = train_process(config, ranks=2)
    result = read_result(Path(config.out) / "result.json")
    assert result is not None, ended.stderr
    for weights in ("model", "ema"):
        val = {"val": config.val, "val_tickets": config.val_tickets, "workers": 0, "device": "cpu"}
        table = evaluate(EvalConfig(checkpoint=config.out, use_ema=weights == "ema", **val)).table()
        for tokens, row in table.items():
            assert row["loss"] == pytest.approx(result.evaluation[weights][tokens]["loss"], abs=1e-6)
