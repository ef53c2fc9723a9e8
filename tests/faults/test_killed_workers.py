"""A process that reads images dies at any moment: one clear error, never a traceback, a hang or an orphan."""

import gc
import multiprocessing
import os
import random
import resource
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from dlth.data.images.augment import Augmentation
from dlth.data.loading.evaluation import EvalLoader
from dlth.data.loading.loader import TrainLoader
from dlth.data.loading.order import Batching
from dlth.data.loading.workers import Pool, WorkerError
from dlth.data.shards.index import ShardIndex, open_index
from dlth.tickets import Grid, ViewSpec
from dlth.tickets.errors import InputError, MissingFileError, SpaceError, TransferError
from dlth.training.device.feed import one_ahead

FORK = multiprocessing.get_context("fork")  # a fresh interpreter would take seconds for its imports
VIEW = ViewSpec("center", 32, 32, "0.9")
DIED = r"a process that reads images died \(DataLoader worker \(pid \d+\), killed by signal: Killed\), and none of"


@pytest.fixture
def index(make_shards: Callable[..., Any]) -> ShardIndex:
    return open_index(make_shards(2, 8).spec)


def train_loader(index: ShardIndex, workers: int = 2) -> TrainLoader:
    augmentation = Augmentation(size=(32, 32))
    batching = Batching(2)
    return TrainLoader(
        index, grid=Grid(4, 4), batching=batching, augmentation=augmentation, seed=0, arm="dense", workers=workers
    )


def eval_loader(index: ShardIndex) -> EvalLoader:
    return EvalLoader(index, view=VIEW, grid=Grid(4, 4), seed=0, batch_size=2, arms=("dense",), workers=2)


def workers() -> list[int]:
    return sorted(process.pid or 0 for process in multiprocessing.active_children())


def kill(pids: list[int]) -> None:
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("batches_before", [0, 1, 4, 6])
@pytest.mark.parametrize("make", [train_loader, eval_loader])
def test_workers_killed_in_an_epoch(make: Callable[..., Any], batches_before: int, index: ShardIndex) -> None:
    """Whatever they were doing, and whether batches of theirs wait to be read: a WorkerError that names the signal."""
    loader = make(index)
    batches: Iterator[Any] = iter(loader.epoch(0) if isinstance(loader, TrainLoader) else loader)
    for _ in range(batches_before + 1):
        next(batches)
    kill(workers())
    with pytest.raises(WorkerError, match=DIED):
        list(batches)
    assert workers() == []


def test_workers_killed_between_epochs(index: ShardIndex) -> None:
    """Workers that died while nothing was asked of them are noticed at the next request."""
    loader = train_loader(index)
    list(loader.epoch(0))
    kill(workers())
    with pytest.raises(WorkerError, match=DIED):
        list(loader.epoch(1))


def test_a_left_epoch_leaves_no_answer_behind(index: ShardIndex) -> None:
    """Batches of an epoch that was given up in its middle never turn up in the next one."""
    loader = train_loader(index)
    whole = [batch.ids.tolist() for batch in loader.epoch(1)]
    batches = loader.epoch(0)
    next(batches)
    del batches
    assert [batch.ids.tolist() for batch in loader.epoch(1)] == whole


class Job:
    """Gives back what it is asked for, after a while; some requests are errors."""

    def __init__(self, error: Any = None) -> None:
        self.index = self.error = error

    def images(self, request: Any) -> list[int]:
        return []

    def __call__(self, request: Any, crashed: Any) -> Any:
        if isinstance(request, Exception):
            raise request
        if request == "raise":
            raise self.error
        if isinstance(request, int):
            time.sleep(random.Random(request).random() / 100)
            return torch.full((1000,), request), "x" * 300_000
        if request == "collect":
            gc.collect()
            return Garbage.ended_in
        return time.sleep(600) if request == "sleep" else [torch.zeros(10) for _ in range(20)]


def test_results_keep_the_order_of_the_requests() -> None:
    """However long each takes and however large it is; requests are taken a few ahead, and no more."""
    taken = []

    def requests() -> Iterator[int]:
        for number in range(20):
            taken.append(number)
            yield number

    for number, (tensor, _) in enumerate(one_ahead(Pool(Job(), 3).results(requests()))):
        assert tensor.tolist() == [number] * 1000
        assert len(taken) <= number + 10
    assert len(taken) == 20


