"""torch.compile with a backend that a user named: one that torch does not have is a user's mistake, said as one."""

import difflib
from collections.abc import Callable
from typing import Any

import torch

from dlth.tickets.errors import InputError, shown


def compiled(function: Callable[..., Any], backend: str) -> Callable[..., Any]:
    """A function or module compiled for fixed shapes, once for each shape. Raises InputError, as `check_backend`."""
    check_backend(backend)
    return torch.compile(function, backend=backend, dynamic=False)


def check_backend(backend: str) -> None:
    """Raises InputError for a backend that torch does not have; says which there are, and the nearest."""
    known = torch.compiler.list_backends(exclude_tags=())
    if backend not in known:
        close = difflib.get_close_matches(backend, known, n=1)
        hint = f" (did you mean {close[0]}?)" if close else ""
        raise InputError(f"--torchcompile {shown(backend)}: torch has no such backend{hint}; it has {', '.join(known)}")
