"""The first steps of a run of stage 2 on a device, and how far two runs are apart."""

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dlth.training.device.numerics import numerics
from dlth.training.distributed.process_group import joined
from dlth.training.reporter import Reporter
from dlth.training.runs.setup import Parts, prepare
from dlth.training.runs.step import StepResult
from dlth.training.settings.train_config import TrainConfig

Weights = dict[str, Tensor]
MakeRun = Callable[..., TrainConfig]
"""The fixture of tests/gpu/conftest.py: settings of a run on the device."""


@dataclass(frozen=True)
class Trained:
    """What steps gave: the loss of each, float64 [steps]; the weights before, and after, and their average."""

    losses: Tensor
    start: Weights
    end: Weights
    average: Weights


@contextmanager
def prepared(config: TrainConfig) -> Iterator[Parts]:
    """What a run is made of, for who looks at its steps; in the block products are taken as in the run. The scale of
    float16's loss begins where it can stay, so that all steps move the weights.
    """
    with numerics(config.tf32, config.deterministic), joined(config.device) as world:
        parts = prepare(config, world, Reporter())
        scale_loss(parts, 2.0**8)
        yield parts


def scale_loss(parts: Parts, scale: float) -> None:
    """Begin with another scale of float16's loss; one that scales nothing still does not."""
    device, enabled = parts.world.device, parts.stepper.scaler.is_enabled()
    parts.stepper.scaler = torch.amp.GradScaler(device.type, init_scale=scale, enabled=enabled)


def steps(parts: Parts, number: int) -> list[StepResult]:
    """The first steps of a run's first epoch."""
    results = []
    with closing(parts.train_steps(0, 0)) as epoch:
        for step in range(number):
            parts.set_rate(0, step)
            results.append(parts.stepper(next(epoch), step, parts.budget(0, step)))
    return results


def trained(config: TrainConfig, number: int = 4) -> Trained:
    """The first steps of a run, all of which move the weights."""
    with prepared(config) as parts:
        model, start = parts.student.model, weights_of(parts.student.model)
        results = steps(parts, number)
        assert all(result.moved for result in results)
        losses = torch.tensor([result.loss for result in results], dtype=torch.float64)
        return Trained(losses, start, weights_of(model), weights_of(parts.ema.module) if parts.ema is not None else {})


def weights_of(model: nn.Module) -> Weights:
    """Copies of a model's weights, on the CPU."""
    return {name: weight.detach().to("cpu", copy=True) for name, weight in model.state_dict().items()}


def weights_apart(one: Weights, other: Weights, start: Weights) -> float:
    """Norm of the difference of two runs' weights, as a share of how far `other` has come from where both began."""
    assert one.keys() == other.keys() == start.keys()
    ends = [torch.cat([weights[name].double().flatten() for name in start]) for weights in (one, other, start)]
    return float((ends[0] - ends[1]).norm() / (ends[1] - ends[2]).norm())
