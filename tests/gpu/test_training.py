"""Runs of stage 2 on the device against the same runs in float32 on the CPU: the loss of each step, and the weights.

Weights are compared by how far they moved: the norm of the difference as a share of the norm of the move. SGD, as it is
linear in the gradient: AdamW divides by its size, and where a gradient is next to nothing, rounding chooses its sign.
"""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from makers.device_report import Compared
from makers.device_runs import MakeRun, Trained, prepared, scale_loss, steps, trained, weights_apart, weights_of
from makers.masks import mask_file
from makers.precisions import BFLOAT16, FLOAT16, FLOAT32, PRECISIONS, TF32
from makers.scales import Scale
from safetensors.torch import save_file

IN_LOSS = {FLOAT32: 1e-5, TF32: 5e-3, BFLOAT16: 1e-2, FLOAT16: 1e-3}
IN_MOVE = {FLOAT32: 1e-4, TF32: 2e-2, BFLOAT16: 1e-1, FLOAT16: 2e-2}
IN_FUSED = 1e-4
"""Relative, some ten times what the CPU differs by in that precision on models of the size that a GPU is given. TF32's
are three (loss) and ten times (weights) what factors differ by whose last 13 bits are cut off, as a GPU may do; rounded
to the nearest, the loss differs by a fifth of that.
"""


def precision_settings(precision: str) -> dict[str, Any]:
    """Settings of train that compute in a precision."""
    if precision in (BFLOAT16, FLOAT16):
        return {"amp": True, "amp_dtype": precision}
    return {"tf32": True} if precision == TF32 else {}


def compare(
    what: str, precision: str, ours: Trained, reference: Trained, compared: Compared, within: str | None = None
) -> None:
    """Losses, weights and averages of two runs; `within`: the precision whose tolerances hold, if another's."""
    in_loss, in_move = IN_LOSS[within or precision], IN_MOVE[within or precision]
    worst = float((ours.losses / reference.losses - 1).abs().max())
    compared(f"{what}: loss", precision, worst, in_loss)
    compared(f"{what}: weights", precision, weights_apart(ours.end, reference.end, reference.start), in_move)
    if reference.average:
        apart = weights_apart(ours.average, reference.average, reference.start)
        compared(f"{what}: average", precision, apart, in_move)


ARMS: dict[str, dict[str, Any]] = {"ticket": {}, "dense": {"arm": "dense", "tickets": None}}


@pytest.fixture(scope="module")
def reference(make_run: MakeRun) -> Callable[[str], Trained]:
    """``reference(arm)``: its steps in float32 on the CPU, made once."""
    return cache(lambda arm: trained(make_run(**ARMS[arm], device="cpu")))


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("arm", ARMS)
def test_precisions(
    make_run: MakeRun, reference: Callable[[str], Trained], compared: Compared, arm: str, precision: str
) -> None:
    """Each precision gives the losses and the weights of float32 on the CPU, within its rounding."""
    ours = trained(make_run(**ARMS[arm], **precision_settings(precision)))
    compare(f"train, {arm}", precision, ours, reference(arm), compared)


SETTINGS: dict[str, dict[str, Any]] = {
    "random": {"arm": "random"},
    "mixed and erased": {"mixup": 0.8, "cutmix": 1.0, "smoothing": 0.1, "reprob": 1.0, "mix_group": 4},
    "tokens mixed": {"mix_token": 1.0, "mix_group": 4},
    "clipped, averaged, channels last": {
        **{"clip_grad": 0.1, "channels_last": True},
        **{"model_ema": True, "model_ema_decay": 0.9},
    },
}
"""What runs do besides; not drop path, which is drawn on the device."""


@pytest.mark.parametrize("what", SETTINGS)
def test_settings(make_run: MakeRun, compared: Compared, what: str) -> None:
    """In float32 every other way to train gives the losses, weights and averages that it gives on the CPU."""
    ours, expected = trained(make_run(**SETTINGS[what])), trained(make_run(**SETTINGS[what], device="cpu"))
    compare(f"train, {what}", FLOAT32, ours, expected, compared)


