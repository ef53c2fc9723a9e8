"""Runs in processes of their own: killed and resumed, twice alike, on two devices."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest
from makers.device_report import Compared
from makers.device_runs import MakeRun, trained, weights_apart
from makers.precisions import BFLOAT16, FLOAT32
from makers.processes import train_process
from makers.scales import Scale
from safetensors.torch import load_file

from dlth.training.models.weights_metadata import MODEL_FILE
from dlth.training.pruning.recipe import REWIND
from dlth.training.runs.runlog import RESULT
from dlth.training.settings.train_config import TrainConfig

MUCH: dict[str, Any] = {
    **{"amp": True, "opt": "adamw", "lr": 1e-3, "drop_path": 0.2, "clip_grad": 1.0},
    **{"model_ema": True, "mixup": 0.8, "cutmix": 1.0, "mix_group": 4, "reprob": 0.25, "epochs": 2},
}
"""Whatever a step may do; two epochs of four steps."""
IN_RANKS = 1e-4
"""As the same step with its images in two forwards: tests/gpu/test_training.py."""


def result(config: TrainConfig) -> dict[str, Any]:
    """What a finished run wrote of itself."""
    found: dict[str, Any] = json.loads((Path(config.out) / RESULT).read_text())
    assert found["status"] == "finished"
    return found


@pytest.mark.gpu
def test_killed_and_resumed_to_the_bit(make_run: MakeRun, tmp_path: Path) -> None:
    """With deterministic kernels a run that is killed after step 3 and resumed ends with the weights of one that
    nothing disturbed, to the last bit.
    """
    whole, killed = (make_run(**MUCH, deterministic=True, checkpoint_steps=1) for _ in range(2))
    done = train_process(tmp_path, whole)
    assert done.returncode == 0, done.stderr
    assert train_process(tmp_path, killed, signals={3: signal.SIGKILL}).returncode == -signal.SIGKILL
    done = train_process(tmp_path, killed)
    assert done.returncode == 0, done.stderr
    assert result(killed)["weights_sha256"] == result(whole)["weights_sha256"]


def test_the_same_run_twice(make_run: MakeRun, compared: Compared) -> None:
    """How far two runs of the same settings end apart where kernels may sum in any order: told, and nothing claimed."""
    first, second = (trained(make_run(**MUCH)) for _ in range(2))
    compared("the same run twice: weights", BFLOAT16, weights_apart(first.end, second.end, first.start), None)


@pytest.mark.gpu(devices=2)
def test_two_ranks(make_run: MakeRun, scale: Scale, compared: Compared, tmp_path: Path) -> None:
    """Two ranks on two GPUs, which sum their gradients by nccl, learn what one GPU learns of the same batches."""
    options: dict[str, Any] = {"workers": 0, "rewind_step": 0, "device": "cuda"}
    ends = []
    for ranks in (1, 2):
        config = make_run(**options, batch_size=scale.batch // ranks)
        done = train_process(tmp_path, config, ranks=ranks, torchrun=True)
        assert done.returncode == 0, done.stderr
        assert result(config)["world_size"] == ranks
        ends.append(Path(config.out))
    one, two = (load_file(out / MODEL_FILE) for out in ends)
    apart = weights_apart(two, one, load_file(ends[0] / REWIND))
    compared("two ranks, nccl: weights", FLOAT32, apart, IN_RANKS)
