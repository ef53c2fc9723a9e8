"""What the demo's report says beside a study's: where the selector looks, and how selector and tickets were made."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dlth.data.images.decode import decode
from dlth.data.shards.index import ShardIndex
from dlth.pipeline.evidence.validation_images import Known, ValidationImages
from dlth.pipeline.pages import figures
from dlth.pipeline.pages.report import Picture, Section
from dlth.tickets import TicketHeader
from dlth.training import Selector
from dlth.training.models.frame import Frame
from dlth.training.models.pixels import Pixels
from dlth.training.models.registry import build
from dlth.training.models.weights import load_weights

SCORED_IMAGES = 600
"""Validation images on which recall by block is scored, at most."""


def demo_sections(out: Path, weights: Path, model: Mapping[str, Any], commands: Sequence[str]) -> tuple[Section, ...]:
    """Recall by block of the demo's selector, and the demo's commands."""
    images = ValidationImages.open(str(out / "shards" / "val-*.tar"), str(out / "tickets" / "val.zarr"))
    assert images.known is not None
    header = images.store.header
    count = min(SCORED_IMAGES, images.index.num_samples)
    by_block = recall_by_block(images.index, images.known, weights, model, header.keep, count)
    return (_recall_section(by_block, header, count), Section("The demo, step by step", commands=tuple(commands)))


def recall_by_block(
    index: ShardIndex, known: Known, weights: Path, model: Mapping[str, Any], keep: str, count: int
) -> dict[str, float]:
    """Recall of the known patches of the first `count` images when the selector scores at one block, or at three in a
    row.
    """
    vit = build(model["model"], num_classes=model["num_classes"], img_size=model["img_size"], **model["model_kwargs"])
    load_weights(vit, weights)
    keys = [index.key(i) for i in range(count)]
    images = torch.stack(
        [decode(data, where=key) for key, data in zip(keys, index.read_many(list(range(count))), strict=True)]
    )
    frame = Frame.of(vit)
    pixels = Pixels(frame.mean, frame.std)(images)
    depth = model["model_kwargs"]["depth"]
    choices = [(block,) for block in range(depth)] + [tuple(range(depth - 3, depth))]
    recalls = {}
    for blocks in choices:
        selector = Selector(vit, blocks=blocks, keep=keep)
        rankings = selector.rank(pixels).numpy()[:, : selector.budget.k]
        hits = [np.isin(known[key], ranking).mean() for key, ranking in zip(keys, rankings, strict=True)]
        name = f"block {blocks[0]}" if len(blocks) == 1 else "blocks " + ", ".join(map(str, blocks))
        recalls[name] = float(np.mean(hits))
    return recalls


def _recall_section(by_block: Mapping[str, float], header: TicketHeader, count: int) -> Section:
    chance = header.k / header.grid.num_patches
    caption = (
        f"Recall of the known patches by where the selector scores, {count:,} validation images,"
        f" {header.k} patches kept. These tickets were made at block {', '.join(map(str, header.selector.blocks))}."
    )
    told = ", ".join(f"{name} {recall:.2f}" for name, recall in by_block.items())
    figure = figures.recalls(list(by_block), list(by_block.values()), chance)
    return Section(
        "Where the selector looks",
        texts=(
            "After the first block, tokens carry their neighbours' content, and the class token's attention need not"
            " stay where the pixels are. Which blocks select is the user's choice (--blocks), and worth a look.",
        ),
        pictures=(Picture("recall", figure, caption, f"Recall by block: {told}; by chance {chance:.2f}"),),
    )
