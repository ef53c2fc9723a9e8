"""How many cores there are, and how many worker processes the machine bears.

Apart from the workers themselves, as those import torch and packing does without.
"""

import os
import resource

from dlth.tickets.errors import InputError

_PER_CORE, _FEWEST = 16, 64
"""Workers for each core, as those that read from a network mostly wait; and how many any machine may start."""
_DESCRIPTORS, _OTHERS = 16, 64
"""Open files that a worker needs (its connection, its end, the tensors of its answers), and those of all else."""


def num_cores() -> int:
    """Cores that this process may use; where the system does not say, all."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_workers(workers: int) -> None:
    """Refuse a number of workers that this machine or its limits cannot bear, before one is started.

    The limit on open files is raised as far as they need and the system lets everyone: 1,024 is a common start.

    Raises:
        InputError: says how many can work, and what sets the bound
    """
    cores = max(_FEWEST, _PER_CORE * num_cores())
    files, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = min(workers, cores) * _DESCRIPTORS + _OTHERS
    if resource.RLIM_INFINITY != files < needed:
        files = needed if most == resource.RLIM_INFINITY else max(files, min(needed, most))
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, most))
    by_files = cores if files == resource.RLIM_INFINITY else max(0, (files - _OTHERS) // _DESCRIPTORS)
    if workers > min(cores, by_files):
        why = f"{files} open files (ulimit -n)" if by_files < cores else f"{num_cores()} cores"
        raise InputError(f"{workers} workers are too many for {why}: at most {min(cores, by_files)} can work here")
