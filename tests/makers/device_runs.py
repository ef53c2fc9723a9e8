"""Short runs of stage 2 on a device, whole or step by step, and how far two of them are apart."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from dlth.training.device.numerics import numerics
from dlth.training.distributed.process_group import joined
from dlth.training.models.weights_metadata import EMA_FILE, MODEL_FILE
from dlth.training.pruning.recipe import REWIND
from dlth.training.reporter import Reporter
from dlth.training.runs.loop import train
from dlth.training.runs.setup import Parts, prepare
from dlth.training.runs.step import StepResult
from dlth.training.settings.train_config import TrainConfig
from makers.runs import Listener

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Trained:
    """What a run of one epoch gave: the loss of each step, the weights it began and ended with, and their average."""

    losses: Tensor
    start: Weights
    end: Weights
    average: Weights


def trained(config: TrainConfig) -> Trained:
    """Train, in this process."""
    listener, out = Listener(), Path(config.out)
    assert train(config.model_copy(update={"rewind_step": 0}), reporter=listener).status == "finished"
    still = [note for note in listener.notes if " of step " in note]
    assert still == [], "a step that moves no weights makes runs incomparable"
    losses = torch.tensor([record["loss"] for record in listener.steps], dtype=torch.float64)
    average = load_file(out / EMA_FILE) if (out / EMA_FILE).is_file() else {}
    return Trained(losses, load_file(out / REWIND), load_file(out / MODEL_FILE), average)


def weights_apart(one: Weights, other: Weights, start: Weights) -> float:
    """Norm of the difference of two runs' weights, as a share of how far `other` has come from where both began."""
    assert one.keys() == other.keys() == start.keys()
    ends = [torch.cat([weights[name].double().flatten() for name in start]) for weights in (one, other, start)]
    return float((ends[0] - ends[1]).norm() / (ends[1] - ends[2]).norm())


@contextmanager
def prepared(config: TrainConfig) -> Iterator[Parts]:
    """What a run is made of, for who looks at its steps; in the block products are taken as in the run."""
    with numerics(config.tf32, config.deterministic), joined(config.device) as world:
        yield prepare(config, world, Reporter())


def steps(parts: Parts, number: int) -> list[StepResult]:
    """The first steps of a run's first epoch."""
    with closing(parts.train_steps(0, 0)) as epoch:
        return [parts.stepper(next(epoch), step, parts.budget(0, step)) for step in range(number)]


def weights_of(parts: Parts) -> Weights:
    """Copies of the student's weights, on the CPU."""
    return {name: weight.detach().to("cpu", copy=True) for name, weight in parts.student.model.state_dict().items()}
