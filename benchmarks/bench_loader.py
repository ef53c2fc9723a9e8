"""What tickets cost in the loader: with join and projection, without, and a usual webdataset pipeline beside them.

    python benchmarks/bench_loader.py --images 512 --repeats 7 --json loader.json

ImageNet-like JPEGs (500x375, some 90 kB) in tars, one process, one thread, no workers, page cache warm; every pipeline
gives batches of uint8 pixels. Processor time is counted, and the pipelines take turns batch by batch, so that a busy
machine is busy for all; a ratio is taken within one round, and the table shows its median and range. 'crop' is random
resized crop and mirror, 'deit' the paper's recipe (RandAugment, erasing, rankings mixed for mixup and cutmix). The
rival reads the same tars through webdataset and PIL with torchvision ('crop') or timm ('deit') transforms.
"""

import argparse
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import torch
import webdataset
from jpegs import write_shards
from makers.tickets import DEIT, select_tickets
from timm.data import create_transform
from torchvision.transforms import v2

from dlth.data.images.augment import Augmentation, augment
from dlth.data.images.decode import decode
from dlth.data.images.mixing import Mixing, mix_plan
from dlth.data.joining.join import Join, join
from dlth.data.loading.loader import TrainLoader
from dlth.data.loading.order import Batching
from dlth.data.loading.patches import PatchChoice, Showing, hidden_patches
from dlth.data.shards.identity import content_hash
from dlth.data.shards.index import ShardIndex, open_index

GRID, K = DEIT["grid"], DEIT["k"]
RECIPES = {
    "crop": (Augmentation(), Mixing()),
    "deit": (Augmentation(rand_augment="rand-m9-mstd0.5-inc1", reprob=0.25), Mixing(mixup_alpha=0.8, cutmix_alpha=1.0)),
}


def ours(index: ShardIndex, found: Join | None, recipe: str, batch: int) -> Callable[[int], Iterator[torch.Tensor]]:
    """dlth's loader: with tickets, or, without a join, all patches."""
    augmentation, mixing = RECIPES[recipe]
    loader = TrainLoader(
        index,
        grid=GRID,
        batching=Batching(batch),
        augmentation=augmentation,
        seed=0,
        arm="dense" if found is None else "ticket",
        k=None if found is None else K,
        join=found,
        mixing=mixing,
    )
    return lambda epoch: (one.images for one in loader.epoch(epoch))


def rival(folder: Path, recipe: str, batch: int) -> Callable[[int], Iterator[torch.Tensor]]:
    """webdataset, PIL and the usual transforms."""
    if recipe == "crop":
        crop = v2.RandomResizedCrop(224, interpolation=v2.InterpolationMode.BICUBIC)
        transform: Any = v2.Compose([crop, v2.RandomHorizontalFlip(), v2.PILToTensor()])
    else:
        transform = create_transform(
            224,
            is_training=True,
            auto_augment="rand-m9-inc1",  # with mstd, timm's posterize fails in Pillow at 0 bits
            interpolation="bicubic",
            re_prob=0.25,
            re_mode="pixel",
        )
    shards = sorted(str(path) for path in folder.glob("*.tar"))

    def batches(epoch: int) -> Iterator[torch.Tensor]:
        dataset = webdataset.WebDataset(shards, shardshuffle=len(shards), seed=epoch).shuffle(1000)
        pairs = dataset.decode("pilrgb").to_tuple("jpg", "cls").map_tuple(transform, int).batched(batch)
        return (images for images, _ in pairs)

    return batches


def round_of(pipelines: dict[str, Iterator[torch.Tensor]]) -> dict[str, float]:
    """Processor seconds per image of each pipeline over one pass, their batches taken in turn."""
    spent, images = dict.fromkeys(pipelines, 0.0), dict.fromkeys(pipelines, 0)
    running = dict(pipelines)
    while running:
        for name, batches in list(running.items()):
            start = time.process_time()
            batch = next(batches, None)
            spent[name] += time.process_time() - start
            if batch is None:
                del running[name]
            else:
                images[name] += len(batch)
    return {name: spent[name] / images[name] for name in pipelines}


def added_by_tickets(index: ShardIndex, found: Join, recipe: str, batch: int) -> list[float]:
    """Processor seconds per image of what tickets add: rows looked up, projected, mixed, demoted; bytes compared."""
    augmentation, mixing = RECIPES[recipe]
    choice, showings = PatchChoice("ticket", GRID, 0, found), []
    encoded = index.read_many(range(batch))
    for number, data in enumerate(encoded):
        image = decode(data, where="bench")
        shown = augment(image, augmentation, GRID, 0, 0, index.key(number))
        showings.append(Showing(number, index.key(number), (image.shape[1], image.shape[2]), shown.view, shown.hidden))
    plans = [mix_plan(mixing, augmentation.size, 0, 0, step) for step in range(20)]
    times = []
    for plan in plans:
        start = time.process_time()
        choice.kept(showings, 0, K, plan, hidden_patches(showings, GRID, plan))
        for data in encoded:
            content_hash(data)
        times.append((time.process_time() - start) / batch)
    return times


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def measure(folder: Path, index: ShardIndex, found: Join, recipe: str, batch: int, repeats: int) -> dict[str, Any]:
    """Rounds of all pipelines in turn; ratios within a round."""
    pipelines = {
        "tickets": ours(index, found, recipe, batch),
        "without": ours(index, None, recipe, batch),
        "rival": rival(folder, recipe, batch),
    }
    times: dict[str, list[float]] = {name: [] for name in pipelines}
    for epoch in range(-1, repeats):
        spent = round_of({name: batches(max(epoch, 0)) for name, batches in pipelines.items()})
        if epoch >= 0:  # the first round warms up
            for name, value in spent.items():
                times[name].append(value)
    added = added_by_tickets(index, found, recipe, batch)
    return {
        "added_us": spread([1e6 * value for value in added]),
        "added/without": spread([value / statistics.median(times["without"]) for value in added]),
        "us_per_image": {name: spread([1e6 * value for value in values]) for name, values in times.items()},
        "tickets/without": spread([a / b for a, b in zip(times["tickets"], times["without"], strict=True)]),
        "tickets/rival": spread([a / b for a, b in zip(times["tickets"], times["rival"], strict=True)]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "bench"
        write_shards(folder, options.images)
        index = open_index(str(folder))
        store = select_tickets(index, Path(scratch) / "tickets.zarr", **DEIT)
        start = time.perf_counter()
        found = join(index, store)
        results: dict[str, Any] = {"join_s": time.perf_counter() - start, "images": options.images}
        for recipe in RECIPES:
            results[recipe] = measure(folder, index, found, recipe, options.batch, options.repeats)
    results["machine"] = {"cpu": platform.processor() or platform.machine(), "torch": torch.__version__}
    print("recipe  tickets µs/image  without  rival    tickets/without      tickets/rival        added by tickets")
    for recipe in RECIPES:
        figures, micro = results[recipe], results[recipe]["us_per_image"]
        ratios = [
            "{median:.3f} ({low:.3f}-{high:.3f})".format(**figures[f"tickets/{other}"])
            for other in ("without", "rival")
        ]
        medians = [f"{micro[name]['median']:.0f}" for name in ("tickets", "without", "rival")]
        share = f"{figures['added_us']['median']:.0f} µs ({figures['added/without']['median']:.1%})"
        print(f"{recipe:7} {medians[0]:>16} {medians[1]:>8} {medians[2]:>6}    {ratios[0]}  {ratios[1]}  {share}")
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