class Garbage:
    """Only the collector of cycles ends it; says in which process it did."""

    ended_in: ClassVar[list[int]] = []

    def __init__(self) -> None:
        self.itself = self

    def __del__(self) -> None:
        self.ended_in.append(os.getpid())


def test_a_worker_does_not_collect_the_main_processs_garbage() -> None:
    """Among it may be tensors of a GPU, which cannot be freed in a forked process."""
    gc.disable()
    try:
        Garbage()
        assert list(Pool(Job(), 1).results(["collect"])) == [[]]
        gc.collect()
        assert Garbage.ended_in == [os.getpid()]
    finally:
        gc.enable()


def test_an_unforeseen_error_arrives_as_itself() -> None:
    """A bug in a worker is told with the place in the worker where it arose, and does not look like a death."""
    with pytest.raises(ZeroDivisionError) as caught:
        list(Pool(Job(), 1).results([1, ZeroDivisionError("here")]))
    assert "in __call__" in caught.value.__notes__[0]


@pytest.mark.parametrize("kind", [MissingFileError, SpaceError, TransferError])
def test_an_error_of_the_system_in_a_worker_is_no_death(kind: type[Exception]) -> None:
    """A shard that vanished, a full disk and a server that fails are OSErrors as well; each arrives as it is."""
    pool = Pool(Job(kind("gone")), 1)
    with pytest.raises(kind, match=r"^gone$"):
        list(pool.results([1, "raise"]))


class TwoPartsError(Exception):
    """As many libraries' errors: pickle calls it with its text alone, which fails in the process that receives it."""

    def __init__(self, what: str, why: str) -> None:
        super().__init__(f"{what}, {why}")


@pytest.mark.parametrize("error", [TwoPartsError("broken", "by itself"), ValueError("broken, by itself", lambda: None)])
def test_an_error_that_cannot_travel_keeps_its_words(error: Exception) -> None:
    """It is no death and no lack of memory: its kind, its words and its place arrive."""
    with pytest.raises(RuntimeError, match=rf"{type(error).__name__}: .*broken, by itself") as caught:
        list(Pool(Job(error), 1).results([1, "raise"]))
    assert "in __call__" in caught.value.__notes__[0]


def limited(limits: list[int], told: Any) -> None:
    """Run a pool under each limit on open files, and tell how it went."""
    for limit in limits:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
        try:
            kept = list(Pool(Job(), 2).results(["tensors"] * 4))
            told.send(len(kept))
        except (InputError, WorkerError) as error:  # before the first is started, or when one cannot be
            told.send("ulimit -n" in str(error))


def test_too_few_open_files() -> None:
    """Under any limit on open files a run is done or says which limit to raise."""
    in_use = len(os.listdir("/proc/self/fd"))
    limits = [in_use + more for more in (600, 90, 60, 40, 24, 16, 8, 4, 1)]
    told = in_a_process(limited, limits)
    assert told[0] == 4
    assert set(told[1:]) <= {4, True}
    assert told[-1] is True


def with_two_pools(told: Any) -> None:
    """Have idle workers, busy ones and ones that wait to hand over a batch; tell their ids; wait to be killed."""
    pools = [Pool(Job(), 2), Pool(Job(), 2)]
    streams = [pool.results([1, 2, 3, 4, "sleep", 6, 7]) for pool in pools]
    for stream in streams:
        next(stream), next(stream)
    told.send(workers())
    time.sleep(600)


def test_workers_end_with_the_main_process() -> None:
    """kill -9 of the main process ends its workers, whatever they do."""
    here, there = FORK.Pipe(duplex=False)
    main = FORK.Process(target=with_two_pools, args=(there,))
    main.start()
    pids = here.recv()
    assert len(pids) == 4
    main.kill()
    main.join()
    for _ in range(1000):
        if not any(alive(pid) for pid in pids):
            break
        time.sleep(0.02)
    assert [pid for pid in pids if alive(pid)] == []


def in_a_process(function: Callable[..., None], *arguments: Any) -> list[Any]:
    """What a function tells through the connection that it is given, in a process of its own."""
    here, there = FORK.Pipe(duplex=False)
    process = FORK.Process(target=function, args=(*arguments, there))
    process.start()
    there.close()
    told = []
    with suppress(EOFError):
        while True:
            told.append(here.recv())
    process.join()
    assert process.exitcode == 0
    return told


def alive(pid: int) -> bool:
    """Whether a process exists and is not merely waiting to be reaped."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
