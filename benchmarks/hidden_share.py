"""How much fill and noise the kept patches show, by arm, k and `--hidden`: the table in docs/method.md.

    python benchmarks/hidden_share.py --draws 1500

Random rankings through the augmentation of recipe deit at 224 px, 68, 101 or 138 of 196 patches kept: moved from the
whole image, as tickets without content and the random arm's are, or drawn in the view itself, as in the authors' code.
What is hidden does not depend on the image, so noise serves. The last rows are the same with erasing alone, a box in
every image: what of it a student still meets.
"""

import argparse
from collections.abc import Iterator

import numpy as np
import torch

from dlth.data.images.augment import Augmentation, augment
from dlth.data.images.mixing import Mixing, MixPlan, mix_plan
from dlth.data.images.visibility import hidden_share
from dlth.data.loading.patches import DrawnIn, PatchChoice, Showing, hidden_patches
from dlth.tickets import Grid

GRID = Grid(14, 14)
KEPT = (68, 101, 138)
DEIT = Augmentation(rand_augment="rand-m9-mstd0.5-inc1", reprob=0.25)
ERASED = Augmentation(reprob=1.0)
BATCH = 50


def drawn(augmentation: Augmentation, draws: int) -> list[Showing]:
    """What each of so many augmented pictures shows."""
    noise = np.random.default_rng(0).integers(0, 256, (3, 300, 400), dtype=np.uint8)
    image = torch.from_numpy(noise)
    showings = []
    for number in range(draws):
        shown = augment(image, augmentation, GRID, 0, 0, str(number))
        showings.append(Showing(number, str(number), (300, 400), shown.view, shown.hidden))
    return showings


def batches(showings: list[Showing], mixing: Mixing) -> Iterator[tuple[list[Showing], MixPlan]]:
    """The showings in groups, each with its plan."""
    for step, start in enumerate(range(0, len(showings), BATCH)):
        yield showings[start : start + BATCH], mix_plan(mixing, DEIT.size, 0, 0, step)


def shares(showings: list[Showing], mixing: Mixing, drawn_in: DrawnIn, setting: str) -> list[float]:
    """Hidden share of the kept patches for each k, in percent; the last is that of all patches."""
    choice, found = PatchChoice("random", GRID, 0, drawn_in=drawn_in), []
    for group, plan in batches(showings, mixing):
        hidden = hidden_patches(group, GRID, plan)
        if hidden is None:
            found.append(torch.zeros(len(group), len(KEPT) + 1))
            continue
        rankings = choice.kept(group, 0, None, plan, hidden if setting == "demote" else None)
        columns = [hidden_share(hidden, rankings[:, :k]) for k in KEPT] + [hidden_share(hidden, None)]
        found.append(torch.stack(columns, dim=1))
    return [100 * float(value) for value in torch.cat(found).mean(dim=0)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, default=1500)
    draws = parser.parse_args().draws
    print("hidden share of the kept patches' area, %")
    print(f"{'augmentation':<12} {'mixed':<6} {'rankings':<10} {'--hidden':<8}", *(f"k={k:<4}" for k in (*KEPT, 196)))
    for name, augmentation in (("deit", DEIT), ("erased", ERASED)):
        showings = drawn(augmentation, draws)
        for mixed, mixing in (("no", Mixing()), ("yes", Mixing(mixup_alpha=0.8, cutmix_alpha=1.0))):
            for way, drawn_in in (("moved", "image"), ("in view", "view")):
                for setting in ("demote", "keep"):
                    row = shares(showings, mixing, drawn_in, setting)
                    print(f"{name:<12} {mixed:<6} {way:<10} {setting:<8}", *(f"{value:<6.2f}" for value in row))


if __name__ == "__main__":
    main()
