"""What `--average-views` does to tickets: agreement with the selector's own rankings of crops, and students' accuracy.

    python benchmarks/view_average.py --out averages

On the demo's digits, with two selectors, trained without crops and then with crops of 0.5 to 1 of the area: tickets of
one view, and of means over N crops. Agreement: each of 600 training images in one crop, share in common of the 16 best
of 64 by the ticket moved there and by the selector that sees the crop. Recall: share of the digits' four patches among
the 16 best. Scores: the agreement where other things are averaged over 8 crops than places on a logarithmic scale, the
selection being at one block or in stages. Accuracy: students of projected tickets, trained under crops of 0.5 to 1,
evaluated on one-view tickets of the validation images and on all patches. The tables are in docs/method.md. What is
finished is kept: run it again and it goes on.
"""

import argparse
import itertools
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dlth.data.images.augment import Augmentation, augment
from dlth.data.images.decode import decode
from dlth.data.images.several_views import SeveralViews
from dlth.data.packing.demo_digits import INFORMATIVE, make_digit_shards
from dlth.data.shards.index import open_index
from dlth.pipeline.selection.config import SelectConfig
from dlth.pipeline.selection.stage import SelectPlan, plan, select
from dlth.pipeline.studies.demo import MODEL
from dlth.tickets import TicketStore, View, project
from dlth.tickets.ranking.averaging import mean_over_views
from dlth.tickets.ranking.ranks import num_shared, rank_matrix
from dlth.training.models.class_attention import class_row_only
from dlth.training.models.embedding import embed
from dlth.training.models.pixels import Pixels
from dlth.training.models.weights_metadata import WeightsFile
from dlth.training.runs.loop import train
from dlth.training.runs.result import RESULT, read_result
from dlth.training.selectors.batch_ranker import BatchRanker
from dlth.training.selectors.evit import Selector
from dlth.training.selectors.patch_ranker import PatchRanker
from dlth.training.settings.layering import checked, layered

CROPS = {"scale": (0.5, 1.0), "ratio": (3 / 4, 4 / 3)}
SELECTORS: dict[str, dict[str, Any]] = {
    "no-crops": {"scale": (1.0, 1.0), "ratio": (1.0, 1.0), "epochs": 6},
    "crops": CROPS | {"epochs": 5},
}
"""How each is trained; the second begins with the first's weights: from random ones it got 31 % in twelve epochs."""
AVERAGES = {"one": None, "0": 0, "2": 2, "8": 8}
"""What `--average-views` is, by what tables call it; *one* is one view of an image."""
SIZES = {"img_size": MODEL["img_size"], "num_classes": MODEL["num_classes"], **MODEL["model_kwargs"]}
STUDENTS = ("one", "2", "8")
AREAS = (0.8, 0.5, 0.25, 0.08)
K = 16


def trained(out: Path, **values: Any) -> dict[str, dict[str, Any]]:
    """What a run, made unless it stands there, says of its last evaluation."""
    if not (out / RESULT).exists():
        train(
            layered(MODEL | {"crop_pct": 1.0, "workers": 0, "out": str(out), "resume": "auto"} | values, recipe="smoke")
        )
    result = read_result(out / RESULT)
    assert result is not None, out
    return result.evaluation["model"]


def tickets(out: Path, selector: Path, data: str, **values: Any) -> SelectPlan:
    """The plan of a ticket file of block 0, made unless it stands there."""
    settings = {"checkpoint": str(selector), "keep": str(K / 64), "blocks": (0,), "workers": 0, "crop_pct": 1.0}
    made = plan(checked(SelectConfig, MODEL | settings | {"data": data, "out": str(out)} | values))
    select(made)
    return made


def agreement(made: SelectPlan, images: int) -> Iterator[float]:
    """Mean share of the K best in common, for crops down to each area."""
    rankings = TicketStore(made.config.out).patches(0)[:images].astype(np.int64)
    return agreement_of(rankings, made.ranker, pictures(made.config.data, images))


def recall(made: SelectPlan, informative: dict[str, list[int]]) -> float:
    """Share of the digits' four patches among the K best."""
    store = TicketStore(made.config.out)
    shared = [
        (np.array([informative[key] for key in store.keys(shard)])[:, :, None] == store.patches(shard)[:, None, :K])
        for shard in range(len(store.shards))
    ]
    return float(np.concatenate(shared).any(axis=2).mean())


def pictures(data: str, images: int) -> list[Tensor]:
    """So many of the first shard's images, decoded."""
    index = open_index(data)
    return [decode(index.read(number), where=str(number)) for number in range(images)]


def agreement_of(rankings: np.ndarray, selector: PatchRanker, pictures: list[Tensor]) -> Iterator[float]:
    """Mean share of the K best in common with what the selector says of crops, down to each area."""
    frame, ranker = selector.frame, BatchRanker(selector, batch_size=128)
    for area in AREAS:
        crops = Augmentation(size=frame.size, scale=(area, 1.0), hflip=0.0)
        shown = [augment(image, crops, frame.grid, "agreement", number) for number, image in enumerate(pictures)]
        own, _ = ranker(torch.stack([crop.image for crop in shown]))
        moved = project(rankings, View.whole(frame.grid), View.stack([crop.view for crop in shown]))
        yield float(num_shared(moved[:, :K], own[:, :K], frame.grid.num_patches).mean()) / K