def test_online(make_run: MakeRun, compared: Compared, scale: Scale, tmp_path: Path) -> None:
    """A selector in the loop chooses as on the CPU, so that the student learns the same, but for patches that are
    nearly ties: one of another kind in a batch is more than all rounding.
    """
    weights = tmp_path / "selector.safetensors"
    save_file(scale.vit().state_dict(), weights)
    options: dict[str, Any] = {"mode": "online", "tickets": None, "keep": "0.5", "selector_checkpoint": str(weights)}
    options |= {"selector": scale.model, "selector_kwargs": scale.kwargs, "selector_blocks": (0, 1)}
    ours, expected = trained(make_run(**options)), trained(make_run(**options, device="cpu"))
    compare("train, online", FLOAT32, ours, expected, compared, within=FLOAT16)


def test_masks(make_run: MakeRun, compared: Compared, scale: Scale, tmp_path: Path) -> None:
    """Under a mask of half of its weights a model learns as on the CPU, and what is masked is zero to the bit."""
    mask = mask_file(scale.vit(), scale.model, tmp_path / "mask.safetensors")
    options = {"mask": str(tmp_path / "mask.safetensors"), "model_ema": True, "model_ema_decay": 0.9}
    ours = trained(make_run(**options))
    compare("train, masked", FLOAT32, ours, trained(make_run(**options, device="cpu")), compared)
    revived = sum(int(ours.end[name][~kept].count_nonzero()) for name, kept in mask.masks.items())
    compared("train, masked: masked weights that are not zero", FLOAT32, revived, 0)


def test_accumulation(make_run: MakeRun, reference: Callable[[str], Trained], compared: Compared, scale: Scale) -> None:
    """Two forwards whose gradients make one step learn what one forward of all images does, on the CPU."""
    ours = trained(make_run(batch_size=scale.batch // 2, grad_accum_steps=2))
    compare("train, accumulated", FLOAT32, ours, reference("ticket"), compared)


def test_fused_optimizer(make_run: MakeRun, device: torch.device, compared: Compared) -> None:
    """AdamW moves weights alike whether its loops are fused or not, by the same gradients."""
    ends = []
    for other in (False, True):
        with prepared(make_run(opt="adamw", lr=1e-3)) as parts:
            start = weights_of(parts.student.model)
            for group in parts.optimizer.param_groups if other else ():
                group["fused"] = not group.get("fused")
            torch.manual_seed(0)
            for _ in range(3):
                for parameter in parts.student.parameters():
                    parameter.grad = torch.randn(parameter.shape).to(device)
                parts.optimizer.step()
            ends.append(weights_of(parts.student.model))
    compared("AdamW, fused: weights", FLOAT32, weights_apart(*ends, start), IN_FUSED)


def test_a_gradient_that_overflows_float16_moves_nothing(make_run: MakeRun) -> None:
    """A scale of the loss that no gradient of float16 can bear is halved, the step is counted as rescaled, and weights
    and the optimizer's state stay to the bit; the next step on a scale that fits moves them.
    """
    with prepared(make_run(opt="adamw", amp=True, amp_dtype="float16")) as parts:
        model = parts.student.model
        before = weights_of(model)
        scale_loss(parts, 2.0**60)
        (first,) = steps(parts, 1)
        assert (first.moved, first.rescaled) == (False, True)
        assert parts.stepper.scaler.get_scale() == 2.0**59
        assert all(torch.equal(now, before[name]) for name, now in weights_of(model).items())
        assert not parts.optimizer.state_dict()["state"]
        scale_loss(parts, 2.0**8)
        (second,) = steps(parts, 1)
        assert (second.moved, second.rescaled) == (True, False)
        assert not all(torch.equal(now, before[name]) for name, now in weights_of(model).items())
