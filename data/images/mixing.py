"""Mixup and cutmix of a batch: one plan per group of images, followed alike by pixels, labels, rankings, hidden area.

A global batch is mixed in groups of `group` images, each with a kind, weight and box of its own, as the authors' eight
processes of 128 images do; a group is a run of the global order, so it is the same under any number of ranks. Within it
sample i mixes with its neighbour i^1 (0 with 1, 2 with 3, …), where timm mixes a batch with its own mirror image: the
order is random, so either is a random pairing, and neighbours meet under any cut, because `order` never cuts a pair. An
odd last sample mixes with itself, that is, not at all. Plans follow timm's `Mixup` (per batch, corrected weight), drawn
from (seed, epoch, step, group) and not from global state.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from dlth.tickets.errors import InputError
from dlth.tickets.ranking.grid import Grid
from dlth.tickets.ranking.projection import best_first, covered
from dlth.tickets.ranking.ranks import rank_matrix
from dlth.tickets.seeding import generator

Ranking = NDArray[np.int64]
Rows = TypeVar("Rows", torch.Tensor, NDArray[Any])


@dataclass(frozen=True, kw_only=True)
class Mixing:
    """How batches are mixed, in timm's words; both alphas 0: not at all. Raises InputError for values out of range.

    `prob`: share of groups mixed; `switch_prob`: share of cutmix among them where both are on; from epoch `off_epoch`
    on nothing is mixed (0: never off); `group`: images that share a plan; `tokens`: boxes are of whole patches, which a
    model pastes once they are embedded (`token_sources`).
    """

    mixup_alpha: float = 0.0
    cutmix_alpha: float = 0.0
    prob: float = 1.0
    switch_prob: float = 0.5
    off_epoch: int = 0
    group: int = 128
    tokens: bool = False

    def __post_init__(self) -> None:
        if min(self.mixup_alpha, self.cutmix_alpha) < 0:
            raise InputError(f"mixup and cutmix alpha are at least 0, got {self.mixup_alpha} and {self.cutmix_alpha}")
        for name, value in (("mixup prob", self.prob), ("mixup switch prob", self.switch_prob)):
            if not 0 <= value <= 1:
                raise InputError(f"{name} must lie between 0 and 1, got {value}")
        if self.group < 2 or self.group % 2:
            raise InputError(f"a mix group is an even number of images, as pairs mix, got {self.group}")

    @property
    def active(self) -> bool:
        """Whether any group is mixed."""
        return self.prob > 0 and max(self.mixup_alpha, self.cutmix_alpha) > 0


@dataclass(frozen=True, slots=True)
class MixPlan:
    """What happens to one group of images.

    `weight` is each sample's own share, 1 - weight its partner's. `box` (cutmix): left, top, right, bottom as fractions
    of the view; inside it the partner's pixels stand. Its borders are whole pixels of the size the plan was made for.
    """

    kind: Literal["none", "mixup", "cutmix"] = "none"
    weight: float = 1.0
    box: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)


@dataclass(frozen=True, slots=True)
class BatchMix:
    """How the rows of a batch mix: the first `sizes[0]` of them by `plans[0]`, the next `sizes[1]` by `plans[1]`, …"""

    plans: tuple[MixPlan, ...]
    sizes: tuple[int, ...]

    @property
    def mixed(self) -> NDArray[np.bool_]:
        """Bool [batch]: whether a row is mixed."""
        return np.repeat([plan.kind != "none" for plan in self.plans], self.sizes)

    def of(self, rows: Ranking) -> "BatchMix":
        """The mix of some rows of the batch, int64 [chosen], rising; of a pair that mixes, both or none are chosen."""
        cuts = np.searchsorted(rows, np.cumsum((0, *self.sizes)))
        return BatchMix(self.plans, tuple(np.diff(cuts).tolist()))

    def groups(self) -> list[tuple[slice, MixPlan]]:
        """The rows of each plan that has any."""
        stops = np.cumsum(self.sizes).tolist()
        parts = zip(self.plans, self.sizes, stops, strict=True)
        return [(slice(stop - size, stop), plan) for plan, size, stop in parts if size]


def batch_mix(
    config: Mixing, size: tuple[int, int], seed: int, epoch: int, step: int, start: int, stop: int
) -> BatchMix:
    """The mix of images `start` to `stop` (not included) of global batch `step`; `size` is theirs in pixels."""
    groups = range(start // config.group, -(-stop // config.group))
    edges = [start, *(group * config.group for group in groups[1:]), stop]
    plans = tuple(mix_plan(config, size, seed, epoch, step, group) for group in groups)
    return BatchMix(plans, tuple(np.diff(edges).tolist()))


def mix_plan(config: Mixing, size: tuple[int, int], seed: int, epoch: int, step: int, group: int = 0) -> MixPlan:
    """The plan of a group of global batch `step` for images of `size` (height, width in pixels)."""
    rng = generator(seed, "mix", epoch, step, group)
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


def mix_images(images_B3HW: torch.Tensor, mix: MixPlan | BatchMix) -> torch.Tensor:
    """Mixed images, float [batch, 3, height, width] on the same device; the input is left as it is."""

    def mixed(images: torch.Tensor, plan: MixPlan) -> torch.Tensor:
        if plan.kind == "mixup":
            return _averaged(images, plan)
        height, width = images.shape[-2:]
        left, top, right, bottom = plan.box
        rows = slice(round(top * height), round(bottom * height))
        cols = slice(round(left * width), round(right * width))
        result = images.clone()
        result[..., rows, cols] = partner_rows(images)[..., rows, cols]
        return result

    return _by_group(images_B3HW, mix, mixed)


def mix_rankings(rankings_BP: Ranking, grid: Grid, mix: MixPlan | BatchMix) -> Ranking:
    """Rankings int64 [batch, patches] (all patches, best first) mixed as the pixels are, by each patch's rank."""

    def mixed(rankings: Ranking, plan: MixPlan) -> Ranking:
        return best_first(_weighed(rank_matrix(rankings, grid.num_patches), grid, plan))

    return _by_group(rankings_BP, mix, mixed)


