"""Headers, tickets of a shard, and whole ticket files, of random but fixed rankings."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dlth.tickets import (
    Budget,
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
from dlth.tickets.format.label_header import AnnotatorInfo, LabelHeader
from dlth.tickets.format.label_rows import ShardLabels
from dlth.tickets.store.label_store import LabelStore
from dlth.tickets.store.label_writer import LabelWriter

if TYPE_CHECKING:
    from dlth.data.shards.index import ShardIndex

ROWS = (3, 5, 2)
WHOLE = ViewSpec("whole", 32, 32)
DEIT = {
    "grid": Grid(14, 14),
    "patch_size": 16,
    "k": 138,
    "keep": "0.7",
    "stage_keep": "0.887905",
    "stage_tokens": (175, 156, 138),
    "view": ViewSpec("whole", 224, 224),
    "selector": SelectorInfo("deit", "", "random", (3, 6, 9)),
}
"""Fields of a header such as stage 1 writes for DeiT-S at 224 px."""


def make_header(**changes: Any) -> TicketHeader:
    """A header on a 4x4 grid with k=6; `changes` replace fields."""
    base = TicketHeader(
        form="full",
        grid=Grid(4, 4),
        patch_size=8,
        k=6,
        keep="0.375",
        stage_keep="0.721125",
        stage_tokens=(12, 9, 6),
        view=WHOLE,
        preprocessing=Preprocessing((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "torchvision"),
        selector=SelectorInfo("vit_tiny", "ab" * 32, "random", (0, 1, 2)),
        dataset=DatasetInfo("toy", "train", sum(ROWS), "cd" * 32),
        versions={"dlth": "0.1.0"},
    )
    return dataclasses.replace(base, **changes)


def make_tickets(
    shard_index: int, rows: int, patches: int = 16, ranked: int = 16, skipped: Sequence[int] = ()
) -> ShardTickets:
    """Tickets of one shard; keys look like ImageNet's."""
    rng = generator("tests/tickets", shard_index)
    order = rng.permuted(np.tile(np.arange(patches), (rows, 1)), axis=1)[:, :ranked]
    bad = np.isin(np.arange(rows), skipped)
    keys = tuple(f"n{shard_index:04d}_{row}" for row in range(rows))
    return ShardTickets(
        keys, rng.integers(0, 256, (rows, 16), dtype=np.uint8), order, rng.random(rows, np.float32), bad
    )


def make_specs(rows: Sequence[int] = ROWS) -> list[ShardSpec]:
    return [ShardSpec(f"toy-{index:06d}.tar", count) for index, count in enumerate(rows)]


def fill(writer: TicketWriter | LabelWriter, rows: Callable[[int], Any]) -> None:
    """Write what is missing of a file and finish it: what `dlth select` does, a second time too."""
    for index in writer.missing():
        with writer.claim(index) as mine:
            assert mine
            writer.write(index, rows(index))
    assert writer.finish()


def make_store(path: Path, rows: Sequence[int] = ROWS, skipped: Sequence[int] = (), **changes: Any) -> Path:
    """A finished ticket file with `rows` per shard, resumed if begun; `skipped` are bad images of shard 1."""
    head = make_header(**changes)

    def tickets(index: int) -> ShardTickets:
        return make_tickets(index, rows[index], head.grid.num_patches, head.ranked, skipped if index == 1 else ())

    fill(TicketWriter(path, head, make_specs(rows), key_width=12), tickets)
    return path


