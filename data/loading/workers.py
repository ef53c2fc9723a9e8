"""Worker processes: requests dealt out in turn, results in their order, and one clear error when a worker dies.

The plan lives in the main process and workers stay alive between epochs. Each has a connection of its own, so that its
death cannot spoil the others' and is seen at once, wherever it strikes. Then the images that it had in hand are tried
apart (`crashes.py`): those that end a decoder are bad images like any other, the worker is replaced, and its requests
are sent again. If no image is the cause, it is a WorkerError. Nothing of this is known to other ranks: none waits.

Rejected: torch's DataLoader. Its workers share a queue, which one that is killed while it writes leaves unreadable, and
it tells a death by an exception from a signal handler, which strikes wherever the main process happens to be.
"""

import errno
import itertools
import os
import queue
import threading
import traceback
import weakref
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from typing import Any, Protocol

import torch.multiprocessing  # noqa: F401  (teaches pickle to hand tensors over in shared memory)

from dlth.data.cores import check_workers
from dlth.data.loading.crashes import NONE, PROCESSES, STARTING, Crashed, alone, crashing, how_it_ended
from dlth.data.shards.shard_index import ShardIndex
from dlth.tickets.errors import DlthError

_AHEAD = 2
"""Requests that a worker has in hand: one that it works on, one so that it need not wait."""
_LAST_BREATH = 30.0
"""Seconds in which a process whose connection broke must have ended; writing a core file may take some."""
_ENDS: "weakref.WeakSet[Connection]" = weakref.WeakSet()
"""The main process's ends of all connections: a worker closes its copies, or it would keep others' connections open."""


class WorkerError(DlthError, RuntimeError):
    """A process that reads images died."""

    code = "E_WORKER"


class Job(Protocol):
    """What workers do with a request. The same request gives the same result in whichever process."""

    @property
    def index(self) -> ShardIndex:
        """Where the images are."""

    def images(self, request: Any, /) -> Iterable[int]:
        """Ids of the images that a request decodes."""

    def __call__(self, request: Any, crashed: Crashed, /) -> Any:
        """The result; images in `crashed` are bad ones and are not decoded. Raises DlthError."""


class Pool:
    """`workers` processes that do a job; with 0 it is done in this one, where a decoder's crash ends all.

    They start with the first request and end when the pool is forgotten or this process ends, however it does. Raises
    InputError for more than the machine can bear.
    """

    def __init__(self, job: Job, workers: int) -> None:
        check_workers(workers)
        self._job, self._num_workers = job, workers
        self._workers: list[_Worker] = []
        self._crashed: Crashed = {}

    def results(self, requests: Iterable[Any]) -> Iterator[Any]:
        """Results in the order of the requests, which are taken a few ahead; one call at a time.

        Raises WorkerError, and what the job raises.
        """
        if self._num_workers == 0:
            return (self._job(request, NONE) for request in requests)
        return self._from_workers(requests)

    def _from_workers(self, requests: Iterable[Any]) -> Iterator[Any]:
        requests = iter(requests)
        if not self._workers:
            self._workers = [_Worker(self._job) for _ in range(self._num_workers)]
        turns = itertools.cycle(range(self._num_workers))
        asked: deque[int] = deque()
        try:
            for request in itertools.islice(requests, _AHEAD * self._num_workers):
                asked.append(self._ask(next(turns), request))
            while asked:
                result = self._answer(asked.popleft())
                for request in itertools.islice(requests, 1):
                    asked.append(self._ask(next(turns), request))
                yield result
        finally:
            if any(worker.asked for worker in self._workers):  # nobody wants the answers that are still to come
                for worker in self._workers:
                    worker.kill()
                self._workers = []

    def _ask(self, place: int, request: Any) -> int:
        self._workers[place].ask(request, self._crashed)
        return place

    def _answer(self, place: int) -> Any:
        while True:
            worker = self._workers[place]
            try:
                result = worker.answer()
            except (EOFError, OSError) as error:
                self._replace(place, worker.death(error))
                continue
            if isinstance(result, _Failure):  # raised out here: many errors of the family are OSErrors, and no death
                raise result.error
            return result

    def _replace(self, place: int, death: str) -> None:
        """A new worker that is asked again what the dead one was asked. Raises WorkerError if no image killed it."""
        asked = self._workers[place].asked
        ids = {number for request, told in asked for number in self._job.images(request) if number not in told}
        try:
            crashed = crashing(self._job.index, sorted(ids))
        except OSError as error:
            raise WorkerError(
                f"a process that reads images died ({death}), and none could be started to try the images that it had "
                f"in hand ({error.strerror}): use fewer --workers, or raise the limits (ulimit -u, ulimit -n)"
            ) from error
        if not crashed:
            raise WorkerError(
                f"a process that reads images died ({death}), and none of the images that it had in hand is the cause."
                " Usually memory ran out (look for 'killed' in the system's log) or /dev/shm is too small: use fewer "
                "--workers or a smaller batch; --workers 0 reads in the main process and shows more"
            )
        self._crashed = {**self._crashed, **crashed}  # anew, as workers remember what they were told
        self._workers[place] = _Worker(self._job)
        for request, _ in asked:
            self._ask(place, request)


