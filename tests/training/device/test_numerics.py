"""How float32 is multiplied and summed during a run, and that nothing of it stays."""

import os
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

from dlth.tickets.errors import InputError
from dlth.training.device.numerics import FIXED_WORKSPACES, WORKSPACE, numerics
from dlth.training.distributed.signals import StopRequest
from dlth.training.reporter import Reporter
from dlth.training.runs.loop import train
from dlth.training.settings.train_config import TrainConfig


def switches() -> dict[str, Any]:
    """Every switch of PyTorch's that a run may turn."""
    return {
        "matrices": torch.backends.cuda.matmul.fp32_precision,
        "convolutions": torch.backends.cudnn.conv.fp32_precision,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "warn only": torch.is_deterministic_algorithms_warn_only_enabled(),
        "benchmark": torch.backends.cudnn.benchmark,
        "fill": torch.utils.deterministic.fill_uninitialized_memory,  # type: ignore[attr-defined]
    }


@pytest.fixture(autouse=True)
def no_workspace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test begins without a workspace, and leaves none."""
    monkeypatch.setenv(WORKSPACE, "")


@pytest.mark.parametrize(("tf32", "name"), [(False, "ieee"), (True, "tf32")])
def test_a_block_has_the_products_it_asks_for_and_puts_all_back(tf32: bool, name: str) -> None:
    """Matrices and convolutions alike, whatever PyTorch's own defaults."""
    before = switches()
    with numerics(tf32):
        assert switches() == before | {"matrices": name, "convolutions": name}
        # inductor asks in the older way, which raises where it says another thing than the newer one
        assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == (tf32, tf32)
        assert torch.get_float32_matmul_precision() == ("high" if tf32 else "highest")
    assert switches() == before
    assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == (False, True)


def answers() -> dict[str, Any]:
    """What PyTorch says of products of float32, in both ways that it has, and where it refuses to say."""
    cudnn, cpu = torch.backends.cudnn, torch.backends.mkldnn
    kinds = {"cudnn": cudnn, "conv": cudnn.conv, "rnn": cudnn.rnn, "cpu": cpu.matmul, "cpu's conv": cpu.conv}  # type: ignore[attr-defined]
    kinds |= {"all": torch.backends, "cpu's rnn": cpu.rnn, "matrices": torch.backends.cuda.matmul}  # type: ignore[dict-item]
    asked = {name: lambda kind=kind: kind.fp32_precision for name, kind in kinds.items()}
    asked["matrices, older"] = lambda: torch.backends.cuda.matmul.allow_tf32
    asked |= {"older": torch.get_float32_matmul_precision, "cudnn, older": lambda: cudnn.allow_tf32}
    said: dict[str, Any] = {}
    for name, ask in asked.items():
        try:
            said[name] = ask()
        except RuntimeError:
            said[name] = "refused"
    return said


CALLERS: list[Callable[[], None]] = [
    partial(torch.set_float32_matmul_precision, "high"),
    partial(torch.set_float32_matmul_precision, "medium"),
    *(partial(setattr, torch.backends, "fp32_precision", name) for name in ("tf32", "ieee", "bf16")),
    partial(setattr, torch.backends.cuda.matmul, "allow_tf32", True),
    partial(setattr, torch.backends.cuda.matmul, "fp32_precision", "tf32"),
    partial(setattr, torch.backends.cudnn, "allow_tf32", False),
    partial(setattr, torch.backends.cudnn.conv, "fp32_precision", "ieee"),  # type: ignore[attr-defined]
    partial(setattr, torch.backends.mkldnn.conv, "fp32_precision", "tf32"),
]


def test_whatever_a_caller_has_set_is_there_again() -> None:
    """In the older way or the newer, for one kind or for all: inside each has its answer, afterwards the caller's own,
    and what followed what is set for all kinds follows it still.
    """
    plain = answers()
    try:
        for caller in CALLERS:
            caller()
            before = answers()
            for tf32 in (False, True):
                with numerics(tf32):
                    inside = answers()
                    assert "refused" not in inside.values()
                    assert (inside["matrices"], inside["conv"]) == (("tf32", "tf32") if tf32 else ("ieee", "ieee"))
                    assert (inside["cpu"], inside["cpu's conv"], inside["cpu's rnn"]) == ("ieee",) * 3
                assert answers() == before, caller
            torch.backends.fp32_precision = "none"  # type: ignore[assignment]
            if caller is CALLERS[2]:
                assert answers()["matrices"] == "none"
            _as_new()
    finally:
        torch.backends.fp32_precision = "none"
        _as_new()
    assert answers() == plain


