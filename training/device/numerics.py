"""How float32 is multiplied and in which order it is summed, for a whole run; afterwards as it was before.

A GPU may take float32 products in TF32, with ten bits of the mantissa in place of 23. PyTorch leaves that off for
matrices and on for convolutions, and a patch embedding is a convolution: so it is all off here until a run asks for it,
and nobody's numbers depend on what PyTorch's defaults are. Out of reach is what multiplies within PyTorch's attention
kernels: since Ampere the one for float32 sums three TF32 products for each, which is near float32, and no switch
changes it.

Some of a GPU's kernels sum in an order that changes from call to call. A run may ask for those that do not.

On a CPU float32 stays what it is, whatever is asked for.
"""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from dlth.tickets.errors import DlthError, InputError, shown

WORKSPACE, FIXED_WORKSPACES = "CUBLAS_WORKSPACE_CONFIG", (":4096:8", ":16:8")
"""By which cuBLAS gets the same memory at each call, and so chooses the same kernels; the values that PyTorch takes."""


_TURN = threading.RLock()


@contextmanager
def numerics(tf32: bool = False, deterministic: bool = False) -> Iterator[None]:
    """Run a block, or a function that it decorates, with float32 matrices and convolutions multiplied in IEEE or TF32,
    deterministic if asked.

    The switches are the process's: one thread at a time may be in here, and may enter again.

    It begins before CUDA is used where `deterministic` is asked for: the workspace is read once in a process, and is
    left as it is set.

    Raises:
        InputError: another thread is in here; or CUDA is in use already, without such a workspace; or a kernel has no
            deterministic way
    """
    if not _TURN.acquire(blocking=False):
        raise InputError("another thread of this process computes already, and the precision is the process's")
    with ExitStack() as after:
        after.callback(_TURN.release)
        _set_products(after, tf32)
        if not deterministic:
            yield
            return
        _fix_workspace()
        before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
        after.callback(torch.use_deterministic_algorithms, before[0], warn_only=before[1])
        torch.use_deterministic_algorithms(True)
        _set(after, torch.backends.cudnn, "benchmark", False)
        # PyTorch would fill what `torch.empty` gives, for programs that read it unwritten: none of ours does
        _set(after, torch.utils.deterministic, "fill_uninitialized_memory", False)
        try:
            yield
        except RuntimeError as error:
            if isinstance(error, DlthError) or "deterministic" not in str(error):
                raise
            problem = str(error).splitlines()[0].partition(", but you set")[0]
            raise InputError(f"--deterministic: {shown(problem)}; leave it out, or what needs that") from error


def tell_tf32(asked: bool, device: torch.device, note: Callable[[str], None]) -> None:
    """Say that TF32 was asked for where there is none."""
    if asked and device.type != "cuda":
        note(f"--tf32 is a way of GPUs: on {device} float32 stays what it is")


def _set_products(after: ExitStack, tf32: bool) -> None:
    """Set float32 products, in both ways that PyTorch has: some of its code asks in the older one, and is refused an
    answer where the two say different things, or where recurrent networks' say another than convolutions', or where a
    CPU's say another than a GPU's.
    """
    cudnn: Any = torch.backends.cudnn  # of whose parts a type checker does not know
    cpu: Any = torch.backends.mkldnn
    ours = [torch.backends.cuda.matmul, cudnn.conv, cudnn.rnn]
    kinds: list[Any] = [*ours, cpu.matmul, cpu.conv, cpu.rnn]
    before = [kind.fp32_precision for kind in kinds]

    def put(names: list[str], older: tuple[str, bool]) -> None:
        torch.set_float32_matmul_precision(older[0])
        cudnn.allow_tf32 = older[1]
        for kind, name in zip(kinds, names, strict=True):  # after: the older way changes the newer one
            kind.fp32_precision = "none"  # which follows what is set for all kinds
            if kind.fp32_precision != name:
                kind.fp32_precision = name

    after.callback(put, before, _older_way(kinds))
    put(["tf32" if tf32 and kind in ours else "ieee" for kind in kinds], ("high" if tf32 else "highest", tf32))


def _older_way(kinds: list[Any]) -> tuple[str, bool]:
    """What the older way says of matrices and of convolutions, whether or not the newer agrees, which it sets."""
    for kind in kinds:
        kind.fp32_precision = "ieee"
    try:
        convolutions = bool(torch.backends.cudnn.allow_tf32)
    except RuntimeError:  # it does not say what the newer one does
        convolutions = True
    return torch.get_float32_matmul_precision(), convolutions


def _set(after: ExitStack, holder: Any, name: str, value: Any) -> None:
    """Set a switch of PyTorch's, and have it put back."""
    after.callback(setattr, holder, name, getattr(holder, name))
    setattr(holder, name, value)


def _fix_workspace() -> None:
    if os.environ.get(WORKSPACE) in FIXED_WORKSPACES:
        return
    if torch.cuda.is_initialized():
        raise InputError(
            f"--deterministic needs {WORKSPACE}={FIXED_WORKSPACES[0]} in the environment before CUDA is first used,"
            " and this process has used it already: set it and start anew"
        )
    os.environ[WORKSPACE] = FIXED_WORKSPACES[0]
