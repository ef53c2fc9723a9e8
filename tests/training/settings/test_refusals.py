"""What a run would refuse is refused before its first step, by `--dry-run` too."""

import os
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.optim import OptimInfo
from timm.optim._optim_factory import default_registry

from dlth.tickets.errors import InputError, MissingFileError
from dlth.training.distributed import process_group
from dlth.training.distributed.process_group import pick_device
from dlth.training.models.registry import build
from dlth.training.models.weights import read_weights
from dlth.training.runs.loop import planned, train
from dlth.training.settings.train_config import TrainConfig

MakeRun = Callable[..., TrainConfig]
DENSE: dict[str, Any] = {"arm": "dense", "tickets": None, "val": None, "val_tickets": None}
TINY = {"patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2}

SLIPS: list[tuple[dict[str, Any], str]] = [
    ({"seed": 1 << 64}, "--seed: whole numbers end at 9223372036854775807"),
    ({"shuffle_window": 1 << 70}, "--shuffle-window: whole numbers end at"),
    ({"epochs": 10**12}, "--epochs: Input should be less than or equal to 1000000"),
    ({"batch_size": 10**9}, "--batch-size: Input should be less than or equal to 65536"),
    ({"grad_accum_steps": 10**9}, "--grad-accum-steps: Input should be less"),
    ({"img_size": 10**6}, "--img-size: Input should be less"),
    ({"model_kwargs": TINY | {"proj_drop_rate": float("nan")}}, "proj_drop_rate is nan, which is no number"),
]
"""Settings that are refused as such."""

MISFITS: list[tuple[dict[str, Any], str]] = [
    ({"aa": "rand-m9-n100000"}, "n goes from 0 to 15 in whole numbers"),
    ({"aa": "rand-m9-mmax1000000"}, "mmax goes from 0 to 100"),
    ({"aa": "rand-p2"}, "p goes from 0 to 1"),
    ({"aa": "rand-m\u0663"}, "is not known: use m, mstd"),
    ({"aa": "augmix"}, "augmentation policy 'augmix' is not known"),
    ({"ratio": (1e-300, 1e300)}, "ratio must be two rising numbers"),
    ({"scale": (2.0, 1.0)}, "scale must be two rising numbers"),
    ({"model_kwargs": TINY | {"in_chans": 4}}, "cannot see an RGB image of 32x32 pixels"),
    ({"model_kwargs": TINY | {"patch_size": 7}}, "cannot see an RGB image of 28x28 pixels"),
    ({"opt": "adahessian"}, "cannot make the optimizer adahessian"),
    ({"lr": 1e300}, "cannot make the optimizer adamw"),
    ({"layer_decay": 1e300}, "cannot make the optimizer adamw"),
    ({"warmup_lr": 1e300}, r"would reach 1e\+300, and it ends at 3.4e\+38"),
    ({"layer_decay": 1e30}, "would reach .* and it ends at"),
    ({"min_lr": 1e39}, "would reach .* and it ends at"),
    ({"sched": "step", "decay_epochs": 1, "decay_rate": 1e300, "epochs": 9}, "cannot make the optimizer adamw"),
    ({"grad_accum_steps": 65_536}, r"65536 forwards, and an epoch has \d+ images for them: give at most \d+"),
    ({"workers": 100_000}, r"100000 workers are too many for .*: at most \d+ can work here"),
    ({"resume": "nowhere"}, "nowhere is no checkpoint of dlth"),
    ({"init_from": "x" * 5_000}, "x{50}"),
]
"""Settings that do not fit torch, timm, the machine or its files."""


def test_numbers_beyond_any_use_are_no_settings(make_run: MakeRun) -> None:
    """They are refused with the flag and its bound, before anything is opened."""
    for values, text in SLIPS:
        with pytest.raises(InputError, match=text):
            make_run(**DENSE | values)


def test_a_dry_run_refuses_what_the_run_would(make_run: MakeRun) -> None:
    """Augmentation, model, optimizer, workers and checkpoint are put together and tried, and nothing is left."""
    sound = make_run(**DENSE)
    assert planned(sound)["starts at step"] == 0
    for values, text in MISFITS:
        with pytest.raises((InputError, MissingFileError), match=text):
            planned(sound.model_copy(update=values))
    assert not Path(sound.out).exists()


class _Odd(torch.optim.SGD):
    """Keeps in its state what no checkpoint can hold."""

    def __init__(self, params: Any, **options: Any) -> None:
        super().__init__(params, **options)
        self.param_groups[0]["odd"] = object()


def test_an_optimizer_that_cannot_be_saved_is_refused(make_run: MakeRun) -> None:
    """Before the first step, and not at the first save; one whose groups hold dtypes trains, saves and is resumed."""
    default_registry.register(OptimInfo(name="odd", opt_class=_Odd))
    config = make_run(warmup_epochs=0, **DENSE | {"epochs": 1})
    with pytest.raises(InputError, match="this optimizer's state cannot be saved"):
        planned(config.model_copy(update={"opt": "odd"}))
    sound = config.model_copy(update={"opt": "adafactorbv"})
    assert train(sound).status == "finished"
    assert planned(sound.model_copy(update={"resume": "auto"}))["starts at step"] > 0


@pytest.mark.parametrize("name", ["meta", "mps", "xpu", "xla", "hpu", "privateuseone", "cuda:99", "foo", ""])
def test_devices_that_cannot_compute_are_refused(name: str) -> None:
    """Torch has names for many that this build or machine lacks: each is one error with what to use instead."""
    if name in ("mps", "xpu") and getattr(torch, name).is_available():
        assert pick_device(name).type == name
        return
    with pytest.raises(InputError, match=r"--device .*cpu") as refused:
        pick_device(name)
    assert len(str(refused.value)) < 200


TOO_OLD = "The NVIDIA driver on your system is too old (found version 12040). Please update your GPU driver by …"


def test_a_gpu_that_pytorch_cannot_use_is_told_with_its_reason(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """A driver that is too old: "cuda" is refused in PyTorch's words, "auto" warns once, and not without a driver."""

    def too_old() -> None:
        raise RuntimeError(TOO_OLD)

    monkeypatch.setattr(torch.cuda, "init", too_old)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    process_group._tell_unused.cache_clear()
    for driver, warnings in ((tmp_path / "none", 0), (tmp_path, 1)):
        monkeypatch.setattr(process_group, "_DRIVER", driver)
        assert [pick_device("auto").type for _ in range(2)] == ["cpu", "cpu"]
        assert len(caplog.messages) == warnings
    with pytest.raises(InputError, match=r"no CUDA GPU here \(The NVIDIA .* 12040\)\); use") as refused:
        pick_device("cuda")
    assert "found version 12040)" in caplog.text
    assert "Please" not in f"{caplog.text} {refused.value}"


TOO_LARGE: tuple[dict[str, Any], ...] = (
    *({"depth": 10**9}, {"embed_dim": 10**9}, {"reg_tokens": 10**9}, {"mlp_ratio": 1e9}),
    {"embed_dim": 65_536, "num_heads": 1, "depth": 20},
    {"embed_dim": 65_536, "num_heads": 1, "mlp_ratio": 65_536.0},
)


def test_a_models_arguments_are_bounded_before_memory_is_taken() -> None:
    """A billion blocks, a width or tokens of a billion, weights beyond the machine: told with a gigabyte to spare."""
    child = os.fork()
    if child == 0:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 30), used + (1 << 30)))
        os._exit(sum(not _is_told(arguments) for arguments in TOO_LARGE))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def _is_told(arguments: dict[str, Any]) -> bool:
    try:
        build("vit_tiny_patch16_224", **arguments)
    except InputError as error:
        return "it ends at" in str(error) or "of weights; this machine has" in str(error)
    return False


