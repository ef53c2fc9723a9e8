"""Stage 1's forward against the model's own, and against the selector of the paper's authors where their code is named.

At each keep the authors' selector keeps as many patches at each stage, and runs to its end, as it does in their code.
It is never compiled: they do not. So the goal is judged where ours is not compiled either.
"""

from collections.abc import Callable
from typing import Any

import torch
from rounds import Step

from device import authors
from device.bench import Bench, about, rate, ratio, verdict
from device.counts import cost_of_forward
from device.timing import Row, timed
from dlth.training import Selector
from dlth.training.device.compiled import compiled
from dlth.training.device.precision import Precision
from dlth.training.models.registry import build

GOAL = 0.72
"""Of the authors' time, at most."""


def selector_rows(bench: Bench, name: str, compile_: bool, batch: int) -> list[Row]:
    """A row for the dense forward of the model `name`, and one for each keep."""
    options = dict(bench.scope.models[name])
    vit: Any = build(options.pop("model"), **options.pop("model_kwargs", {}), **options).eval().to(bench.device)
    images = torch.randn(batch, 3, *vit.patch_embed.img_size, device=bench.device)
    selectors = {keep: Selector(vit, None, keep=keep) for keep in bench.scope.keeps}
    functions: dict[str, Callable[..., object]] = {"dense": vit}
    functions |= {f"keep {keep}": selector.rank for keep, selector in selectors.items()}
    ready = {
        key: compiled(function, bench.scope.compiler) if compile_ else function for key, function in functions.items()
    }
    candidates = {key: _call(function, images) for key, function in ready.items()}
    if bench.authors is not None:
        blocks = next(iter(selectors.values())).blocks
        theirs = authors.model_like(bench.authors, vit, blocks).eval()
        for keep, selector in selectors.items():
            tokens = authors.tokens_of(selector.budget, blocks, len(vit.blocks))
            candidates[f"authors {keep}"] = _call(theirs, images, tokens=tokens)
    if not compile_:
        for key, call in candidates.items():
            bench.costs["selector " + name, key] = cost_of_forward(call, vit, images)
    times = timed(candidates, bench.scope, bench.device, bench.deadline)
    rows: list[Row] = []
    for key in functions:
        rival, dense = key.replace("keep", "authors"), key == "dense"
        row = about(name, compile_) | {"selector": key, "batch": batch, "images/s": rate(times, key, batch)}
        row["time / dense"] = "" if dense else ratio(times, key, "dense")
        row["FLOPs / dense"] = _share(bench, name, key, "dense")
        if bench.authors is not None:
            found = "" if dense else ratio(times, key, rival)
            row |= {"authors', images/s": "" if dense else rate(times, rival, batch), "time / authors'": found}
            row |= {"FLOPs / authors'": "" if dense else _share(bench, name, key, rival)}
            row |= {"goal": "" if compile_ else verdict(found, GOAL)}
        rows.append(row | bench.limits.images(bench.costs.get(("selector " + name, key))))
    return rows


def _share(bench: Bench, name: str, key: str, base: str) -> float | str:
    """Operations of one selector over those of another; empty where one of them was not counted."""
    cost, other = (bench.costs.get(("selector " + name, each)) for each in (key, base))
    return cost.flops / other.flops if cost and other else ""


def _call(function: Callable[..., object], images: torch.Tensor, **options: object) -> Step:
    """A forward as stage 1 runs it: in bfloat16, for each batch anew."""
    precision = Precision.of(True, "bfloat16", images.device)

    def forward() -> None:
        with torch.no_grad(), precision():
            function(images, **options)

    return forward