class _Worker:
    """A process and the requests it has not answered, oldest first, each with the crashes that it was told of."""

    def __init__(self, job: Job) -> None:
        self.asked: deque[tuple[Any, Crashed]] = deque()
        try:
            with STARTING:
                self.connection, there = PROCESSES.Pipe()
                _ENDS.add(self.connection)
                self.process = PROCESSES.Process(target=_work, args=(job, there), daemon=True)
                self.process.start()
                there.close()
        except OSError as error:
            raise WorkerError(
                f"a process that reads images could not be started ({error.strerror}): use fewer --workers, "
                "or raise the limits on processes and open files (ulimit -u, ulimit -n)"
            ) from error

    def ask(self, request: Any, crashed: Crashed) -> None:
        self.asked.append((request, crashed))
        with suppress(BrokenPipeError, ConnectionResetError):  # a death shows when the answer is asked for
            self.connection.send(self.asked[-1])

    def answer(self) -> Any:
        """What the oldest request gave, a `_Failure` if an error. Raises EOFError or OSError if the worker is dead."""
        try:
            result = self.connection.recv()
        except RuntimeError as error:  # "received 0 items of ancdata": no number was left for a tensor's handle
            raise self._not_taken_over(error) from error
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                raise self._not_taken_over(error) from error
            raise
        self.asked.popleft()
        return result

    def death(self, error: Exception) -> str:
        """How the process ended, when reading from it failed with `error`. Raises WorkerError if it did not."""
        self.process.join(timeout=_LAST_BREATH)
        if self.process.exitcode is None:
            raise self._not_taken_over(error) from error
        return f"DataLoader worker (pid {self.process.pid}), {how_it_ended(self.process)}"

    def _not_taken_over(self, error: Exception) -> WorkerError:
        return WorkerError(
            f"a batch could not be taken over from a process that reads images ({error}): "
            "raise the limit on open files (ulimit -n), or use fewer --workers"
        )

    def kill(self) -> None:
        self.process.kill()
        self.process.join()
        self.connection.close()


class _Failure:
    """An error on its way from a worker."""

    def __init__(self, error: Exception) -> None:
        self.error = error


def _work(job: Job, connection: Connection) -> None:
    """A worker's life: one request after the other until the main process is gone."""
    alone()
    for end in list(_ENDS):
        end.close()
    requests: queue.SimpleQueue[tuple[Any, Crashed]] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(connection, requests), daemon=True).start()
    with suppress(BrokenPipeError, ConnectionResetError):  # the main process is gone
        while True:
            connection.send_bytes(_packed(_outcome(job, *requests.get())))


def _listen(connection: Connection, requests: "queue.SimpleQueue[tuple[Any, Crashed]]") -> None:
    """Take requests as they come, so that neither side ever waits for the other to read; end with the main process."""
    try:
        while True:
            requests.put(connection.recv())
    except (EOFError, OSError):
        os._exit(0)


def _outcome(job: Job, request: Any, crashed: Crashed) -> Any:
    try:
        return job(request, crashed)
    except Exception as error:  # whatever it is, it goes on in the main process
        if isinstance(error, DlthError):
            return _Failure(error)
        unforeseen = error if _travels(error) else RuntimeError(f"{type(error).__name__}: {error}")
        unforeseen.add_note(f"in a process that reads images:\n{traceback.format_exc()}")
        return _Failure(unforeseen)


def _travels(error: Exception) -> bool:
    """Whether an error is the same on the other side; many libraries' are not, as pickle makes them by their text."""
    try:
        return type(ForkingPickler.loads(ForkingPickler.dumps(error))) is type(error)
    except Exception:  # of whatever its parts raise
        return False


def _packed(result: Any) -> memoryview:
    """The result as bytes, its tensors as handles of shared memory."""
    try:
        return ForkingPickler.dumps(result)
    except (OSError, RuntimeError) as error:
        advice = (
            "set TMPDIR to a shorter path"
            if "path too long" in str(error)
            else "/dev/shm is full or too many files are open: use fewer --workers or a smaller batch, or raise the "
            "limit (ulimit -n)"
        )
        failure = WorkerError(
            f"a process that reads images could not hand over a batch ({str(error).splitlines()[0]}): {advice}"
        )
        return ForkingPickler.dumps(_Failure(failure))
