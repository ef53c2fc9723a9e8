"""Kill stage 1 at random moments, as often as asked, and finish it: a script, so that real processes die.

    python kill_moments.py SHARDS FOLDER KILLS [SEED]

A forked run gets SIGKILL after a seeded random part of an unbroken run's time; the same file is then run again, and
killed again, until a run ends by itself; then the next file is begun, until KILLS kills have struck. After each kill
nothing may stand under the file's name unless it is whole, and every finished file has the bytes of an unbroken run.
Prints one JSON object: kills, files, and how many kills found the file unfinished.
"""

import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from faults.kill_select import prepared, tree_digest

from dlth.pipeline.selection.stage import SelectPlan, select
from dlth.tickets import TicketStore
from dlth.tickets.errors import IncompleteError, MissingFileError


def start(work: SelectPlan) -> int:
    """Run stage 1 in a forked child; its process id."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            status = 0 if select(work).complete else 3
        finally:
            os._exit(status)
    return child


def main(shards: str, folder: Path, wanted: int, seed: int) -> int:
    """Kill until `wanted` kills have struck."""
    whole = folder / "whole.zarr"
    work = prepared(shards, whole)
    begun = time.perf_counter()
    os.waitpid(start(work), 0)
    duration = time.perf_counter() - begun
    expected = tree_digest(whole)
    moments = random.Random(seed)
    kills = files = unfinished = 0
    while kills < wanted:
        out = folder / f"{files}.zarr"
        work = prepared(shards, out)
        while True:
            child = start(work)
            if kills < wanted:
                time.sleep(moments.uniform(0, duration))  # the moment of the kill, not a wait for anything
                os.kill(child, signal.SIGKILL)
            status = os.waitpid(child, 0)[1]
            if os.WIFSIGNALED(status):
                kills += 1
                if out.exists():
                    assert TicketStore(out).verify() == [], f"kill {kills}: a file stands there that is not whole"
                else:
                    unfinished += 1
                    try:
                        TicketStore(out)
                    except (IncompleteError, MissingFileError):
                        continue
                    raise AssertionError(f"kill {kills}: an unfinished file was opened")
            else:
                assert os.waitstatus_to_exitcode(status) == 0, "a run failed"
                break
        assert tree_digest(out) == expected, f"file {files}: other bytes than an unbroken run's"
        assert not out.with_name(out.name + ".partial").exists(), f"file {files}: leftovers stay"
        shutil.rmtree(out)
        files += 1
    print(json.dumps({"kills": kills, "files": files, "unfinished": unfinished}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]) if len(sys.argv) > 4 else 0))
