"""Small headers, tickets and ticket files that the tests of this folder share."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dlth.tickets import (
    DatasetInfo,
    Grid,
    Preprocessing,
    SelectorInfo,
    ShardSpec,
    ShardTickets,
    TicketHeader,
    TicketWriter,
    ViewSpec,
    generator,
)

ROWS = (3, 5, 2)


def header(**changes: Any) -> TicketHeader:
    """A header on a 4x4 grid with k=6; `changes` replace fields."""
    base = TicketHeader(
        form="full",
        grid=Grid(4, 4),
        patch_size=8,
        k=6,
        keep="0.375",
        stage_keep="0.721125",
        stage_tokens=(12, 9, 6),
        view=ViewSpec("whole", 32, 32),
        preprocessing=Preprocessing((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "torchvision"),
        selector=SelectorInfo("vit_tiny", "ab" * 32, "random", (0, 1, 2)),
        dataset=DatasetInfo("toy", "train", sum(ROWS), "cd" * 32),
        versions={"dlth": "0.1.0"},
    )
    return dataclasses.replace(base, **changes)


def tickets(
    shard_index: int, rows: int, patches: int = 16, ranked: int = 16, skipped: Sequence[int] = ()
) -> ShardTickets:
    """Random but fixed tickets of one shard; keys look like ImageNet's."""
    rng = generator("tests/tickets", shard_index)
    order = rng.permuted(np.tile(np.arange(patches), (rows, 1)), axis=1)[:, :ranked]
    bad = np.isin(np.arange(rows), skipped)
    keys = tuple(f"n{shard_index:04d}_{row}" for row in range(rows))
    return ShardTickets(
        keys, rng.integers(0, 256, (rows, 16), dtype=np.uint8), order, rng.random(rows, np.float32), bad
    )


def shard_specs(rows: Sequence[int] = ROWS) -> list[ShardSpec]:
    return [ShardSpec(f"toy-{index:06d}.tar", count) for index, count in enumerate(rows)]


def write_store(path: Path, rows: Sequence[int] = ROWS, skipped: Sequence[int] = (), **changes: Any) -> Path:
    """A finished ticket file with `rows` per shard; row numbers in `skipped` are bad images of shard 1."""
    head = header(**changes)
    writer = TicketWriter(path, head, shard_specs(rows), key_width=12)
    for index, count in enumerate(rows):
        with writer.claim(index) as mine:
            assert mine
            bad = skipped if index == 1 else ()
            writer.write(index, tickets(index, count, head.grid.num_patches, head.ranked, bad))
    assert writer.finish()
    return path


def resume_store(path: Path, rows: Sequence[int] = ROWS) -> None:
    """Write what `write_store(path, rows)` left undone and finish: what a second `dlth select` does."""
    writer = TicketWriter(path, header(), shard_specs(rows), key_width=12)
    for index in writer.missing():
        with writer.claim(index) as mine:
            assert mine
            writer.write(index, tickets(index, rows[index]))
    assert writer.finish()


def resign_store(path: Path, **fields: Any) -> None:
    """What an attacker does after changing files: list and digest everything anew; `fields` replace manifest fields."""
    manifest_file = path / "manifest/c.0"
    manifest = json.loads(manifest_file.read_bytes())
    for name in manifest["files"]:
        if (path / name).is_file() and not (path / name).is_symlink():
            raw = (path / name).read_bytes()
            manifest["files"][name] = [len(raw), hashlib.sha256(raw).hexdigest()]
    manifest.update(fields)
    publish_manifest(path, json.dumps(manifest, sort_keys=True, separators=(",", ":")).encode())


def publish_manifest(path: Path, text: bytes) -> None:
    """Put another manifest in place, with the zarr.json that belongs to it."""
    (path / "manifest/c.0").write_bytes(text)
    meta = json.loads((path / "manifest/zarr.json").read_bytes())
    meta["shape"] = meta["chunk_grid"]["configuration"]["chunk_shape"] = [len(text)]
    meta["attributes"] = {"identity": hashlib.sha256(text).hexdigest()}
    (path / "manifest/zarr.json").write_text(json.dumps(meta, sort_keys=True, separators=(",", ":")))


def tree_bytes(path: Path) -> dict[str, bytes]:
    """Relative path -> content of every file below a folder."""
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


@pytest.fixture(scope="session")
def make_header() -> Callable[..., TicketHeader]:
    return header


@pytest.fixture(scope="session")
def make_tickets() -> Callable[..., ShardTickets]:
    return tickets


@pytest.fixture(scope="session")
def make_specs() -> Callable[..., list[ShardSpec]]:
    return shard_specs


@pytest.fixture(scope="session")
def make_store() -> Callable[..., Path]:
    return write_store


@pytest.fixture(scope="session")
def resume() -> Callable[[Path], None]:
    return resume_store


@pytest.fixture(scope="session")
def resign() -> Callable[..., None]:
    return resign_store


@pytest.fixture(scope="session")
def set_manifest() -> Callable[[Path, bytes], None]:
    return publish_manifest


@pytest.fixture(scope="session")
def tree() -> Callable[[Path], dict[str, bytes]]:
    return tree_bytes


@pytest.fixture(scope="session")
def _master(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_store(tmp_path_factory.mktemp("master") / "toy.zarr", skipped=[4])


@pytest.fixture
def store_path(tmp_path: Path, _master: Path) -> Path:
    """A fresh copy of a small ticket file: shards of 3, 5 and 2 rows, row 4 of shard 1 skipped."""
    return Path(shutil.copytree(_master, tmp_path / "toy.zarr"))
