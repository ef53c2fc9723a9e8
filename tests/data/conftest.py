"""A factory of ticket files for indexed shards, as stage 1 would write them."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from dlth.data.identity import content_hashes
from dlth.data.index import open_index
from dlth.tickets import (
    DatasetInfo,
    Grid,
    Preprocessing,
    SelectorInfo,
    ShardSpec,
    ShardTickets,
    TicketHeader,
    TicketStore,
    TicketWriter,
    ViewSpec,
    generator,
)

if TYPE_CHECKING:
    from dlth.data.index import ShardIndex

WHOLE = ViewSpec("whole", 32, 32)


@pytest.fixture
def make_tickets(tmp_path: Path) -> Callable[..., TicketStore]:
    """``make_tickets(index, ...)`` -> an open store whose rankings are random, named by each image's key.

    `leave_out`: keys without a row; `bad`: keys whose image could not be read; the rest stands in the header.
    """

    def make(
        index: ShardIndex,
        *,
        grid: Grid = Grid(4, 4),
        view: ViewSpec = WHOLE,
        form: str = "full",
        split: str = "train",
        leave_out: Collection[str] = (),
        bad: Collection[str] = (),
        name: str = "tickets.zarr",
    ) -> TicketStore:
        k = grid.num_patches // 2
        header = TicketHeader(
            form=form,
            grid=grid,
            patch_size=8,
            k=k,
            keep="0.5",
            stage_keep="0.5",
            stage_tokens=(k,),
            view=view,
            preprocessing=Preprocessing((0.5,) * 3, (0.5,) * 3, "torchvision"),
            selector=SelectorInfo("tiny", "", "random", (0,)),
            dataset=DatasetInfo("digits", split, index.num_samples, index.fingerprint),
        )
        kept = [
            [i for i in range(index.row_start[s], index.row_start[s + 1]) if index.key(i) not in leave_out]
            for s in range(len(index.shards))
        ]
        filled = [(shard.name, rows) for shard, rows in zip(index.shards, kept, strict=True) if rows]
        shards = [ShardSpec(shard_name, len(rows)) for shard_name, rows in filled]
        writer = TicketWriter(tmp_path / name, header, shards, 40)
        for place, (_, rows) in enumerate(filled):
            keys = tuple(index.key(i) for i in rows)
            patches = np.stack([generator("ticket", key).permutation(grid.num_patches) for key in keys])
            patches, gap = patches[:, : header.ranked].astype(np.uint8), np.zeros(len(keys), np.float32)
            skipped = np.array([key in bad for key in keys])
            patches[skipped], gap[skipped] = 255, np.nan
            images = content_hashes(index, np.array(rows))
            with writer.claim(place) as mine:
                assert mine
                writer.write(place, ShardTickets(keys, images, patches, gap, skipped))
        assert writer.finish()
        return TicketStore(tmp_path / name)

    return make


@pytest.fixture
def make_index(tmp_path: Path, make_tar: Callable[..., Path]) -> Callable[..., ShardIndex]:
    """``make_index(folder, shards)`` -> the index of tars with these (key, encoded image) pairs."""

    def make(folder: str, shards: list[list[tuple[str, bytes]]]) -> ShardIndex:
        (tmp_path / folder).mkdir()
        for number, samples in enumerate(shards):
            make_tar(tmp_path / folder / f"data-{number:03d}.tar", [(f"{key}.jpg", image) for key, image in samples])
        return open_index(str(tmp_path / folder))

    return make
