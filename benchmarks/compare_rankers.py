"""Rankers side by side: what each finds of the digits' patches, how it agrees with EViT's, and what it costs.

    dlth demo --out demo
    python benchmarks/compare_rankers.py --demo demo --images 1000

The demo's selector (4 blocks, 64 patches, trained on all patches) ranks the validation images with every ranker that
takes it, each at every block; recall is the share of an image's patches that carry the digit among the 16 best. FLOPs
are those of DeiT-S at 224 px, keep 0.7, at each ranker's own block.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from dlth.data.images.decode import decode
from dlth.data.shards.index import open_index
from dlth.pipeline.studies.demo import MODEL
from dlth.tickets.errors import InputError
from dlth.training.models.pixels import Pixels
from dlth.training.models.weights_metadata import WeightsFile
from dlth.training.selectors.patch_ranker import PatchRanker
from dlth.training.selectors.rankers import RANKERS, RankerSpec

KEPT = 16
CPU = torch.device("cpu")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", type=Path, required=True, help="folder of a finished `dlth demo`")
    parser.add_argument("--images", type=int, default=1000)
    options = parser.parse_args()
    shards = options.demo / "shards"
    index = open_index(str(shards / "val-*.tar"))
    numbers = list(range(min(options.images, index.num_samples)))
    images = torch.stack(
        [decode(data, where=str(n)) for n, data in zip(numbers, index.read_many(numbers), strict=True)]
    )
    known = json.loads((shards / "informative.json").read_text())
    wanted = [known[index.key(number)] for number in numbers]
    best = {name: kept(ranker, images) for name, ranker in rankers(WeightsFile.find(str(options.demo / "selector")))}
    print(f"{len(images)} images, {KEPT} of 64 patches\n\n| ranker | recall | in common with evit |\n|---|---|---|")
    for (name, block), patches in best.items():
        recall = np.mean([np.isin(digit, row).mean() for digit, row in zip(wanted, patches, strict=True)])
        common = np.mean([np.isin(row, ours).mean() for row, ours in zip(patches, best["evit", block], strict=True)])
        print(f"| {name}, block {block} | {recall:.3f} | {common:.2f} |")
    print("\n| ranker | GFLOP | of a dense forward |\n|---|---|---|")
    for name in RANKERS:
        if (ranker := deit(name)) is not None:
            print(f"| {name} | {ranker.flops[0] / 1e9:.2f} | {ranker.flops[0] / ranker.flops[1]:.2f} |")


def rankers(weights: WeightsFile) -> Iterator[tuple[tuple[str, int], PatchRanker]]:
    """Every ranker that takes the demo's selector, at every block of it."""
    kwargs = {**MODEL["model_kwargs"], "img_size": MODEL["img_size"]}
    for name, make in RANKERS.items():
        for block in range(MODEL["model_kwargs"]["depth"]):
            spec = RankerSpec(
                MODEL["model"], kwargs, weights, {}, (block,), False, {"tokens": KEPT}, "the demo's model"
            )
            try:
                yield (name, block), make(spec, CPU)
            except InputError:  # it needs another model
                continue


def kept(ranker: PatchRanker, images: torch.Tensor) -> np.ndarray:
    """The best patches int64 [images, KEPT] of uint8 images."""
    pixels = Pixels(ranker.frame.mean, ranker.frame.std)(images)
    return torch.cat([ranker.select(part).patches[:, :KEPT] for part in pixels.split(100)]).numpy()


def deit(name: str) -> PatchRanker | None:
    """A ranker with DeiT-S; None if it does not take that."""
    spec = RankerSpec("deit_small", {}, None, {}, None, False, {"keep": "0.7"}, "deit_small", seed=0)
    try:
        return RANKERS[name](spec, CPU)
    except InputError:
        return None


if __name__ == "__main__":
    main()
