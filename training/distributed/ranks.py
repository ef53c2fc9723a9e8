"""This process among the ranks of a job, as torchrun's environment variables say it, checked.

Without torch, so that the command line may ask who speaks before anything heavy is imported.
"""

import os
from dataclasses import dataclass

from dlth.tickets.ascii_digits import is_digits
from dlth.tickets.errors import InputError, shown

MAX_RANKS = 1_000_000
"""No job has more: a number beyond it is a variable that was set by mistake."""


@dataclass(frozen=True)
class Ranks:
    """`rank` of `size` processes, `local` among those of this machine; `launched` by something that numbers them."""

    rank: int
    size: int
    local: int
    launched: bool

    @property
    def leads(self) -> bool:
        """Whether this process speaks for all."""
        return self.rank == 0


def ranks() -> Ranks:
    """What $RANK, $WORLD_SIZE and $LOCAL_RANK say; a process without them is alone.

    Raises:
        InputError: no numbers, or numbers that do not fit each other
    """
    rank, size, local = _number("RANK", 0), _number("WORLD_SIZE", 1), _number("LOCAL_RANK", 0)
    if size < 1 or rank >= size:
        raise InputError(
            f"RANK is {rank} and WORLD_SIZE {size}: ranks count from 0 to WORLD_SIZE - 1; torchrun sets both, otherwise"
            " unset them"
        )
    launched = bool(os.environ.get("RANK"))
    if size > 1 and not launched:
        raise InputError(f"WORLD_SIZE is {size} and RANK is not set: torchrun sets both, otherwise unset WORLD_SIZE")
    return Ranks(rank, size, local, launched)


def _number(name: str, default: int) -> int:
    text = os.environ.get(name)
    if not text:
        return default
    if not (is_digits(text) and len(text) < 10 and int(text) <= MAX_RANKS):
        raise InputError(f"the environment variable {name} is {shown(text)!r}, no number of a process: unset it")
    return int(text)
