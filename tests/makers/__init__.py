"""Makers of small real things: pictures, shards, ticket files, models, servers; and `tampering` with ticket files.

A package on the path of pytest (`pythonpath` in pyproject.toml) and not fixtures or conftest files: scripts that start
processes, and the benchmarks, need the same things, and a test file cannot import its neighbour.
"""

import os
import subprocess
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
"""The folder of all tests, wherever the one that asks stands."""
ROOT = TESTS.parent
"""The checkout."""
GOLDEN = TESTS / "tickets" / "golden" / "v1_full"
"""A ticket file that was committed once."""
_MADE = {"build", "dist", "demo", "__pycache__"}


def checkout_files(*kinds: str) -> list[str]:
    """Names of the checkout's files, as `git ls-files` lists them by its options `kinds`.

    Also where git does not trust the owner of the folder, as in a container; and in an archive of the sources, which is
    no repository, all files but what installing and testing make.
    """
    command = ["git", "-c", "safe.directory=*", "ls-files", "-z", *kinds]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    except (FileNotFoundError, subprocess.CalledProcessError):
        names = []
        for folder, folders, files in os.walk(ROOT):
            folders[:] = [name for name in folders if name not in _MADE and not name.startswith(".")]
            folders[:] = [name for name in folders if not name.endswith(".egg-info")]
            names += [os.path.relpath(os.path.join(folder, name), ROOT) for name in files]
        return names
    return done.stdout.split("\0")[:-1]
