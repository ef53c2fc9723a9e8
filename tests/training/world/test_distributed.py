"""Two real torchrun ranks against one process: the same batches, the same losses, every image counted once."""

import json
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from makers.masks import mask_file
from makers.pictures import make_tar
from makers.runs import KWARGS
from makers.warm import run_warm
from safetensors.torch import load_file

from dlth.training.models.registry import build
from dlth.training.runs import checkpoint
from dlth.training.runs.loop import train
from dlth.training.settings.layering import layered
from dlth.training.settings.train_config import TrainConfig

TOLERANCE = 1e-5
"""Ranks add float32 gradients in another order; losses around 1.4 were seen to agree to 1.2e-7."""


def rows(out: str, kind: str) -> list[dict[str, Any]]:
    records = [json.loads(line) for line in (Path(out) / "metrics.jsonl").read_text().splitlines()]
    return [row for row in records if row["kind"] == kind]


def test_two_ranks_train_and_measure_as_one_process_does_and_hand_over_to_one(
    make_run: Callable[..., TrainConfig], train_process: Callable[..., Any]
) -> None:
    """Equal global batches, three views an image, mixed in groups: losses within 1e-5, every validation image once.

    Corrupt images are counted once, whichever ranks met their views in whichever epoch, before or after the resume.
    SIGTERM to one rank in the second epoch: both agree to stop and one saves; a single process then goes on with the
    same global batches to the same end.
    """
    options = {"mixup": 0.8, "cutmix": 1.0, "mix_group": 4, "aug_repeats": 3, "clip_grad": 1.0}
    options |= {"missing": "random", "bad_images": "skip"}
    alone = make_run("alone", batch_size=8, **options)
    broken = [(f"broken{n}.{end}", data) for n in range(3) for end, data in (("jpg", b"\xff\xd8 no"), ("cls", b"0"))]
    make_tar(Path(alone.data) / "train-000009.tar", broken)
    train(alone)
    shared = make_run("shared", batch_size=2, grad_accum_steps=2, **options)
    stopped = train_process(shared, ranks=2, signals={4: signal.SIGTERM}, torchrun=True)
    newest = checkpoint.newest(Path(shared.out) / "checkpoints")
    assert newest is not None, stopped.stderr
    assert newest.name == "step-00000004", stopped.stderr
    assert stopped.returncode != 0, "torchrun says 1 when its ranks leave with 75"
    result = train(shared.model_copy(update={"batch_size": 4, "resume": "auto"}))
    assert (result.status, result.world_size) == ("finished", 1)
    assert (result.data["images"], result.data["left_out"]) == (22, {"bad": 2, "missing": 0})
    for config in (alone, shared):
        assert [row["bad_images"] for row in rows(config.out, "epoch")] == [1, 2]
    losses = [row["loss"] for row in rows(alone.out, "train")]
    assert [row["loss"] for row in rows(shared.out, "train")] == pytest.approx(losses, abs=TOLERANCE)
    for one, two in zip(rows(alone.out, "epoch"), rows(shared.out, "epoch"), strict=True):
        for kind in ("dense", "ticket", "random"):
            assert two[f"eval_{kind}_top1"] == one[f"eval_{kind}_top1"]
            assert two[f"eval_{kind}_loss"] == pytest.approx(one[f"eval_{kind}_loss"], abs=TOLERANCE)


RANK = """
import json, os, signal, sys
from pathlib import Path
import torch.distributed as dist
from dlth.tickets.errors import DlthError
from dlth.training.settings.eval_config import EvalConfig
from dlth.training.evaluation.evaluate import evaluate
from dlth.training.settings.layering import layered
from dlth.training.runs.loop import train
from dlth.training.reporter import Reporter

folder, rank = Path(sys.argv[1]), int(sys.argv[2])
(folder / f"pid{rank}").write_text(str(os.getpid()))
dist.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=2)

class Killer(Reporter):
    def stepped(self, record):
        if record["step"] == 1:
            os.kill(int((folder / "pid1").read_text()), signal.SIGKILL)

ends = []
for name, *settings in json.loads((folder / "cases.json").read_text()):
    try:
        if name.startswith("evaluate"):
            evaluate(EvalConfig(**settings[rank]))
        else:
            train(layered(settings[rank]), reporter=Killer() if name == "killed" else None)
        ends.append("")
    except DlthError as error:
        ends.append(f"{error.code} {error}")
    (folder / f"ends{rank}.json").write_text(json.dumps(ends))
"""
"""One of two ranks: trains or measures with each case's settings in turn, and writes down how each ended."""


