"""Kill stage 1 at its file-system steps and finish it afterwards: a script, so that real processes die.

    python kill_select.py SHARDS FOLDER STRIDE

The run is forked from a process that has imported everything, with an audit hook that counts each call that changes
the file system (open for writing, mkdir, rename, remove) and sends SIGKILL at step k. After every kill, nothing may
stand under the ticket file's name unless it is whole; a second run must then give the bytes of an unbroken one. Prints
one JSON object: steps, kills, resumed.
"""

import hashlib
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from makers.runs import select_config

from dlth.pipeline.selection.stage import SelectPlan, plan, select
from dlth.tickets import TicketStore

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def changes_files(event: str, args: tuple[object, ...]) -> bool:
    """Whether an audit event changes the file system."""
    if event == "open":
        return isinstance(args[2], int) and bool(args[2] & WRITING) and not str(args[0]).startswith("/dev")
    return event in {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.truncate"}


def in_child(work: Callable[[], None], kill_at: int | None) -> int:
    """Run `work` in a forked child, killed just before file-system step `kill_at`; gives its steps, -1 if killed."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        steps = 0

        def hook(event: str, args: tuple[object, ...]) -> None:
            nonlocal steps
            if changes_files(event, args):
                steps += 1
                if steps == kill_at:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
        status = 1
        try:
            work()
            os.write(write_end, str(steps).encode())
            status = 0
        finally:
            os._exit(status)
    os.close(write_end)
    _, status = os.waitpid(child, 0)
    told = os.read(read_end, 64)
    os.close(read_end)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return -1
    assert os.waitstatus_to_exitcode(status) == 0, "the child failed"
    return int(told)


def tree_digest(root: Path) -> str:
    """One digest of every file's name and bytes below a folder."""
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*")):
        if path.is_file():
            digest.update(f"{path.relative_to(root)}\0{path.stat().st_size}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def prepared(shards: str, out: Path) -> SelectPlan:
    """A plan for a tiny selector; made before the fork, so that the child's time is the stage's own."""
    return plan(select_config(shards, out))


def main(shards: str, folder: Path, stride: int) -> None:
    """Kill at every `stride`-th step."""

    def run(out: Path) -> Callable[[], None]:
        work = prepared(shards, out)
        return lambda: None if select(work).complete else sys.exit(3)

    whole = folder / "whole.zarr"
    steps = in_child(run(whole), None)
    expected = tree_digest(whole)
    kills = 0
    for kill_at in range(1, steps + 1, stride):
        out = folder / f"killed-{kill_at}.zarr"
        work = run(out)
        assert in_child(work, kill_at) == -1, f"step {kill_at} was never reached"
        kills += 1
        if out.exists():
            assert not TicketStore(out).verify(), f"killed at step {kill_at}: a file stands there that is not whole"
        assert in_child(work, None) >= 0
        assert tree_digest(out) == expected, f"killed at step {kill_at}: other bytes after the second run"
        assert not out.with_name(out.name + ".partial").exists(), f"killed at step {kill_at}: leftovers stay"
    print(json.dumps({"steps": steps, "kills": kills}))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
