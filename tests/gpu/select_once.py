"""Run stage 1 in a process of its own, which can be killed by itself: a script.

    python select_once.py SETTINGS KILL_AFTER

SETTINGS are arguments of `select_config` as JSON. With KILL_AFTER above 0 the process sends itself SIGKILL once so many
images are ranked. Prints one JSON object: the file's identity, and the shards that were done before.
"""

import json
import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from makers.runs import select_config

from dlth.pipeline.selection.stage import plan, select


def main(settings: str, kill_after: int) -> None:
    """Until the end, or the kill."""
    ranked = 0

    def progress(images: int) -> None:
        nonlocal ranked
        ranked += images
        if 0 < kill_after <= ranked:
            os.kill(os.getpid(), signal.SIGKILL)

    report = select(plan(select_config(**json.loads(settings))), progress)
    print(json.dumps({"identity": report.identity, "before": report.shards_before}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