def mix_patches(values_BP: NDArray[Any], grid: Grid, mix: MixPlan | BatchMix) -> NDArray[Any]:
    """What each patch has, [batch, patches], after mixing: pasted or averaged as its pixels are, by area."""
    return _by_group(values_BP, mix, lambda values, plan: _weighed(values, grid, plan))


def token_sources(mix: BatchMix, grid: Grid, device: torch.device | None = None) -> torch.Tensor:
    """Which row of the batch the token of each patch comes from, int64 [batch, patches]: MixToken, by patch index.

    (Jiang et al., 2021, arXiv 2104.10858.) Inside a box the partner's token stands, in its own place. A patch that a
    box covers by less than half is not pasted; those of `Mixing.tokens` cover all or nothing. Made on the device: a
    copy to it would be waited for.
    """
    rows = torch.arange(sum(mix.sizes), device=device)[:, None]

    def pasted(own: torch.Tensor, plan: MixPlan) -> torch.Tensor:
        if plan.kind != "cutmix":
            return own
        return torch.where(_covered(plan.box, grid, device) >= 0.5, partner_rows(own), own)

    return _by_group(rows.expand(-1, grid.num_patches), mix, pasted)


def mix_targets(labels: torch.Tensor, num_classes: int, smoothing: float, mix: MixPlan | BatchMix) -> torch.Tensor:
    """Soft targets float32 [batch, classes] of `labels` int64 [batch]: smoothed one-hot, then mixed (timm's rule)."""
    off = smoothing / num_classes
    targets = torch.full((len(labels), num_classes), off, device=labels.device)
    targets.scatter_(1, labels[:, None], 1.0 - smoothing + off)
    return _by_group(targets, mix, _averaged)


def shares(
    mix: MixPlan | BatchMix, grid: Grid, num_samples: int, device: torch.device | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Each sample's own share of its mixed image, float32 [batch, 1], and of each patch of it, [batch, patches]; made
    on the device, as `token_sources`.
    """
    groups = [(slice(0, num_samples), mix)] if isinstance(mix, MixPlan) else mix.groups()
    whole = torch.ones(num_samples, 1, device=device)
    patches = torch.ones(num_samples, grid.num_patches, device=device)
    for rows, plan in groups:
        whole[rows].fill_(plan.weight)
        if plan.kind == "cutmix":
            patches[rows].copy_(1.0 - _covered(plan.box, grid, device))
        else:
            patches[rows].fill_(plan.weight)
    return whole, patches


def _by_group(rows: Rows, mix: MixPlan | BatchMix, mixed: Callable[[Rows, MixPlan], Rows]) -> Rows:
    """Rows [batch, …] with each group mixed by its plan; the very same object where nothing is mixed."""
    groups = [(slice(None), mix)] if isinstance(mix, MixPlan) else mix.groups()
    if all(plan.kind == "none" for _, plan in groups):
        return rows
    parts: Any = [rows[at] if plan.kind == "none" else mixed(rows[at], plan) for at, plan in groups]
    join: Any = torch.cat if isinstance(rows, torch.Tensor) else np.concatenate
    result: Rows = parts[0] if len(parts) == 1 else join(parts)
    return result


def _weighed(values_BP: NDArray[Any], grid: Grid, plan: MixPlan) -> NDArray[Any]:
    """Each patch's value and its partner's, by the share of the patch's area that each has."""
    own = _own_share(grid, plan)
    return values_BP * own + values_BP[partners(len(values_BP))] * (1.0 - own)


def _own_share(grid: Grid, plan: MixPlan) -> float | NDArray[np.float64]:
    """The share of each patch that is the sample's own, a number or [1, patches]."""
    return plan.weight if plan.kind == "mixup" else 1.0 - covered(np.array([plan.box]), grid)


def _averaged(rows: torch.Tensor, plan: MixPlan) -> torch.Tensor:
    return rows * plan.weight + partner_rows(rows) * (1.0 - plan.weight)


def partner_rows(rows: torch.Tensor) -> torch.Tensor:
    """Each row's partner (see `partners`), [batch, …], without an index that would have to be copied to a GPU."""
    pairs = len(rows) // 2
    swapped = torch.unflatten(rows[: 2 * pairs], 0, (pairs, 2)).flip(1).flatten(0, 1)
    return swapped if 2 * pairs == len(rows) else torch.cat([swapped, rows[2 * pairs :]])


def _covered(box: tuple[float, float, float, float], grid: Grid, device: torch.device | None) -> torch.Tensor:
    """Float64 [patches]: what `covered` says of a box, to the bit, worked out on the device."""
    left, top, right, bottom = box

    def along(start: float, stop: float, cells: int) -> torch.Tensor:
        edges = torch.arange(cells, dtype=torch.float64, device=device)
        return ((edges + 1.0).clamp(max=stop * cells) - edges.clamp(min=start * cells)).clamp(0.0, 1.0)

    return (along(top, bottom, grid.rows)[:, None] * along(left, right, grid.cols)).flatten()
