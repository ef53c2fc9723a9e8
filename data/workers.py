"""Worker processes: torch's DataLoader, asked one request at a time, with errors a user can read.

The sampler is a queue that the main process fills, so the plan lives in one place and workers stay alive between
epochs. An error of ours travels back as a value: torch would wrap it in a traceback of the worker and change its type.
"""

import os
import re
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from dlth.tickets.errors import DlthError


class WorkerError(DlthError, RuntimeError):
    """A process that reads images died."""

    code = "E_WORKER"


class Failure:
    """An error on its way from a worker."""

    def __init__(self, error: DlthError) -> None:
        self.error = error


class Queue:
    """The requests of the epoch that is running; iterated in the main process."""

    def __init__(self) -> None:
        self.items: Iterable[Any] = ()

    def __iter__(self) -> Iterator[Any]:
        return iter(self.items)


def make_loader(dataset: Dataset[Any], queue: Queue, workers: int) -> DataLoader[Any]:
    """A DataLoader whose every item is `dataset[request]`; torch's global random state is left alone."""
    return DataLoader(
        dataset,
        batch_size=None,
        sampler=queue,
        collate_fn=_as_it_is,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),
        worker_init_fn=_leave_signals_to_the_main_process,
    )


def _leave_signals_to_the_main_process(worker: int) -> None:
    """A scheduler or a terminal signals the whole process group; the main process needs its readers to finish its step.

    A group of its own and not an ignored signal: Python ends its workers by that signal.
    """
    os.setpgid(0, 0)


def results(loader: DataLoader[Any]) -> Iterator[Any]:
    """The loader's results in order. Raises a worker's own DlthError, or WorkerError when one died."""
    try:
        for result in loader:
            if isinstance(result, Failure):
                raise result.error
            yield result
    except RuntimeError as error:
        if not re.search(r"DataLoader worker \(pid", str(error)):
            raise
        raise WorkerError(
            f"a process that reads images died ({str(error).splitlines()[0]}). Usually memory ran out (look for "
            "'killed' in the system's log) or /dev/shm is too small: use fewer --workers or a smaller batch; "
            "--workers 0 reads in the main process and shows more"
        ) from error


def _as_it_is(result: Any) -> Any:
    return result
