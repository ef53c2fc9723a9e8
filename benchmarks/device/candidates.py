"""The training steps that are compared, by name: dense, ticket, patch dropout, online, and the authors' online.

Every one but the last is `dlth train`'s own: its `Stepper` on a batch of its loader, the paper's recipe, mixed images
and all, but for the average of the weights. Dense and tickets of all keeps are one run, whose keep schedule goes
through them; patch dropout is the same step on timm's model, which drops as many patches by itself; online has the
selector in the loop. The authors' step is theirs (`authors.py`).
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rounds import Step
from timm.layers import PatchDropout
from torch import Tensor, nn

from device import authors
from device.bench import Bench
from device.data import RECIPES, parts_of, selector_weights, settings
from dlth.data.loading.batch import Batch
from dlth.tickets import Budget
from dlth.training.models.registry import build
from dlth.training.models.student import Student
from dlth.training.runs.optim import make_optimizer
from dlth.training.runs.setup import Parts
from dlth.training.runs.step import Stepper


@dataclass(frozen=True)
class Candidate:
    """A step, and the model that it trains."""

    step: Step
    model: nn.Module


class DroppingStudent(Student):
    """timm's model, which drops patches at random by itself in training; nobody names them."""

    how = "patch dropout"

    @classmethod
    def takes(cls, model: nn.Module) -> bool:
        """Whether it drops any."""
        return isinstance(getattr(model, "patch_drop", None), PatchDropout)

    def forward(self, images: Tensor, patches: Tensor | None = None) -> Tensor:
        """Logits [B, classes] of normalised images [B, 3, H, W]."""
        logits: Tensor = self.model(images)
        return logits


def make_candidates(bench: Bench, name: str, compile_: bool, batch: int) -> dict[str, Candidate]:
    """Steps of the model `name` on `batch` images, the most important first; compiled, rivals have one keep alone."""
    scope = bench.scope
    parts = _parts(bench, name, compile_, batch)
    found = {"dense": Candidate(_step(parts, _batch(parts, 0), 0), parts.student)}
    for epoch, keep in enumerate(scope.keeps, start=1):
        found[f"ticket {keep}"] = Candidate(_step(parts, _batch(parts, epoch), epoch), parts.student)
    weights = selector_weights(scope, bench.files, name)
    asked = {"mode": "online", "tickets": None, "selector_checkpoint": weights}
    asked |= {"selector": scope.models[name]["model"], "selector_kwargs": scope.models[name].get("model_kwargs", {})}
    online, whole = _parts(bench, name, compile_, batch, **asked), _batch(parts, 0)
    for epoch, keep in enumerate(scope.keeps, start=1):
        if compile_ and keep != scope.keeps[1]:
            continue
        found[f"patch dropout {keep}"] = _dropping(parts, whole, parts.budget(epoch, 0).k)
        found[f"online {keep}"] = Candidate(_step(online, whole, epoch), online.student)
        if bench.authors is not None:
            found[f"authors' online {keep}"] = _theirs(bench.authors, online, whole, online.budget(epoch, 0))
    return found


def _parts(bench: Bench, name: str, compile_: bool, batch: int, **changes: Any) -> Parts:
    """A run of the paper's recipe, dense in its first epoch, with a keep in each of the others."""
    keeps = bench.scope.keeps
    schedule = ",".join(f"{epoch}:{keep}" for epoch, keep in enumerate(("1", *keeps)))
    run = {"keep": keeps[-1], "keep_schedule": schedule, "epochs": len(keeps) + 1}
    run |= {"torchcompile": bench.scope.compiler if compile_ else None}
    config = settings(bench.scope, bench.files, bench.device, batch, name, **RECIPES["deit"], **run, **changes)
    return parts_of(config, bench.device)


def _batch(parts: Parts, epoch: int) -> list[Batch]:
    """The first step's micro-batches of an epoch, on the device."""
    steps = parts.train_steps(epoch, 0)
    batches = [batch.to(parts.world.device) for batch in next(steps)]
    steps.close()
    return batches


def _step(parts: Parts, batches: Sequence[Batch], epoch: int) -> Step:
    return of_stepper(parts.stepper, batches, parts.budget(epoch, 0))


def of_stepper(stepper: Stepper, batches: Sequence[Batch], budget: Budget) -> Step:
    """Steps on the same batches, with other drop paths each; one that moves no weights would be none."""
    numbers = itertools.count()

    def step() -> None:
        assert stepper(batches, next(numbers), budget).moved

    return step


def _dropping(parts: Parts, batches: Sequence[Batch], k: int) -> Candidate:
    """timm's patch dropout that keeps k patches: the share that it is told lies amid those that round to k."""
    config, frame = parts.config, parts.inputs.frame
    options: dict[str, Any] = {"img_size": config.img_size, "drop_path": config.drop_path, **config.model_kwargs}
    rate = 1 - (k + 0.5) / frame.grid.num_patches
    model = build(config.student, num_classes=parts.student.num_classes, patch_drop_rate=rate, **options)
    student = DroppingStudent(model.to(parts.world.device))
    optimizer = make_optimizer(model, config, config.batch_size)
    stepper = Stepper(student, optimizer, None, config, parts.world, parts.pixels, student.num_classes)
    return Candidate(of_stepper(stepper, batches, parts.budget(0, 0)), student)


def _theirs(module: Any, online: Parts, batches: Sequence[Batch], budget: Budget) -> Candidate:
    """The authors' step on the same images."""
    assert online.online is not None
    ranker: Any = online.online.selector
    student = authors.model_like(module, online.student.model, drop_path_rate=online.config.drop_path)
    selector = authors.model_like(module, ranker.vit, ranker.blocks)
    images = torch.cat([online.pixels(batch.images) for batch in batches])
    labels = torch.cat([batch.labels for batch in batches])
    tokens = authors.tokens_of(budget, ranker.blocks, len(ranker.vit.blocks))
    return Candidate(authors.online_step(selector, student, images, labels, tokens), student)
