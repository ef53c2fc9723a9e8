"""Makers of small real things: pictures, shards, ticket files, models, servers; and `tampering` with ticket files.

A package on the path of pytest (`pythonpath` in pyproject.toml) and not fixtures or conftest files: scripts that start
processes, and the benchmarks, need the same things, and a test file cannot import its neighbour.
"""

from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
"""The folder of all tests, wherever the one that asks stands."""
ROOT = TESTS.parent
"""The checkout."""
GOLDEN = TESTS / "tickets" / "golden" / "v1_full"
"""A ticket file that was committed once."""
