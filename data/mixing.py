"""Mixup and cutmix of a batch: one plan per global step, followed alike by pixels, labels, rankings and hidden area.

Sample i mixes with its neighbour i^1 (0 with 1, 2 with 3, …). timm mixes a batch with its own mirror image, so what
meets depends on how large the local batch is; neighbours meet under any number of ranks and micro-batches, because
`order` never cuts a pair. The order is random, so pairs are random too. An odd last sample mixes with itself, that is,
not at all. Plans follow timm's `Mixup` (per batch, corrected weight), drawn from (seed, epoch, step) and not from
global state.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from dlth.data.visibility import hidden_by_box
from dlth.tickets.errors import InputError
from dlth.tickets.grid import Grid
from dlth.tickets.project import blend, paste
from dlth.tickets.seeding import generator

Ranking = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Mixing:
    """How batches are mixed, in timm's words; both alphas 0: not at all. Raises InputError for values out of range.

    `prob`: share of batches mixed; `switch_prob`: share of cutmix among them where both are on; from epoch `off_epoch`
    on nothing is mixed (0: never off).
    """

    mixup_alpha: float = 0.0
    cutmix_alpha: float = 0.0
    prob: float = 1.0
    switch_prob: float = 0.5
    off_epoch: int = 0

    def __post_init__(self) -> None:
        if min(self.mixup_alpha, self.cutmix_alpha) < 0:
            raise InputError(f"mixup and cutmix alpha are at least 0, got {self.mixup_alpha} and {self.cutmix_alpha}")
        for name, value in (("mixup prob", self.prob), ("mixup switch prob", self.switch_prob)):
            if not 0 <= value <= 1:
                raise InputError(f"{name} must lie between 0 and 1, got {value}")

    @property
    def active(self) -> bool:
        """Whether any batch is mixed."""
        return self.prob > 0 and max(self.mixup_alpha, self.cutmix_alpha) > 0


@dataclass(frozen=True, slots=True)
class MixPlan:
    """What happens to one global batch.

    `weight` is each sample's own share, 1 - weight its partner's. `box` (cutmix): left, top, right, bottom as fractions
    of the view; inside it the partner's pixels stand. Its borders are whole pixels of the size the plan was made for.
    """

    kind: Literal["none", "mixup", "cutmix"] = "none"
    weight: float = 1.0
    box: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)


def mix_plan(config: Mixing, size: tuple[int, int], seed: int, epoch: int, step: int) -> MixPlan:
    """The plan of global batch `step` for images of `size` (height, width in pixels)."""
    rng = generator(seed, "mix", epoch, step)
    over = 0 < config.off_epoch <= epoch
    if over or not config.active or rng.random() >= config.prob:
        return MixPlan()
    cut = config.cutmix_alpha > 0 and (config.mixup_alpha == 0 or rng.random() < config.switch_prob)
    alpha = config.cutmix_alpha if cut else config.mixup_alpha
    weight = float(rng.beta(alpha, alpha))
    if not cut:
        return MixPlan("mixup", weight)
    height, width = size
    top, bottom = _cut(height, weight, rng)
    left, right = _cut(width, weight, rng)
    box = (left / width, top / height, right / width, bottom / height)
    return MixPlan("cutmix", 1.0 - (bottom - top) * (right - left) / (height * width), box)


def _cut(side: int, weight: float, rng: np.random.Generator) -> tuple[int, int]:
    """Start and end of the box along one side: timm's rule, cut off at the border."""
    length = int(side * np.sqrt(1.0 - weight))
    middle = int(rng.integers(side))
    return max(0, middle - length // 2), min(side, middle + (length + 1) // 2)


def partners(num_samples: int) -> Ranking:
    """Whom each sample of a batch mixes with, int64 [num_samples]: its neighbour, or itself at an odd end."""
    result: Ranking = np.minimum(np.arange(num_samples) ^ 1, num_samples - 1)
    return result


def mix_images(images_B3HW: torch.Tensor, plan: MixPlan) -> torch.Tensor:
    """Mixed images, float [batch, 3, height, width] on the same device; the input is left as it is."""
    if plan.kind == "none":
        return images_B3HW
    others = images_B3HW[torch.from_numpy(partners(len(images_B3HW))).to(images_B3HW.device)]
    if plan.kind == "mixup":
        return images_B3HW * plan.weight + others * (1.0 - plan.weight)
    height, width = images_B3HW.shape[-2:]
    left, top, right, bottom = plan.box
    rows = slice(round(top * height), round(bottom * height))
    cols = slice(round(left * width), round(right * width))
    mixed = images_B3HW.clone()
    mixed[..., rows, cols] = others[..., rows, cols]
    return mixed


def mix_rankings(rankings_BP: Ranking, grid: Grid, plan: MixPlan) -> Ranking:
    """Rankings int64 [batch, patches] (all patches, best first) mixed as the pixels are: pasted or blended."""
    if plan.kind == "none":
        return rankings_BP
    others = rankings_BP[partners(len(rankings_BP))]
    if plan.kind == "mixup":
        return blend(rankings_BP, others, plan.weight)
    return paste(rankings_BP, others, np.array(plan.box), grid)


def mix_hidden(hidden_BP: NDArray[np.float64], grid: Grid, plan: MixPlan) -> NDArray[np.float64]:
    """Hidden share float64 [batch, patches] of each patch after mixing: pasted or averaged as its pixels are."""
    if plan.kind == "none":
        return hidden_BP
    own = plan.weight if plan.kind == "mixup" else 1.0 - hidden_by_box(*plan.box, grid)
    return hidden_BP * own + hidden_BP[partners(len(hidden_BP))] * (1.0 - own)


def mix_targets(labels: torch.Tensor, num_classes: int, smoothing: float, plan: MixPlan) -> torch.Tensor:
    """Soft targets float32 [batch, classes] of `labels` int64 [batch]: smoothed one-hot, then mixed (timm's rule)."""
    off = smoothing / num_classes
    targets = torch.full((len(labels), num_classes), off, device=labels.device)
    targets.scatter_(1, labels[:, None], 1.0 - smoothing + off)
    if plan.kind == "none":
        return targets
    others = targets[torch.from_numpy(partners(len(labels))).to(labels.device)]
    return targets * plan.weight + others * (1.0 - plan.weight)
