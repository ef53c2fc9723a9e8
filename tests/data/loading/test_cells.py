"""Token labels on their way through the loader: they lie where the pixels went."""

from pathlib import Path

import numpy as np
import torch
from makers.pictures import make_image, make_tar
from makers.tickets import fill, make_label_header

from dlth.data import Augmentation, Batching, Mixing, TrainLoader, join, open_index
from dlth.data.images.mixing import mix_images
from dlth.data.images.token_labels import token_targets
from dlth.data.shards.identity import content_hashes
from dlth.tickets import Grid, ShardSpec, ViewSpec
from dlth.tickets.format.label_rows import ShardLabels
from dlth.tickets.store.label_store import LabelStore
from dlth.tickets.store.label_writer import LabelWriter

GRID = Grid(4, 4)


def write_gradients(folder: Path) -> LabelStore:
    """Eight images that are dark on the left and bright on the right, with two classes in their cells: left, right."""
    ramp = np.broadcast_to(np.linspace(0, 255, 96)[None, :, None], (72, 96, 3)).astype(np.uint8)
    members = [(f"a_{n}.{kind}", raw) for n in range(8) for kind, raw in (("cls", b"0"), ("jpg", make_image(ramp)))]
    make_tar(folder / "train-000000.tar", members)
    index = open_index(str(folder))
    sides = np.broadcast_to(np.arange(8) >= 4, (8, 1, 6, 8)).astype(np.uint16)
    header = make_label_header(grid=Grid(6, 8), num_best=1, num_classes=2, view=ViewSpec("whole", 64, 64))
    keys, hashes = tuple(index.keys(0)), content_hashes(index, np.arange(8))
    labels = ShardLabels(keys, hashes, sides, np.full(sides.shape, 9, np.float16), np.zeros(8, dtype=bool))
    fill(
        LabelWriter(folder / "l.zarr", header, [ShardSpec("train-000000.tar", 8)], index.key_width),
        lambda shard: labels,
    )
    return LabelStore(folder / "l.zarr")


def test_labels_lie_where_the_pixels_went(tmp_path: Path) -> None:
    """Through crops, mirrors and cutmix, with random patches kept, a bright patch is of the right side's class and a
    dark one of the left's; and so they are read by worker processes.
    """
    store, index = write_gradients(tmp_path), open_index(str(tmp_path))
    half = (0.5, 0.5, 0.5)
    loaders = [
        TrainLoader(
            index,
            grid=GRID,
            batching=Batching(8, 1, 1),
            augmentation=Augmentation(size=(64, 64), scale=(0.3, 1.0), hflip=0.5, mean=half, std=half),
            seed=3,
            arm="random",
            k=9,
            labels=join(index, store),
            mixing=Mixing(cutmix_alpha=1.0, group=2),
            workers=workers,
        )
        for workers in (0, 1)
    ]
    seen = []
    for epoch in range(3):
        batch, again = (next(loader.epoch(epoch)) for loader in loaders)
        assert batch.token_labels is not None
        assert again.token_labels is not None
        assert all(
            torch.equal(one, other) for one, other in zip(batch.token_labels[:3], again.token_labels[:3], strict=True)
        )
        targets = token_targets(batch.token_labels, batch.labels, GRID, 2, 0.0, batch.patches, batch.mix)
        light = mix_images(batch.images.float() / 255, batch.mix).mean(1).unfold(1, 16, 16).unfold(2, 16, 16)
        light = light.mean((3, 4)).flatten(1).gather(1, batch.patches)
        bright = targets.patches[..., 1]
        clear = ((light - 0.5).abs() > 0.2) & ((bright - 0.5).abs() > 0.3)
        assert ((light > 0.5) == (bright > 0.5))[clear].all()
        seen += [clear.float().mean().item(), (light > 0.5)[clear].float().mean().item()]
    assert min(seen[::2]) > 0.3, "enough patches are clear"
    assert 0.1 < np.mean(seen[1::2]) < 0.9, "both sides are seen"