def scores(vit: nn.Module, blocks: tuple[int, ...], pictures: list[Tensor]) -> Iterator[tuple[str, list[float]]]:
    """Agreement by what is averaged over 8 crops, lower being better."""
    selector = Selector(vit, keep=str(K / 64), blocks=blocks)
    frame = selector.frame
    views = SeveralViews(replace(frame.eval_view, kind="whole"), frame.grid, 8, (0.08, 1.0), 0)
    seen = [views.of(image, str(number)) for number, image in enumerate(pictures)]
    maps = np.stack([of_image for _, of_image in seen])
    images = Pixels(frame.mean, frame.std)(torch.cat([pixels for pixels, _ in seen]))
    rankings = torch.cat([selector.select(part).patches for part in images.split(256)]).numpy()
    attention = torch.cat([first_attention(vit, blocks[0], part) for part in images.split(256)])
    ranks = rank_matrix(rankings, frame.grid.num_patches)
    yield "nothing, one view", list(agreement_of(rankings.reshape(*maps.shape[:2], -1)[:, 0], selector, pictures))
    for name, score in {
        "places, logarithmic": np.log2(1.0 + ranks),
        "ranks": ranks.astype(np.float64),
        f"whether among the {K} best": (ranks >= K).astype(np.float64),
        "attention at the first block": -attention.double().numpy(),
    }.items():
        mean = mean_over_views(score.reshape(*maps.shape[:2], -1), maps, frame.grid)
        yield name, list(agreement_of(mean.argsort(axis=1, kind="stable"), selector, pictures))


@torch.inference_mode()
def first_attention(vit: nn.Module, block: int, images: Tensor) -> Tensor:
    """The class token's attention to each patch at a block that all patches reach: float32 [B, P]."""
    tokens, _ = embed(vit, images)
    for earlier in vit.blocks[:block]:
        tokens = earlier(tokens)
    attending = vit.blocks[block]
    return class_row_only(attending.attn, attending.norm1(tokens), None)[:, vit.num_prefix_tokens :]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--images", type=int, default=600, help="of the first shard, for the agreement")
    parser.add_argument("--epochs", type=int, default=8, help="of each student")
    parser.add_argument("--seeds", type=int, default=2)
    arguments = parser.parse_args()
    out: Path = arguments.out
    make_digit_shards(out / "shards", 3600, 1000)
    data, val = (str(out / "shards" / f"{split}-*.tar") for split in ("train", "val"))

    informative = json.loads((out / "shards" / INFORMATIVE).read_text())
    print(
        "| selector | views | recall |", *(f"crops {area}–1 |" for area in AREAS), "\n|" + " --- |" * (3 + len(AREAS))
    )
    for name, changes in SELECTORS.items():
        first = {"init_from": str(out / "no-crops")} if name == "crops" else {}
        trained(out / name, data=data, val=val, arm="dense", seed=100, **changes, **first)
        tickets(out / f"{name}-val.zarr", out / name, val, view="center")
        for views, crops in AVERAGES.items():
            made = tickets(out / f"{name}-{views}.zarr", out / name, data, average_views=crops)
            shares = (f"{share:.3f} |" for share in agreement(made, arguments.images))
            print(f"| {name} | {views} | {recall(made, informative):.4f} |", *shares, flush=True)

    print(
        "\n| selector | blocks | averaged |",
        *(f"crops {area}–1 |" for area in AREAS),
        "\n|" + " --- |" * (3 + len(AREAS)),
    )
    for name, blocks in itertools.product(SELECTORS, ((0,), (0, 1, 2))):
        vit = WeightsFile.find(str(out / name)).build(MODEL["model"], **SIZES)
        for score, shares in scores(vit.eval(), blocks, pictures(data, arguments.images)):
            print(f"| {name} | {blocks} | {score} |", *(f"{share:.3f} |" for share in shares), flush=True)

    print("\n| seed | selector | views | top-1 on tickets | on all patches |\n| --- | --- | --- | --- | --- |")
    for seed, name, views in itertools.product(range(arguments.seeds), SELECTORS, STUDENTS):
        found = trained(
            out / f"student-{name}-{views}-{seed}",
            **CROPS | {"data": data, "val": val, "seed": seed, "epochs": arguments.epochs, "batch_size": 64},
            tickets=str(out / f"{name}-{views}.zarr"),
            val_tickets=str(out / f"{name}-val.zarr"),
            val_interval=arguments.epochs,
        )
        top1 = (f"{found[patches]['top1']:.1f} |" for patches in ("ticket", "dense"))
        print(f"| {seed} | {name} | {views} |", *top1, flush=True)


if __name__ == "__main__":
    main()