def test_ranks_that_do_not_agree_are_refused_and_the_end_of_one_is_told(
    make_run: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    """Two processes of one group: both name what differs and both its values, whether settings, files or checkpoint.

    What one is refused for ends both; the same data elsewhere are no difference; and a rank that is killed among its
    steps ends the other with an error of the family. Batch norm's running mean is that of all ranks' images, as one
    process has it that sees them all, and no head of LV-ViT is without a gradient. Two ranks hold to a mask as one.
    """
    alike = {"arm": "dense", "tickets": None, "val": None, "val_tickets": None}
    alike |= {"batch_size": 4, "epochs": 1, "warmup_epochs": 0}
    ours, out = make_run("run", **alike).model_dump(mode="json"), str(tmp_path / "run")
    shutil.copytree(tmp_path / "train", tmp_path / "copy")
    ticket = ours | {"arm": "ticket", "tickets": str(tmp_path / "train.zarr")}
    measured = {"checkpoint": out, "val": str(tmp_path / "val"), "workers": 0, "device": "cpu"}
    weights = ours | {"out": str(tmp_path / "again"), "init_from": out}
    lvvit = {"model": "lvvit_t", "model_kwargs": KWARGS | {"depth": 1, "stem_width": 8}, "hflip": 0.0}
    normed = ours | lvvit | {"batch_size": 10, "drop_last": True, "out": str(tmp_path / "normed")}
    masked = ours | {"model_ema": True, "mask": str(tmp_path / "mask.safetensors"), "out": str(tmp_path / "masked")}
    model = build(ours["model"], num_classes=4, img_size=32, **ours["model_kwargs"])
    mask = mask_file(model, ours["model"], tmp_path / "mask.safetensors")
    cases: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
        "steps": (ours, ours | {"batch_size": 2, "epochs": 3}, r"epochs: rank 0 has 1, rank 1 3\n  batch_size: .*4.*2"),
        "ranking": (ours, ours | {"arm": "random", "keep": "0.5"}, r"arm: rank 0 has dense, rank 1 random"),
        "numbers": (ours, ours | {"lr": 3.0, "seed": 7, "opt": "sgd"}, r"lr: (.*\n)+  opt: .*adamw.*sgd(.*\n)+  seed"),
        "place": (ours, ours | {"out": str(tmp_path / "b")}, r"  out: rank 0 has .*run, rank 1 .*/b\n"),
        "data": (ours, ours | {"data": measured["val"]}, r"  data: rank 0 has [0-9a-f]{6}"),
        "refused": (ours, ours | {"data": str(tmp_path / "none")}, "none|another rank of this run was refused"),
        "ticketless": (ticket, ticket | {"tickets": "no"}, "no ticket file .*no$|another rank of this run was refused"),
        "alike": (ours, ours | {"data": str(tmp_path / "copy")}, ""),
        "checkpoint": (ours | {"out": weights["out"], "resume": out}, weights | {"init_from": None}, "starts at step"),
        "weights": (weights, weights | {"init_from": None}, "initial weights: rank 0 has [0-9a-f]{6}.*rank 1 nothing"),
        "evaluate": (measured, measured | {"keep": "0.5"}, "keep: rank 0 has nothing, rank 1 0.5"),
        "evaluate data": (measured, measured | {"val": ours["data"]}, "val: rank 0 has"),
        "evaluate alike": (measured, measured, ""),
        "batch norm": (normed, normed, ""),
        "mask": (masked, masked | {"mask": None}, "mask: rank 0 has [0-9a-f]{6}.*rank 1 nothing"),
        "masked": (masked, masked, ""),
        "killed": (weights, weights, "E_RANK another rank of this run ended"),
    }
    (tmp_path / "cases.json").write_text(json.dumps([(name, one, two) for name, (one, two, _) in cases.items()]))
    (tmp_path / "rank.py").write_text(RANK)
    codes = [rank.returncode for rank in run_warm(*((tmp_path / "rank.py", tmp_path, rank) for rank in range(2)))]
    ends = [json.loads((tmp_path / f"ends{rank}.json").read_text()) for rank in range(2)]
    assert (codes, [len(said) for said in ends]) == ([0, -signal.SIGKILL], [len(cases), len(cases) - 1])
    for (name, (*_, expected)), *said in zip(cases.items(), ends[0], [*ends[1], ends[0][-1]], strict=True):
        for text in said:
            assert re.search(expected, text) if expected else not text, f"{name}: {text}"
        assert name in ("refused", "ticketless") or said[0] == said[1], name
    train(layered(normed | {"batch_size": 20, "out": str(tmp_path / "alone")}))
    ranks_weights, ours_alone = (load_file(tmp_path / name / "model.safetensors") for name in ("normed", "alone"))
    mean = "patch_embed.bn1.running_mean"
    torch.testing.assert_close(ranks_weights[mean], ours_alone[mean])
    for file in ("model.safetensors", "model_ema.safetensors"):
        held = load_file(tmp_path / "masked" / file)
        assert not any(held[parameter][~kept].any() for parameter, kept in mask.masks.items())
