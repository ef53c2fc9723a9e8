"""Optimizer, learning rate and weight average, all timm's: its names and numbers are what recipes are written in.

The schedule is a pure function of (epoch, step), so a checkpoint need not carry it. Plateau schedules are left out
because they are not: they depend on what was measured on the way.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from timm.optim import create_optimizer_v2, get_optimizer_class, list_optimizers
from timm.scheduler import create_scheduler_v2
from timm.utils import ModelEmaV3

from dlth.tickets.callbacks import Note
from dlth.tickets.errors import DlthError, InputError, shown
from dlth.training.runs.checkpoint import take_apart
from dlth.training.settings.layering import nearest
from dlth.training.settings.recipes import RECIPES
from dlth.training.settings.train_config import TrainConfig

SetRate = Callable[[int, int], float]
"""(epoch, step counted over the run) -> learning rate of the last layer; sets the optimizer's groups on the way."""


FUSED, FUSED_ON = (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD), ("cuda",)
"""PyTorch's optimizers that have a kernel for many weights at once, and where it is taken."""
RATES = ("lr", "min_lr")
"""Settings that are rates as they stand, at any batch."""


def learning_rate(config: TrainConfig, global_batch: int) -> float:
    """The peak learning rate: as given, or scaled linearly by the images of a step."""
    return config.lr if config.lr is not None else config.lr_base * global_batch / config.lr_base_size


def lowest_rate(config: TrainConfig, global_batch: int, note: Note) -> float:
    """The learning rate at which the schedule ends: `min_lr`, but not above the peak, which follows the batch where
    `min_lr` does not. Who gives both rates gets both; `note` is told where the peak is taken.
    """
    peak, own = learning_rate(config, global_batch), RECIPES.get(config.recipe, {})
    both = all(getattr(config, name) != own.get(name, TrainConfig.model_fields[name].default) for name in RATES)
    if config.min_lr <= peak or both or config.sched in ("step", "multistep"):  # these know no end
        return config.min_lr
    note(
        f"the learning rate is {peak:.3g} and does not fall: its peak at {global_batch} images a step is below min_lr"
        f" {config.min_lr:g}; --min-lr says a lower end"
    )
    return peak


def make_optimizer(model: torch.nn.Module, config: TrainConfig, global_batch: int) -> torch.optim.Optimizer:
    """timm's optimizer over a timm model, with its groups for weight decay and layer decay.

    Raises:
        InputError: no such optimizer, or one that cannot be made with these settings
    """
    name = config.opt.lower()
    known = [str(known) for known in list_optimizers()]
    if name not in known:
        raise InputError(f"timm has no optimizer {shown(config.opt)!r}{nearest(name, known)}")
    device = next(model.parameters()).device
    with _making(config.opt):
        options = _options(config, device) | {"lr": learning_rate(config, global_batch)}
        _try_step(options, device)
        return create_optimizer_v2(model, layer_decay=config.layer_decay, **options)


@contextmanager
def _making(name: str) -> Iterator[None]:
    """Turn what timm and torch say of settings that make no optimizer or schedule into InputError."""
    try:
        yield
    except (TypeError, ValueError, AssertionError, ImportError, RuntimeError, ArithmeticError) as error:
        if isinstance(error, DlthError):
            raise
        reason = shown(error)
        raise InputError(f"timm cannot make the optimizer {shown(name)} with these settings: {reason}") from error


def _options(config: TrainConfig, device: torch.device) -> dict[str, Any]:
    """What timm is asked for, but for the learning rate."""
    optional = {"eps": config.opt_eps, "betas": config.opt_betas, "fused": fused(config.opt, device) or None}
    options = {name: value for name, value in optional.items() if value is not None}
    return options | {"momentum": config.momentum, "opt": config.opt.lower(), "weight_decay": config.weight_decay}


def fused(name: str, device: torch.device) -> bool:
    """Whether timm's optimizer of that name steps in few launches on that device, its own of PyTorch's.

    On a CPU none is: it would round otherwise.
    """
    return device.type in FUSED_ON and get_optimizer_class(name.lower(), bind_defaults=False) in FUSED


def _try_step(options: Mapping[str, Any], device: torch.device) -> None:
    """A step and a save of the optimizer on four numbers: some need what no run has, and say so there alone."""
    with torch.random.fork_rng(devices=[]):
        layer = torch.nn.Linear(2, 2, bias=False, device=device)
        optimizer = create_optimizer_v2(layer, **options)
        layer.weight.grad = torch.full_like(layer.weight, 0.5)
        optimizer.step()
    take_apart(optimizer.state_dict(), "optimizer", {})


MAX_RATE = 3.4e38
"""The largest number of 32 bits: beyond any use, but what a rate is too large for is not known here."""


def make_schedule(
    optimizer: torch.optim.Optimizer, config: TrainConfig, steps_per_epoch: int, lowest: float
) -> SetRate:
    """The learning rate by epoch, or by step where the configuration says so, down to `lowest`; its highest is tried.

    Raises:
        InputError: rates beyond `MAX_RATE`, or that the optimizer cannot step with
    """
    # timm's milestone m is felt one epoch (or update) before the m-th: half of one later is exact in either count.
    late = 0.5 / (steps_per_epoch if config.sched_on_updates else 1)
    milestones: list[Any] = [epoch + late for epoch in config.decay_milestones]
    with _making(config.opt):
        schedule, _ = create_scheduler_v2(
            optimizer,
            sched=config.sched,
            num_epochs=config.epochs,
            decay_epochs=config.decay_epochs,
            decay_milestones=milestones,
            decay_rate=config.decay_rate,
            min_lr=lowest,
            warmup_lr=config.warmup_lr,
            warmup_epochs=config.warmup_epochs,
            step_on_epochs=not config.sched_on_updates,
            updates_per_epoch=steps_per_epoch,
        )

    def set_rate(epoch: int, step: int) -> float:
        schedule.step(epoch)
        schedule.step_update(step)
        return max(float(group["lr"]) for group in optimizer.param_groups)

    with _making(config.opt):
        # all schedules rise or fall all the way, before and after the warm-up's end: their ends are their extremes
        ends = {(epoch, epoch * steps_per_epoch) for epoch in (0, config.warmup_epochs)}
        ends |= {(config.epochs - 1, config.epochs * steps_per_epoch - 1)}
        highest = max((set_rate(*end) for end in sorted(ends, reverse=True)), key=abs)
        if not abs(highest) <= MAX_RATE:
            raise InputError(
                f"the learning rate would reach {highest:g}, and it ends at {MAX_RATE:g}: look at --lr, --warmup-lr,"
                " --min-lr, --layer-decay and --decay-rate"
            )
        device = optimizer.param_groups[0]["params"][0].device
        _try_step(_options(config, device) | {"lr": highest}, device)
    return set_rate


def make_ema(model: torch.nn.Module, config: TrainConfig) -> ModelEmaV3 | None:
    """The moving average of a model's weights, on the model's device, or None when it is off."""
    if not config.model_ema:
        return None
    return ModelEmaV3(model, decay=config.model_ema_decay, use_warmup=config.model_ema_warmup)