@pytest.mark.parametrize("name", ["check", "name", "nobody_knows"])
def test_arguments_that_no_model_has_are_refused_whatever_their_name(name: str) -> None:
    """A weights file may name any argument: those of our own functions are no more than others."""
    with pytest.raises(InputError, match=r"cannot be built with.*unexpected keyword"):
        build("vit_tiny_patch16_224", **{name: 1})


def test_the_depths_of_all_stages_are_bounded_together() -> None:
    """Every block takes time to build, in whichever stage."""
    with pytest.raises(InputError, match=r"depths is .* ends at 1000"):
        build("swin_tiny_patch4_window7_224", depths=(600, 600, 2, 2))


def test_tensors_that_are_no_plain_numbers_are_refused(tmp_path: Path) -> None:
    """Sparse, quantised, complex, nested and meta tensors in a .pth: named, before torch fails on them somewhere."""
    sound = {"weight": torch.ones(2, 2)}
    odd = {
        "sparse": torch.ones(2, 2).to_sparse(),
        "complex": torch.ones(2, dtype=torch.complex64),
        "meta": torch.ones(2, device="meta"),
        "quantised": torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8),
    }
    for name, tensor in odd.items():
        torch.save(sound | {name: tensor}, tmp_path / "odd.pth")
        with pytest.raises(InputError, match=rf"(no plain numbers .*: {name}\.|no checkpoint that can be read)"):
            read_weights(tmp_path / "odd.pth")
    for content in ({"model": {"layer": {"weight": torch.ones(1)}}}, {"weight": 3.0}, [torch.ones(1)], {"model": {}}):
        torch.save(content, tmp_path / "odd.pth")
        with pytest.raises(InputError):
            read_weights(tmp_path / "odd.pth")
    torch.save(sound, tmp_path / "sound.pth")
    assert torch.equal(read_weights(tmp_path / "sound.pth")["weight"], sound["weight"])
