"""One optimizer step on one global batch: pixels in, gradients exact however the batch is cut, weights moved.

The loss is the weighted mean over the *global* batch: every rank sums its weighted losses, divides by the weight of all
ranks' images and multiplies by the number of ranks, which cancels DDP's averaging. So accumulation steps, ranks and a
short last batch change rounding and nothing else. A step whose loss or gradient is not finite moves nothing: neither
weights nor averages nor the optimizer's state.

Under a mask of weights the whole gradient is masked once it is summed, so that its norm is the pruned network's; and
what moved is masked again: weights, what the optimizer keeps of them, their average.

Randomness (drop path, dropout) is drawn anew for each (seed, step, rank): a resumed run needs no generator state.

A step waits for its GPU once, for three numbers read together: loss, hidden share and the gradient's norm. Forward,
backward, norm and clipping are queued before that wait, so the GPU works through it; the optimizer's few launches come
after, as nothing may move before the norm is known. Rejected: looking at the loss alone, while the backward pass still
runs (a finite loss with an infinite gradient turns all weights to NaN in one step); stepping first and undoing it on
the device (a copy of weights and optimizer state each step); looking every N steps, as that lets a NaN into the
weights.

Under float16 the loss is scaled, and a gradient that is not finite may be the scale's doing: the scaler halves it, and
the step counts as not moved but is no bad step, until the scale is 1 or less and can no longer be to blame.
"""

import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from timm.utils import ModelEmaV3
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from dlth.data.images.mixing import mix_images, mix_targets, token_sources
from dlth.data.images.visibility import demote, hidden_share
from dlth.data.loading.batch import Batch
from dlth.tickets import Budget
from dlth.tickets.seeding import derive
from dlth.training.device.compiled import compiled
from dlth.training.device.precision import Precision
from dlth.training.device.reading import read_later
from dlth.training.distributed.process_group import World
from dlth.training.models.pixels import Pixels
from dlth.training.models.student import Student
from dlth.training.models.token_logits import TokenLogits
from dlth.training.pruning.weight_masks import WeightMasks
from dlth.training.runs.losses import batch_loss
from dlth.training.runs.running_stats import RunningStatistics
from dlth.training.selectors.patch_ranker import Select
from dlth.training.settings.train_config import TrainConfig


@dataclass(frozen=True)
class StepResult:
    """`loss`: the global batch's weighted mean; `grad_norm`: of its gradient, before clipping; `weight`: its images.

    `moved`: whether weights changed; `rescaled`: they did not, for a gradient that float16's loss scale may have driven
    over the edge. `hidden`: over the images, the share of their kept patches' area that shows fill or noise; `whole`:
    images that were shown whole, as they, or those they mix with, have no ticket. A batch without a single sound image
    weighs 0, and its loss and norm are NaN.
    """

    loss: float
    grad_norm: float
    weight: float
    moved: bool
    rescaled: bool = False
    hidden: float = 0.0
    whole: float = 0.0


