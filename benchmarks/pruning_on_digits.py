"""LT against RR by remaining weights, for a small CNN and a small ViT: `dlth prune` on the demo's digits, on a CPU.

    python benchmarks/pruning_on_digits.py --out pruning & python benchmarks/pruning_on_digits.py --out pruning; wait

Both processes work on the same two studies, `pruning/cnn` and `pruning/vit`; each `dlth prune` of its own would do the
same, and is printed. What is finished is kept: run it again and it goes on. The table is in docs/pruning.md.

Images: each digit of the demo, cut out of its canvas: 16 x 16 pixels, with the clutter behind it. Rate and recipes were
chosen before any level was trained, by what the unpruned models reach: five rounds of a half end at 3 % of the weights,
where it can matter which ones are left; five of the papers' fifth would end at a third.
"""

import argparse
import shlex
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from PIL import Image

from dlth.data.packing.demo_digits import DIGIT, GRID, PATCH, draw_digits
from dlth.data.packing.pack import pack
from dlth.pipeline.evidence.arm_key import PRUNED
from dlth.pipeline.evidence.gather import gather
from dlth.pipeline.pruning.prune import found_prune
from dlth.pipeline.pruning.prune_config import PruneConfig
from dlth.pipeline.studies.compare import conclude
from dlth.pipeline.studies.founding import owned_in_time
from dlth.pipeline.studies.worker import run_study
from dlth.training.settings.layering import checked

IMAGES = {"train": 4000, "val": 1000}
PRUNE: dict[str, Any] = {
    "rounds": 5,
    "rate": "0.5",
    "rewind": "0",
    "arm": ("lt", "rr", "dense"),
    "seeds": (0, 1, 2),
    "measure": 0.0,
}
PLAIN = {"img_size": DIGIT, "scale": (1.0, 1.0), "ratio": (1.0, 1.0), "hflip": 0.0, "crop_pct": 1.0}
SHARED: dict[str, Any] = {**PLAIN, "workers": 0, "val_interval": 99, "device": "cpu"}
VIT = {"patch_size": 4, "embed_dim": 64, "depth": 2, "num_heads": 4, "class_token": False, "global_pool": "avg"}
MODELS: dict[str, dict[str, Any]] = {
    "cnn": {
        **{"recipe": "resnet20", "model": "resnet20", "model_kwargs": {"depth": 8, "width": 8}},
        **{"epochs": 2, "batch_size": 32, "opt": "sgd"},  # Nesterov's, where the recipe has plain momentum
    },
    "vit": {
        **{"recipe": "smoke", "model": "vit_tiny_patch16_224", "model_kwargs": VIT},
        **{"epochs": 4, "batch_size": 16, "lr": 3e-3},
    },
}


def main() -> None:
    """Make the images, have both studies done, and print their tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("pruning"), help="folder of images and studies")
    out = parser.parse_args().out
    with owned_in_time(out / "digits", print):
        shards = {split: make_shards(out / "digits", split, count) for split, count in IMAGES.items()}
    for name, model in MODELS.items():
        study, train = out / name, {"data": shards["train"], "val": shards["val"], **model, **SHARED}
        print("\ndlth prune", *flags({"out": str(study), **PRUNE, **train}), flush=True)
        config = checked(PruneConfig, {"out": str(study), **PRUNE})
        state = run_study(study, found_prune(config, train, note=print))
        if state.failed or state.stopped:
            raise SystemExit(
                f"{name}: stopped, or runs failed: {[f'{run.name}: {run.problem}' for run in state.failed]}"
            )
        conclude(study, print, title=f"Lottery tickets among weights: {name}")
        print(*table(study), sep="\n", flush=True)


def make_shards(home: Path, split: str, count: int) -> str:
    """Shards of a split's digits, each cut out of the demo's canvas; what is there already is left."""
    folder, digits = home / split, draw_digits(split, count)
    for number, (image, label, patches) in enumerate(zip(digits.images, digits.labels, digits.patches, strict=True)):
        row, col = (PATCH * int(place) for place in divmod(int(patches[0]), GRID))
        file = folder / str(label) / f"{split}_{number:06d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        if not file.exists():
            Image.fromarray(image[row : row + DIGIT, col : col + DIGIT]).save(file)
    pack(folder, home / "shards", split=split)
    return str(home / "shards" / f"{split}-*.tar")


def flags(values: dict[str, Any]) -> Iterator[str]:
    """Settings as a user would type them."""
    for name, value in values.items():
        if isinstance(value, dict):
            value = ",".join(f"{key}={str(each).lower()}" for key, each in value.items())
        text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
        yield f"--{name.replace('_', '-')} {shlex.quote(text)}"


def table(study: Path) -> Iterator[str]:
    """A line for each share of the weights: mean and standard deviation over seeds of each arm's top-1, in percent."""
    runs = gather([study]).runs
    found = {(key.pruned, key.weights): [run.top1("dense") for run in of.values()] for key, of in runs.items()}
    arms = [arm for arm in ("", *PRUNED) if any(pruned == arm for pruned, _ in found)]
    yield f"| weights left | {' | '.join(arm or 'unpruned' for arm in arms)} |\n|{'---|' * (len(arms) + 1)}"
    for share in sorted({share for _, share in found}, key=lambda share: -float(share or 1)):
        cells = [found.get((arm, share)) for arm in arms]
        told = [f"{fmean(each):.1f} ± {stdev(each):.1f}" if each else "" for each in cells]
        yield f"| {share or '1'} | {' | '.join(told)} |"


if __name__ == "__main__":
    main()
