"""Batches that are cut in a run: what is sent is less, what is trained is the same to the bit."""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from makers.models import FAMILIES

from dlth.training.distributed.process_group import World
from dlth.training.reporter import Reporter
from dlth.training.runs.setup import Parts, prepare
from dlth.training.settings.train_config import TrainConfig

MakeRun = Callable[..., TrainConfig]
ALONE = World(0, 1, torch.device("cpu"))
EVERYTHING = {"reprob": 0.5, "color_jitter": 0.3, "drop_path": 0.2, "model_ema": True, "channels_last": True}


def whole(parts: Parts) -> Parts:
    """A copy of a run, with all pixels of its images sent."""
    parts = copy.deepcopy(parts)
    return replace(parts, loader=parts.inputs.loader(parts.budget))


def trained(parts: Parts) -> tuple[list[tuple[float, float, float]], dict[str, torch.Tensor], int]:
    """What the steps of an epoch gave, the weights and averages after it, and how many bytes of pixels it took."""
    results, num_bytes = [], 0
    for step, batches in enumerate(parts.train_steps(0, 0)):
        parts.set_rate(0, step)
        result = parts.stepper(batches, step, parts.budget(0, step))
        results.append((result.loss, result.grad_norm, result.hidden))
        num_bytes += sum(batch.images.nbytes for batch in batches)
    return results, parts.student.state_dict() | {f"ema {n}": w for n, w in averages(parts).items()}, num_bytes


def averages(parts: Parts) -> dict[str, Any]:
    return {} if parts.ema is None else parts.ema.state_dict()


@pytest.mark.parametrize(("kind", "arm"), [("plain", "ticket"), ("dinov3", "random")])
def test_cut_or_whole_a_run_trains_the_same_weights(make_run: MakeRun, kind: str, arm: str) -> None:
    """Losses, norms, hidden shares, weights and averages of an epoch are the same to the bit; half of the patches are
    kept, and half of the pixels are sent.
    """
    options = {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2} | FAMILIES[kind][1]
    config = make_run(model=FAMILIES[kind][0], model_kwargs=options, arm=arm, **EVERYTHING)
    parts = prepare(config, ALONE, Reporter())
    uncut = whole(parts)
    (losses, weights, num_bytes), (their_losses, their_weights, their_bytes) = trained(parts), trained(uncut)
    assert losses == their_losses
    assert weights.keys() == their_weights.keys()
    assert all(torch.equal(weight, their_weights[name]) for name, weight in weights.items())
    assert num_bytes * 2 == their_bytes


@pytest.mark.parametrize(
    "options",
    [{"mixup": 0.8}, {"arm": "dense", "tickets": None}, {"how": "zero"}, {"mix_token": 1.0}],
    ids=lambda options: next(iter(options)),
)
def test_where_a_whole_image_is_needed_it_is_sent(make_run: MakeRun, options: dict[str, Any]) -> None:
    """Under mixing, on all patches, and for a student that looks at whole images, batches are as they were."""
    parts = prepare(make_run(**options), ALONE, Reporter())
    assert next(parts.train_steps(0, 0))[0].images.shape == (8, 3, 32, 32)
