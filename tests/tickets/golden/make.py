"""Make the golden ticket files beside this script: `python make.py` (needs dlth installed).

Files once committed are never made again: later versions must read what this version wrote. A new format version gets
new names here. `full` is the default form on a small grid; `top` is the short form on a grid that needs two bytes an
index; `mask` has a grid that leaves bits over.
"""

from pathlib import Path

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
    TicketWriter,
    ViewSpec,
)

HERE = Path(__file__).parent
SHARDS = [ShardSpec("golden-000000.tar", 2), ShardSpec("golden-000001.tar", 3)]
KEYS = (("n01440764_10026", "n01440764_Größe"), ("a/b.c", "000123", "東"))


def header(form: str, grid: Grid, k: int) -> TicketHeader:
    budget = Budget.from_tokens(k, grid.num_patches, 3)
    return TicketHeader(
        form=form,
        grid=grid,
        patch_size=16,
        k=k,
        keep=budget.keep,
        stage_keep=budget.stage_keep,
        stage_tokens=budget.stage_tokens,
        view=ViewSpec("center", 16 * grid.rows, 16 * grid.cols, crop_pct="0.875"),
        preprocessing=Preprocessing((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "torchvision"),
        selector=SelectorInfo("deit_small_patch16_224.fb_in1k", "0" * 64, "timm", (3, 6, 9)),
        dataset=DatasetInfo("golden", "val", 5, "f" * 64),
        versions={"dlth": "0.1.0"},
        creator="dlth's tests",
        license="CC0-1.0",
        extensions={"note": ["ignored by readers", 1]},
    )


def rows(shard_index: int, grid: Grid, ranked: int) -> ShardTickets:
    """Rankings by a formula, so that the test can compute them again: patch (a·i + b) mod P with a prime to P."""
    count, patches = SHARDS[shard_index].rows, grid.num_patches
    shifts = np.arange(count)[:, None] + 10 * shard_index
    order = (7 * np.arange(patches)[None, :] + shifts) % patches
    images = (np.arange(16)[None, :] + 16 * shifts).astype(np.uint8)
    gap = np.array([0.25, np.inf, 0.0][:count], dtype=np.float32)
    skipped = np.arange(count) == 2
    return ShardTickets(KEYS[shard_index], images, order[:, :ranked], gap, skipped)


CASES = {"v1_full": ("full", Grid(4, 5), 6), "v1_top": ("top", Grid(17, 16), 9), "v1_mask": ("mask", Grid(5, 5), 7)}


def main() -> None:
    for name, (form, grid, k) in CASES.items():
        path = HERE / name
        if path.exists():  # never made again
            continue
        writer = TicketWriter(path, header(form, grid, k), SHARDS, key_width=20)
        for index in range(len(SHARDS)):
            with writer.claim(index):
                writer.write(index, rows(index, grid, writer.layout.ranked))
        writer.finish()


if __name__ == "__main__":
    main()
