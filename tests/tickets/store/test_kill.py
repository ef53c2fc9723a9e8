"""kill -9 at any moment, and many writers at once: the same bytes at the end, nothing unfinished under the final
name.

Real processes and real signals. The step-by-step form counts every file-system step that Python takes (its audit
events for open, rename, mkdir, remove …) and kills a forked writer before the n-th, for every n.
"""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from makers import TESTS
from makers.tickets import make_store, tree_bytes

from dlth.tickets import TicketStore
from dlth.tickets.errors import IncompleteError, MissingFileError

STEPS = (
    "open",
    "os.rename",
    "os.mkdir",
    "os.remove",
    "os.rmdir",
    "os.listdir",
    "os.scandir",
    "shutil.rmtree",
    "fcntl.flock",
)

STEP_KILL = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from makers.tickets import make_store
folder, steps = Path(sys.argv[2]), set(sys.argv[3].split(","))
make_store(folder / "warm.zarr")  # imports and caches are loaded before steps are counted

def killed_at(limit: int) -> int:
    '''Fork a writer that is killed before its step `limit`; its exit status.'''
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1]
    count = 0
    def step(event, args):
        nonlocal count
        if event in steps and not (event == "open" and isinstance(args[0], int)):
            count += 1
            if count == limit:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(step)
    make_store(folder / f"{limit}.zarr", (2, 1))
    os._exit(0)

limit = 0
while True:
    limit += 1
    status = killed_at(limit)
    if status == 0:
        break
    assert os.WTERMSIG(status) == signal.SIGKILL, status
print(limit - 1)
"""


def test_killed_before_every_step(tmp_path: Path) -> None:
    """One kill for every file-system step of a small run: open as finished only if whole, resumed to the same bytes."""
    done = subprocess.run(
        [sys.executable, "-c", STEP_KILL, str(TESTS), str(tmp_path), ",".join(STEPS)],
        capture_output=True,
        text=True,
        check=True,
    )
    num_steps = int(done.stdout)
    assert num_steps > 100
    expected = tree_bytes(make_store(tmp_path / "straight.zarr", (2, 1)))
    finished = 0
    for limit in range(1, num_steps + 1):
        path = tmp_path / f"{limit}.zarr"
        if path.exists():
            assert TicketStore(path).verify() == []
            finished += 1
        else:
            with pytest.raises((IncompleteError, MissingFileError)):
                TicketStore(path)
        make_store(path, (2, 1))
        assert tree_bytes(path) == expected, limit
        assert not path.with_name(f"{limit}.zarr.partial").exists(), limit
    assert 0 < finished < num_steps


WORKER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from makers.tickets import make_header, make_specs, make_tickets
from dlth.tickets import TicketWriter
path, shards = Path(sys.argv[2]), int(sys.argv[3])
rows = [2 + index % 3 for index in range(shards)]
print("ready", flush=True)
sys.stdin.readline()
writer = TicketWriter(path, make_header(), make_specs(rows), 12)
written = 0
for index in writer.missing():
    with writer.claim(index) as mine:
        if mine:
            writer.write(index, make_tickets(index, rows[index]))
            written += 1
writer.finish()
print(written, flush=True)
"""


class Workers:
    """Writer processes that have imported everything and start on command."""

    def __init__(self, path: Path, shards: int, count: int) -> None:
        command = [sys.executable, "-c", WORKER, str(TESTS), str(path), str(shards)]
        self.processes = [
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(count)
        ]
        for process in self.processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"

    def start(self) -> None:
        for process in self.processes:
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()

    def results(self) -> list[tuple[int, str]]:
        return [(process.wait(), process.communicate()[0].strip()) for process in self.processes]


@pytest.mark.parametrize("count", [2, 4, 8])
def test_several_writers_lose_no_row(tmp_path: Path, count: int) -> None:
    """Started together on one name, they share the shards out: none twice, none lost, bytes as from one."""
    shards = 24
    single = Workers(tmp_path / "single.zarr", shards, 1)
    single.start()
    workers = Workers(tmp_path / "many.zarr", shards, count)
    workers.start()
    results = workers.results()
    assert [status for status, _ in results] == [0] * count
    assert sum(int(text) for _, text in results) == shards
    assert single.results() == [(0, str(shards))]
    assert TicketStore(tmp_path / "many.zarr").verify() == []
    assert tree_bytes(tmp_path / "many.zarr") == tree_bytes(tmp_path / "single.zarr")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["many.zarr", "single.zarr"]


def test_killed_at_random_moments(tmp_path: Path) -> None:
    """Two writers, both killed -9 after a random part of a run, again and again: the same bytes at the end."""
    shards = 24
    single = Workers(tmp_path / "single.zarr", shards, 1)
    begun = time.perf_counter()
    single.start()
    single.results()
    whole_run = time.perf_counter() - begun
    moments = random.Random(20_221_101)
    path = tmp_path / "killed.zarr"
    kills = 0
    while kills < 8 and not path.exists():
        workers = Workers(path, shards, 2)
        workers.start()
        time.sleep(moments.uniform(0.02, 0.4) * whole_run)  # the moment of the kill, not a wait for anything
        for process in workers.processes:
            process.send_signal(signal.SIGKILL)
        workers.results()
        kills += 1
        if path.exists():
            assert TicketStore(path).verify() == []
        else:
            with pytest.raises((IncompleteError, MissingFileError)):
                TicketStore(path)
    last = Workers(path, shards, 1)
    last.start()
    assert last.results()[0][0] == 0
    assert tree_bytes(path) == tree_bytes(tmp_path / "single.zarr")
    assert os.listdir(tmp_path).count("killed.zarr.partial") == 0
