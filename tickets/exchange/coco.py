"""Kept patches as COCO annotations: one run-length mask an image, at the pixels of the tickets' view.

COCO's compressed run lengths are small enough to write here (thirty lines of numpy over many images, against a
compiled library that goes image by image); the tests decode them with pycocotools. Masks are column-major, the first
run is background, and run i > 2 is stored as its difference from run i - 2, in groups of five bits from character 48.
"""

import json
import os
from collections.abc import Iterator
from typing import IO

import numpy as np
from numpy.typing import NDArray

from dlth.tickets.callbacks import Progress
from dlth.tickets.errors import InputError, shown
from dlth.tickets.ranking.grid import Grid
from dlth.tickets.ranking.ranks import kept_sets
from dlth.tickets.store.disk import new_file
from dlth.tickets.store.ticket_store import TicketStore, open_store

_AT_ONCE = 64
"""Masks encoded together: a mask's runs take 50 kB on the way."""


def export_coco(store: TicketStore, path: str | os.PathLike[str], progress: Progress | None = None) -> None:
    """Write a COCO file: `images` (id from 1, file_name the key) and one annotation for each that has a ticket.

    Raises InputError when `path` exists or the view is not as large as its patches.
    """
    header = open_store(store).header
    size = [header.grid.rows * header.patch_size, header.grid.cols * header.patch_size]
    if size != [header.view.height, header.view.width]:
        raise InputError(
            f"{shown(store.path.name)}: {header.grid} patches of {header.patch_size} px are {size[0]}x{size[1]} px, "
            f"the view is {header.view.height}x{header.view.width}: its masks cannot be drawn"
        )
    info = {"description": "dlth tickets", "version": header.version, "identity": store.identity, "k": header.k}
    shards = range(len(store.shards))
    with new_file(path) as file:
        file.write(b'{"info":' + _text(info) + b',"categories":[{"id":1,"name":"ticket"}],"images":[')
        _write_items(file, (_images(store, index, size) for index in shards), progress, 0, 2 * len(shards))
        file.write(b'],"annotations":[')
        parts = (_annotations(store, index, size) for index in shards)
        _write_items(file, parts, progress, len(shards), 2 * len(shards))
        file.write(b"]}\n")


def encode_masks(kept_NP: NDArray[np.bool_], grid: Grid, patch_size: int) -> list[str]:
    """COCO's compressed counts of each row's mask, patches drawn as squares of `patch_size` pixels."""
    rows = len(kept_NP)
    columns = kept_NP.reshape(rows, grid.rows, grid.cols).transpose(0, 2, 1)
    cells = np.repeat(columns, patch_size, axis=1).reshape(rows, -1)  # one cell is patch_size pixels of one column
    length = cells.shape[1]
    ends = np.ones((rows, length + 1), dtype=bool)
    ends[:, 0] = cells[:, 0]
    ends[:, 1:length] = cells[:, 1:] != cells[:, :-1]
    row, place = np.nonzero(ends)
    counts = np.diff(place, prepend=0)
    first = np.flatnonzero(np.diff(row, prepend=-1))  # each row has at least the run that ends with the mask
    counts[first] = place[first]
    counts *= patch_size
    position = np.arange(len(row)) - np.repeat(first, np.diff(np.append(first, len(row))))
    stored = counts.copy()
    later = np.flatnonzero(position > 2)
    stored[later] -= counts[later - 2]
    text, lengths = _five_bits(stored)
    stops = np.cumsum(np.add.reduceat(lengths, first)) if rows else np.zeros(0, dtype=np.int64)
    return [text[start:stop] for start, stop in zip([0, *stops.tolist()], stops.tolist(), strict=False)]


def _five_bits(values: NDArray[np.int64]) -> tuple[str, NDArray[np.int64]]:
    """Signed values as groups of five bits, the lowest first, and the number of characters of each."""
    lengths = np.ones(len(values), dtype=np.int64)
    while (longer := ~_fits(values, lengths)).any():
        lengths[longer] += 1
    starts = np.cumsum(lengths) - lengths
    codes = np.zeros(int(lengths.sum()), dtype=np.uint8)
    for group in range(int(lengths.max(initial=0))):
        has = lengths > group
        more = np.where(lengths[has] > group + 1, 32, 0)
        codes[starts[has] + group] = ((values[has] >> (5 * group)) & 31) + more + 48
    return codes.tobytes().decode("ascii"), lengths


def _fits(values: NDArray[np.int64], groups: NDArray[np.int64]) -> NDArray[np.bool_]:
    bound = np.left_shift(np.int64(1), 5 * groups - 1)
    fits: NDArray[np.bool_] = (values >= -bound) & (values < bound)
    return fits


def _images(store: TicketStore, shard_index: int, size: list[int]) -> Iterator[bytes]:
    first = sum(shard.rows for shard in store.shards[:shard_index]) + 1
    for number, key in enumerate(store.keys(shard_index), first):
        yield _text({"id": number, "file_name": key, "height": size[0], "width": size[1]})


def _annotations(store: TicketStore, shard_index: int, size: list[int]) -> Iterator[bytes]:
    header, grid, side = store.header, store.header.grid, store.header.patch_size
    first = sum(shard.rows for shard in store.shards[:shard_index]) + 1
    with_ticket = np.flatnonzero(~store.skipped(shard_index))
    for start in range(0, len(with_ticket), _AT_ONCE):
        rows = with_ticket[start : start + _AT_ONCE]
        kept = kept_sets(store.patches(shard_index)[rows, : header.k], grid.num_patches)
        boxes = _boxes(kept.reshape(-1, grid.rows, grid.cols)) * side
        for row, counts, box in zip(rows, encode_masks(kept, grid, side), boxes, strict=True):
            yield _text(
                {
                    "id": first + int(row),
                    "image_id": first + int(row),
                    "category_id": 1,
                    "iscrowd": 1,
                    "area": header.k * side * side,
                    "bbox": box.tolist(),
                    "segmentation": {"size": size, "counts": counts},
                }
            )


def _boxes(kept: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Int64 [rows, 4]: left, top, width, height of masks [rows, grid rows, grid columns], in patches."""
    across: NDArray[np.bool_] = np.any(kept, axis=1)
    down: NDArray[np.bool_] = np.any(kept, axis=2)
    left, top = across.argmax(axis=1), down.argmax(axis=1)
    right = across.shape[1] - across[:, ::-1].argmax(axis=1)
    bottom = down.shape[1] - down[:, ::-1].argmax(axis=1)
    return np.stack([left, top, right - left, bottom - top], axis=1)


def _write_items(
    file: IO[bytes], parts: Iterator[Iterator[bytes]], progress: Progress | None, done: int, total: int
) -> None:
    comma = b""
    for count, part in enumerate(parts, done + 1):
        block = b",".join(part)
        if block:
            file.write(comma + block)
            comma = b","
        if progress is not None:
            progress(count, total)


def _text(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
