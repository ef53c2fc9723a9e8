"""One process or many: what a rank must know, and the few sums that ranks exchange.

PyTorch's own `torchrun` starts the ranks; a run without it is a world of one, in which every exchange is the identity,
so that the loop has one path. A group of GPUs gets two back ends at once (nccl for tensors on the GPU, gloo for tensors
on the CPU): the loop's agreements (weights of a batch, is the loss a number, was a stop asked for) are a few numbers on
the CPU and never make the GPU wait. Python objects are never sent, as that pickles them.

A rank that ends leaves the others in the middle of an exchange, which torch tells in many ways. `joined` is the one
place that all of them pass, so there they become one error.
"""

import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
import torch.distributed as dist

from dlth.tickets.errors import DlthError, InputError, MismatchError, shown
from dlth.training.distributed.ranks import ranks
from dlth.training.machine_errors import RankError

LOG = logging.getLogger("dlth")
_DRIVER = Path("/proc/driver/nvidia")
"""There where Linux has loaded NVIDIA's driver, in a container too."""
_OF_ANOTHER_RANK = re.compile(r"gloo|nccl|\b(closed|reset) by peer\b", re.I)
"""What torch's plain RuntimeErrors say of one: "[…gloo/transport/tcp/pair.cc:547] Connection closed by peer"."""


@dataclass(frozen=True)
class World:
    """This process among all that train together: `rank` of `size`, and the device it computes on."""

    rank: int
    size: int
    device: torch.device

    @property
    def leads(self) -> bool:
        """Whether this rank writes files and reports."""
        return self.rank == 0

    def sums(self, values: Sequence[float]) -> list[float]:
        """Each value summed over the ranks, in float64 on the CPU; every rank gets the same numbers."""
        if self.size == 1:
            return [float(value) for value in values]
        total = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(total)
        return [float(value) for value in total]

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on at least one rank."""
        return self.sums([float(flag)])[0] > 0

    def sum_(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum a CPU tensor over the ranks in place; the same shape comes back."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def texts(self, text: str) -> list[str]:
        """The text of each rank, by rank; every rank gets the same list."""
        if self.size == 1:
            return [text]
        mine = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)
        lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
        dist.all_gather(lengths, torch.tensor([len(mine)]))
        longest = max(int(length) for length in lengths)
        padded = [torch.zeros(longest, dtype=torch.uint8) for _ in range(self.size)]
        dist.all_gather(padded, torch.cat([mine, mine.new_zeros(longest - len(mine))]))
        return [bytes(each[: int(length)].tolist()).decode() for each, length in zip(padded, lengths, strict=True)]

    @contextmanager
    def together(self) -> Iterator[None]:
        """A block that ends on all ranks alike: what one of them refuses in it, none goes on after.

        Raises:
            DlthError: this rank's own, or on the others MismatchError, which says that there was one
        """
        problem: DlthError | None = None
        try:
            yield
        except DlthError as error:
            problem = error
        if self.any(problem is not None):
            raise problem or MismatchError("another rank of this run was refused; its own message says why")

    def wait(self) -> None:
        """Return once every rank has come here."""
        self.sums([0.0])


def pick_device(name: str) -> torch.device:
    """The device that `name` means here; under torchrun "cuda" is the GPU of the local rank. A GPU that "auto" cannot
    take is logged once. Raises InputError where this machine has no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
        if name == "cpu" and _DRIVER.exists() and ranks().leads:
            _tell_unused()
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"--device {shown(name)} is not a device; expected auto, cpu, cuda, cuda:N, mps") from error
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise InputError(f"--device {name}: {no_cuda()}; use --device cpu or auto")
        index = device.index if device.index is not None else ranks().local
        if index >= torch.cuda.device_count():
            raise InputError(f"this process needs GPU {index}; this machine has {torch.cuda.device_count()}")
        device = torch.device("cuda", index)
    elif device.type != "cpu":
        _check_computes(device)
    return device


def take_device(name: str) -> torch.device:
    """As `pick_device`; a GPU becomes this thread's current one, which whoever names no device takes (a user's own
    kernels among them): otherwise every process would have memory on the first.
    """
    device = pick_device(name)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device


def no_cuda() -> str:
    """That PyTorch sees no CUDA GPU here, and why, in its own words: no driver, one too old for it, a build without
    CUDA. To be asked where `torch.cuda.is_available()` says no.
    """
    reason = "it does not say why"
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        reason = _first_sentence(error)
    return f"PyTorch sees no CUDA GPU here ({reason})"


@cache
def _tell_unused() -> None:
    """Say, once in a process, that a machine with NVIDIA's driver computes on its CPU."""
    LOG.warning("--device auto takes the CPU, though there is an NVIDIA driver: %s", no_cuda())


def _first_sentence(error: Exception) -> str:
    """What an error of PyTorch's says before it tells of causes, addresses and builds."""
    return shown(re.split(r"\.\s|\n", str(error), maxsplit=1)[0] or type(error).__name__)


def _check_computes(device: torch.device) -> None:
    """Try the device: torch knows names of many that this build, or any machine, does not have."""
    try:
        torch.zeros(1, device=device).add(1).item()
    except (RuntimeError, AssertionError, ImportError, AttributeError) as error:
        problem = f"PyTorch cannot compute there ({_first_sentence(error)})"
        raise InputError(f"--device {device}: {problem}; use --device cpu or auto") from error


@contextmanager
def joined(device_name: str) -> Iterator[World]:
    """Join the ranks that torchrun started (or be alone) while the block runs.

    A group that the caller has already made is used and left as it is.

    Raises:
        InputError: no such device, or ranks that do not find each other
        RankError: another rank ended while this one was in the block
    """
    device = take_device(device_name)
    if dist.is_initialized():
        with _others_end():
            yield World(dist.get_rank(), dist.get_world_size(), device)
        return
    if ranks().size == 1:
        yield World(0, 1, device)
        return
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    except (ValueError, dist.DistError) as error:
        raise InputError(
            f"the ranks of this job do not find each other: {shown(error)}. torchrun sets MASTER_ADDR and MASTER_PORT"
        ) from error
    try:
        with _others_end():
            yield World(dist.get_rank(), dist.get_world_size(), device)
    finally:
        dist.destroy_process_group()


@contextmanager
def _others_end() -> Iterator[None]:
    """A block of exchanges, in which the end of another rank is told as that: RankError."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, DlthError) or not (
            isinstance(error, dist.DistError) or _OF_ANOTHER_RANK.search(str(error))
        ):
            raise
        what = shown(next(iter(str(error).splitlines()), type(error).__name__))
        raise RankError(
            f"another rank of this run ended, or cannot be reached; its own message says why ({what}). Run all ranks"
            " again, `dlth train` with --resume auto"
        ) from error
