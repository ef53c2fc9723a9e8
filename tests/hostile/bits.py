"""Flip every bit of every file of a small ticket file, metadata included: each flip must be refused.

    python bits.py [--stride 1] [--form full]

Prints one JSON object with the number of flips; exit code 1 if one was not refused.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from makers.tickets import make_store, read_all

from dlth.tickets.errors import DlthError


def refused(path: Path) -> bool:
    """Whether opening, reading all and verifying ends in an error of dlth's family."""
    try:
        read_all(path)
    except DlthError:
        return True
    return False


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stride", type=int, default=1, help="flip every n-th bit only")
    parser.add_argument("--form", choices=("full", "top", "mask"), default="full")
    arguments = parser.parse_args()
    begun, flips, passed = time.perf_counter(), 0, []
    with tempfile.TemporaryDirectory() as folder:
        path = make_store(Path(folder) / "t.zarr", rows=(2, 1), form=arguments.form)
        assert not refused(path)
        files = sorted(file for file in path.rglob("*") if file.is_file())
        place = 0
        for file in files:
            sound = file.read_bytes()
            with open(file, "r+b", buffering=0) as handle:
                for bit in range(-place % arguments.stride, 8 * len(sound), arguments.stride):
                    handle.seek(bit // 8)
                    handle.write(bytes([sound[bit // 8] ^ 1 << bit % 8]))
                    if not refused(path):
                        passed.append(f"{file.relative_to(path)} bit {bit}")
                    handle.seek(bit // 8)
                    handle.write(sound[bit // 8 : bit // 8 + 1])
                    flips += 1
            place += 8 * len(sound)
        assert not refused(path)
    seconds = round(time.perf_counter() - begun, 1)
    print(json.dumps({"bits": place, "flips": flips, "files": len(files), "findings": passed, "seconds": seconds}))
    return 1 if passed else 0


if __name__ == "__main__":
    sys.exit(main())
