"""Factories of indexed shards and of their ticket files."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from makers.pictures import make_tar
from makers.tickets import select_tickets

from dlth.data.shards.index import ShardIndex, open_index
from dlth.tickets import TicketStore


@pytest.fixture
def make_tickets(tmp_path: Path) -> Callable[..., TicketStore]:
    """``make_tickets(index, file="tickets.zarr", ...)`` -> an open store below `tmp_path`: see `select_tickets`."""

    def make(index: ShardIndex, file: str = "tickets.zarr", **options: Any) -> TicketStore:
        return select_tickets(index, tmp_path / file, **options)

    return make


@pytest.fixture
def make_index(tmp_path: Path) -> Callable[..., ShardIndex]:
    """``make_index(folder, shards)`` -> the index of tars with these (key, encoded image) pairs."""

    def make(folder: str, shards: list[list[tuple[str, bytes]]]) -> ShardIndex:
        (tmp_path / folder).mkdir()
        for number, samples in enumerate(shards):
            make_tar(tmp_path / folder / f"data-{number:03d}.tar", [(f"{key}.jpg", image) for key, image in samples])
        return open_index(str(tmp_path / folder))

    return make