class Stepper:
    """Everything a step needs, put together once.

    `select` picks patches in the online mode, None otherwise. `full_size` is the number of images of a whole
    micro-batch: only those go through the compiled student, so that a short batch neither is dropped nor compiles anew.
    `sizes`: at most so many numbers of patches are kept, each of which is compiled for itself. `masks`: what the
    student's weights are held to, None where all of them train.
    """

    def __init__(
        self,
        student: Student,
        optimizer: torch.optim.Optimizer,
        ema: ModelEmaV3 | None,
        config: TrainConfig,
        world: World,
        pixels: Pixels,
        num_classes: int,
        select: Select | None = None,
        sizes: int = 1,
        masks: WeightMasks | None = None,
    ) -> None:
        self.student, self.optimizer, self.ema, self.masks = student, optimizer, ema, masks
        self.config, self.world, self.pixels, self.select = config, world, pixels, select
        self.num_classes, self.full_size = num_classes, config.batch_size
        self.precision = Precision.of(config.amp, config.amp_dtype, world.device)
        self.scaler = torch.amp.GradScaler(world.device.type, enabled=self.precision.dtype == torch.float16)
        self._statistics = RunningStatistics(student, world)
        self._module = _distributed(student, world)
        self._compiled = _compiled(self._module, config.torchcompile, sizes)
        self.last_losses: list[tuple[Tensor, Tensor]] = []

    def __call__(self, batches: Sequence[Batch], step: int, budget: Budget | None) -> StepResult:
        """Train on this rank's micro-batches of global step `step`, which lie on its device; `budget`: what the online
        selector keeps in it.
        """
        torch.manual_seed(derive(self.config.seed, "step", step, self.world.rank))
        self.student.train()
        by_file = self.config.arm == "ticket" and self.select is None and not _keeps_all(budget)
        whole_batches = [batch for batch in batches if by_file and batch.patches is None]
        total, whole = self.world.sums([_num_images(batches), _num_images(whole_batches)])
        self.optimizer.zero_grad(set_to_none=True)
        self.last_losses = []
        if total == 0:  # every image of the global batch is corrupt: nothing to learn from, on any rank
            return StepResult(math.nan, math.nan, 0.0, moved=False)
        self._statistics.remember()
        sums = self._accumulate(batches, budget, total)
        reading = read_later([torch.cat([sums, self._gradient_norm()[None]])])
        # all ranks hold the same gradient, and judge by the same sums
        loss, hidden, norm = self.world.sums(reading()[0].tolist())
        loss, norm = loss / total, norm / self.world.size
        moved = math.isfinite(loss) and math.isfinite(norm)
        rescaled = not moved and math.isfinite(loss) and self.scaler.is_enabled() and self.scaler.get_scale() > 1
        self._statistics.settle(moved)
        if moved:
            self._move(step)
        self.scaler.update()
        return StepResult(loss, norm, total, moved, rescaled, hidden, whole)

    def _move(self, step: int) -> None:
        """Weights, then their average; what is masked of them stays zero."""
        self.optimizer.step()  # not the scaler's: it would read from the device what is known already
        if self.masks is not None:
            self.masks.mask_weights()
            self.masks.mask_state(self.optimizer)
        if self.ema is not None:
            self.ema.update(self.student.model, step=step + 1)
        if self.masks is not None:
            self.masks.mask_averages()

    def _accumulate(self, batches: Sequence[Batch], budget: Budget | None, total: float) -> Tensor:
        """Forward and backward of every micro-batch; gives back this rank's weighted sums of losses and of hidden
        shares, float32 [2].
        """
        sums = torch.zeros(2, device=self.world.device)
        for at, batch in enumerate(batches):
            last = at == len(batches) - 1
            waits = isinstance(self._module, DistributedDataParallel) and not last
            with self._module.no_sync() if waits else contextlib.nullcontext():  # type: ignore[operator]
                losses, hidden = self._losses(batch, budget)
                self.last_losses.append((batch.ids, losses.detach()))
                weighted = (losses * batch.weights).sum()
                sums = sums + torch.stack([weighted.detach(), (hidden * batch.weights).sum()])
                self.scaler.scale(weighted * (self.world.size / total)).backward()
        return sums

    def _gradient_norm(self) -> Tensor:
        """Norm of the whole gradient, float32 [], left on the device; clipped by it where that is asked for."""
        if self.masks is not None:
            self.masks.mask_gradients()
        self.scaler.unscale_(self.optimizer)
        parameters = list(self.student.parameters())
        norm = get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
        if self.config.clip_grad is not None:
            clip_grads_with_norm_(parameters, self.config.clip_grad, norm)
        return norm

    def _losses(self, batch: Batch, budget: Budget | None) -> tuple[Tensor, Tensor]:
        """Of each image, float32 [B]: cross entropy, with labels smoothed and mixed as the pixels are; hidden share."""
        whole = self.pixels(batch.images)
        by_token = self.config.mix_token > 0  # then a selector in the loop sees the same boxes, in pixels
        images = whole if by_token and self.select is None else mix_images(whole, batch.mix)
        targets = mix_targets(batch.labels, self.num_classes, self.config.smoothing, batch.mix)
        with self.precision():
            patches, unranked = batch.patches, None
            if self.select is not None and not _keeps_all(budget):
                patches, unranked = self._selected(images, batch, self.select, budget)
            forward = self._compiled if len(images) == self.full_size else self._module
            if by_token:
                sources = token_sources(batch.mix, self.student.grid, images.device)
                output = forward(whole, patches, sources)
            elif self.student.budget is not None:
                output = forward(images, budget=budget)
            else:
                output = forward(images, patches)
        losses = batch_loss(output, batch, targets, self.student.labelled(patches), self.student.grid, self.config)
        if unranked is not None:
            losses = losses.masked_fill(unranked, math.nan)
        return losses, torch.zeros_like(batch.weights) if batch.hidden is None else hidden_share(batch.hidden, patches)

    def _selected(self, images: Tensor, batch: Batch, select: Select, budget: Budget | None) -> tuple[Tensor, Tensor]:
        """What the online selector keeps of mixed images, int64 [B, k], hidden patches treated as everywhere; and
        bool [B], images whose scores are no numbers: they have no ticket, so their loss is none either.
        """
        rankings, gap = select(images, budget)
        if batch.hidden is not None and self.config.hidden == "demote":
            rankings = demote(rankings, batch.hidden)
        return (rankings if budget is None else rankings[:, : budget.k]), gap.isnan()

    def bad_ids(self) -> list[int]:
        """Ids of this rank's images whose loss in the last step was no number."""
        return [int(each) for ids, losses in self.last_losses for each in ids[~torch.isfinite(losses).cpu()].tolist()]


def _keeps_all(budget: Budget | None) -> bool:
    return budget is not None and budget.keeps_all


def _num_images(batches: Sequence[Batch]) -> float:
    return sum(batch.weight for batch in batches)


def _distributed(student: Student, world: World) -> torch.nn.Module:
    if world.size == 1:
        return student
    devices = [world.device.index] if world.device.type == "cuda" else None
    return DistributedDataParallel(student, device_ids=devices, gradient_as_bucket_view=True, broadcast_buffers=False)


def _compiled(module: torch.nn.Module, backend: str | None, sizes: int) -> Callable[..., Tensor | TokenLogits]:
    """The module compiled for fixed shapes, once for each number of patches that a keep schedule passes through."""
    if backend is None:
        return module
    limits: Any = torch._dynamo.config
    limits.recompile_limit = max(limits.recompile_limit, sizes + 8)
    limits.accumulated_recompile_limit = max(limits.accumulated_recompile_limit, sizes + 8)
    return compiled(module, backend)
