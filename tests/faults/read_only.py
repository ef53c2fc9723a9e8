"""Read-only places, for real (root ignores modes, so a read-only bind mount in a mount namespace of our own).

    python read_only.py FOLDER

A sound ticket file on a read-only disk opens, verifies and answers a finished writer; beginning one there, or going on
with one, is refused with an error that names the place, and nothing changes. Prints one JSON object.
"""

import json
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from faults.full_disk import ROWS, own_mounts
from makers.tickets import make_header, make_specs, make_store, make_tickets, tree_bytes

from dlth.tickets import TicketStore, TicketWriter
from dlth.tickets.errors import DlthError


def refused(path: Path) -> str:
    """The message with which writing at `path` is refused."""
    try:
        make_store(path, ROWS)
    except DlthError as error:
        return str(error)
    raise AssertionError(f"{path.name} was written on a read-only disk")


def main(folder: Path) -> int:
    if not own_mounts():
        print(json.dumps({"method": "none: no mount namespace here"}))
        return 0
    disk = folder / "disk"
    disk.mkdir()
    make_store(disk / "whole.zarr", ROWS)
    writer = TicketWriter(disk / "begun.zarr", make_header(), make_specs(ROWS), 12)
    with writer.claim(0):
        writer.write(0, make_tickets(0, ROWS[0]))
    before = tree_bytes(disk)
    subprocess.run(["mount", "--bind", str(disk), str(disk)], check=True)
    subprocess.run(["mount", "-o", "remount,ro,bind", str(disk)], check=True)
    assert TicketStore(disk / "whole.zarr").verify() == []
    make_store(disk / "whole.zarr", ROWS)  # finished: nothing to write
    messages = {name: refused(disk / f"{name}.zarr") for name in ("new", "begun")}
    assert tree_bytes(disk) == before
    print(json.dumps({"method": "read-only bind mount", "messages": messages}))
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
