"""Read-only places, for real (root ignores modes, so a read-only bind mount in a mount namespace of our own).

    python read_only.py FOLDER

A sound ticket file on a read-only disk opens, verifies and answers a finished writer; beginning one there, or going on
with one, is refused with an error that names the place, and nothing changes. Prints one JSON object.
"""

import json
import runpy
import subprocess
import sys
from pathlib import Path

from dlth.tickets import TicketStore
from dlth.tickets.errors import DlthError

HERE = Path(__file__).parent
DISK = runpy.run_path(str(HERE / "full_disk.py"))
TOOLS = DISK["TOOLS"]


def refused(path: Path) -> str:
    """The message with which writing at `path` is refused."""
    try:
        DISK["write"](path)
    except DlthError as error:
        return str(error)
    raise AssertionError(f"{path.name} was written on a read-only disk")


def main(folder: Path) -> int:
    if not DISK["own_mounts"]():
        print(json.dumps({"method": "none: no mount namespace here"}))
        return 0
    disk = folder / "disk"
    disk.mkdir()
    DISK["write"](disk / "whole.zarr")
    writer = TOOLS["TicketWriter"](disk / "begun.zarr", TOOLS["header"](), TOOLS["shard_specs"](DISK["ROWS"]), 12)
    with writer.claim(0):
        writer.write(0, TOOLS["tickets"](0, DISK["ROWS"][0]))
    before = TOOLS["tree_bytes"](disk)
    subprocess.run(["mount", "--bind", str(disk), str(disk)], check=True)
    subprocess.run(["mount", "-o", "remount,ro,bind", str(disk)], check=True)
    assert TicketStore(disk / "whole.zarr").verify() == []
    DISK["write"](disk / "whole.zarr")  # finished: nothing to write
    messages = {name: refused(disk / f"{name}.zarr") for name in ("new", "begun")}
    assert TOOLS["tree_bytes"](disk) == before
    print(json.dumps({"method": "read-only bind mount", "messages": messages}))
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
