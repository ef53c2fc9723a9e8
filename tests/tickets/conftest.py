"""A small ticket file that the tests of this folder share."""

import shutil
from pathlib import Path

import pytest
from makers.tickets import make_store


@pytest.fixture(scope="session")
def _master(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("master") / "toy.zarr", skipped=[4])


@pytest.fixture
def store_path(tmp_path: Path, _master: Path) -> Path:
    """A fresh copy of a small ticket file: shards of 3, 5 and 2 rows, row 4 of shard 1 skipped."""
    return Path(shutil.copytree(_master, tmp_path / "toy.zarr"))