def _as_new() -> None:
    """PyTorch's own defaults, of which no getter says where they come from."""
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = True
    cpu: Any = torch.backends.mkldnn
    for kind in (torch.backends.cuda.matmul, cpu.matmul, cpu.conv, cpu.rnn):
        kind.fp32_precision = "none"


def test_a_process_computes_in_one_way_at_a_time() -> None:
    """Another thread is refused while one is inside, which may enter again; afterwards the other may."""
    problems: list[str] = []

    def other() -> None:
        try:
            with numerics(tf32=True):
                problems.append("")
        except InputError as error:
            problems.append(str(error))

    with numerics(), numerics():
        first = threading.Thread(target=other)
        first.start()
        first.join()
    second = threading.Thread(target=other)
    second.start()
    second.join()
    assert problems == ["another thread of this process computes already, and the precision is the process's", ""]


def test_deterministic_kernels_are_asked_for_and_put_back() -> None:
    """Of what the caller had set, nothing changes: a search for the fastest kernels and warnings are there again."""
    torch.backends.cudnn.benchmark = True
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        before = switches()
        with numerics(deterministic=True):
            now = switches()
            assert os.environ[WORKSPACE] in FIXED_WORKSPACES
        assert switches() == before
        with numerics():
            assert switches()["deterministic"]
    finally:
        torch.backends.cudnn.benchmark = False
        torch.use_deterministic_algorithms(False)
    expected = {"deterministic": True, "warn only": False, "benchmark": False, "fill": False}
    assert {name: now[name] for name in expected} == expected


def test_a_kernel_without_a_deterministic_way_is_a_users_error() -> None:
    """It is named, in one line; an error of another kind passes as it is."""
    no_way = pytest.raises(
        InputError, match=r"--deterministic: put_ does not have a deterministic implementation; leave"
    )
    with no_way, numerics(deterministic=True):
        torch.zeros(3).put_(torch.tensor([0]), torch.ones(1))
    with pytest.raises(RuntimeError, match="size"), numerics(deterministic=True):
        torch.zeros(2) + torch.zeros(3)


def test_a_workspace_is_wanted_before_cuda_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once CUDA is in use the workspace must have been there; what the user has chosen is left."""
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    before = switches()
    late = pytest.raises(InputError, match=r"needs CUBLAS_WORKSPACE_CONFIG=:4096:8 .*before CUDA is first used")
    with late, numerics(deterministic=True):
        pass
    assert switches() == before
    monkeypatch.setenv(WORKSPACE, ":16:8")
    with numerics(deterministic=True):
        assert os.environ[WORKSPACE] == ":16:8"


class _Looks(Reporter):
    """Sees the switches in the middle of a run, and what was said."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Any]] = []
        self.said: list[str] = []

    def stepped(self, record: Any) -> None:
        self.seen.append(switches())

    def note(self, text: str) -> None:
        self.said.append(text)


def test_a_run_trains_with_what_its_settings_say(make_run: Callable[..., TrainConfig]) -> None:
    """Each step of it; a CPU, which has no TF32, says so and computes the same bits with either setting."""
    looks, short = _Looks(), {"epochs": 1, "warmup_epochs": 0, "val": None, "val_tickets": None}
    asked = train(make_run("asked", tf32=True, deterministic=True, **short), reporter=looks)
    plain = train(make_run("plain", **short))
    assert {(seen["matrices"], seen["deterministic"]) for seen in looks.seen} == {("tf32", True)}
    assert any(text.startswith("--tf32") for text in looks.said)
    assert asked.weights_sha256 == plain.weights_sha256
    assert asked.config_sha256 != plain.config_sha256


def test_whether_kernels_are_deterministic_may_change_on_the_way_and_is_told(
    make_run: Callable[..., TrainConfig],
) -> None:
    """A checkpoint is gone on from with other kernels, which is said; with other products of float32 it is refused."""
    looks = _Looks()
    begun = make_run(epochs=1, warmup_epochs=0, val=None, val_tickets=None)
    assert train(begun, stop=StopRequest(requested=True)).steps == 1
    other = begun.model_copy(update={"resume": "auto"})
    with pytest.raises(ValueError, match=r"tf32: the checkpoint has False, this run True"):
        train(other.model_copy(update={"tf32": True}))
    train(other.model_copy(update={"deterministic": True}), reporter=looks)
    assert any("deterministic: the checkpoint has None, this run True" in text for text in looks.said)