def select_tickets(
    index: ShardIndex,
    path: Path,
    *,
    view: ViewSpec = WHOLE,
    grid: Grid | None = None,
    split: str = "train",
    budget: Budget | None = None,
    shards: Sequence[int] | None = None,
    leave_out: Collection[str] = (),
    bad: Collection[str] = (),
    name: str = "ticket",
    salt: bytes = b"",
    **changes: Any,
) -> TicketStore:
    """A ticket file for indexed shards as stage 1 would write it; each ranking is drawn by `name` and the image's key.

    grid: by default patches of 8 pixels of the view; budget: half of them; shards: all; leave_out: keys without a row;
    bad: keys whose image could not be read; salt: makes other images of the same names; `changes`: header fields
    """
    from dlth.data.shards.identity import content_hash

    grid = grid or Grid(view.height // 8, view.width // 8)
    budget = budget or Budget.from_keep("0.5", grid.num_patches, 1)
    fields = {
        "grid": grid,
        "k": budget.k,
        "keep": budget.keep,
        "stage_keep": budget.stage_keep,
        "stage_tokens": budget.stage_tokens,
        "view": view,
        "preprocessing": Preprocessing((0.5,) * 3, (0.5,) * 3, "torchvision"),
        "selector": SelectorInfo("tiny", "", "random", (0,)),
        "dataset": DatasetInfo("pictures", split, index.num_samples, index.fingerprint),
    }
    head = make_header(**fields | changes)
    chosen = []  # (shard name, ids) of every shard with a row
    for shard in range(len(index.shards)) if shards is None else shards:
        rows = range(int(index.row_start[shard]), int(index.row_start[shard + 1]))
        if ids := [row for row in rows if index.key(row) not in leave_out]:
            chosen.append((index.shards[shard].name, ids))

    def tickets(place: int) -> ShardTickets:
        ids = chosen[place][1]
        keys = tuple(index.key(row) for row in ids)
        patches = np.stack([generator(name, key).permutation(grid.num_patches) for key in keys])[:, : head.ranked]
        hashes = b"".join(content_hash(encoded + salt) for encoded in index.read_many(ids))
        gap, skipped = np.linspace(1, 2, len(keys), dtype=np.float32), np.array([key in bad for key in keys])
        patches[skipped], gap[skipped] = 255, np.nan
        return ShardTickets(keys, np.frombuffer(hashes, np.uint8).reshape(-1, 16), patches, gap, skipped)

    listed = [ShardSpec(shard_name, len(ids)) for shard_name, ids in chosen]
    fill(TicketWriter(path, head, listed, index.key_width), tickets)
    return TicketStore(path)


def read_all(path: Path) -> TicketStore:
    """Open, read every shard, verify; the first finding is raised."""
    store = TicketStore(path)
    for shard in range(len(store.shards)):
        store.read(shard)
    for finding in store.verify():
        raise finding
    return store


def not_in_common(ours: np.ndarray, theirs: np.ndarray, k: int) -> np.ndarray:
    """Share of each image's k kept patches that the other ranking does not keep: float64 [B], of two [B, P]."""
    kept = [np.isin(one[:k], other[:k]).mean() for one, other in zip(ours, theirs, strict=True)]
    return 1 - np.array(kept)


def tree_bytes(path: Path) -> dict[str, bytes]:
    """Relative path -> content of every file below a folder."""
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


def make_label_header(**changes: Any) -> LabelHeader:
    """A header of token labels: three best of ten classes on a 3x4 grid; `changes` replace fields."""
    tickets = make_header()
    base = LabelHeader(
        grid=Grid(3, 4),
        num_best=3,
        num_classes=10,
        view=WHOLE,
        preprocessing=tickets.preprocessing,
        annotator=AnnotatorInfo("resnet10t", "ab" * 32, "random"),
        dataset=tickets.dataset,
        versions={"dlth": "0.1.0"},
    )
    return dataclasses.replace(base, **changes)


def make_labels(
    header: LabelHeader, keys: Sequence[str], images: np.ndarray, skipped: Collection[str] = ()
) -> ShardLabels:
    """Token labels of the images of `keys`, drawn by key; `images` their content hashes."""
    shape = (header.num_best, header.grid.rows, header.grid.cols)
    drawn = [generator("labels", key) for key in keys]
    classes = [rng.permuted(np.indices((header.num_classes, *shape[1:]))[0], axis=0)[: shape[0]] for rng in drawn]
    scores = [-np.sort(-rng.normal(4, 3, shape).astype(np.float16), axis=0) for rng in drawn]
    bad = np.array([key in skipped for key in keys])
    return ShardLabels(tuple(keys), images, np.stack(classes), np.stack(scores), bad)


def make_label_store(path: Path, skipped: Sequence[int] = (), **changes: Any) -> Path:
    """A finished token label file for the rows of `make_store`; `skipped` are bad images of shard 1."""
    head = make_label_header(**changes)

    def labels(index: int) -> ShardLabels:
        tickets = make_tickets(index, ROWS[index])
        bad = [tickets.keys[row] for row in skipped] if index == 1 else []
        return make_labels(head, tickets.keys, tickets.images, bad)

    fill(LabelWriter(path, head, make_specs(), key_width=12), labels)
    return path


def write_labels(data: str, path: Path, leave_out: int = 0, num_classes: int = 4) -> LabelStore:
    """Token labels of the shards in `data`, without its last `leave_out` images."""
    from dlth.data.shards.identity import content_hashes
    from dlth.data.shards.index import open_index

    index = open_index(data)
    header = make_label_header(
        grid=Grid(5, 6),
        num_classes=num_classes,
        dataset=DatasetInfo("pictures", "train", index.num_samples, index.fingerprint),
    )
    last = len(index.shards) - 1
    rows = [shard.rows - (leave_out if at == last else 0) for at, shard in enumerate(index.shards)]

    def labels(shard: int) -> Any:
        ids = np.arange(rows[shard]) + int(index.row_start[shard])
        keys = [index.key(number) for number in ids.tolist()]
        return make_labels(header, keys, content_hashes(index, ids), skipped=keys[:1])

    specs = [ShardSpec(shard.name, count) for shard, count in zip(index.shards, rows, strict=True)]
    fill(LabelWriter(path, header, specs, index.key_width), labels)
    return LabelStore(path)
