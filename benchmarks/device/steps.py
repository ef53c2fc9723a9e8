"""A training step on tickets against a dense one, by time, operations and memory, and against what drops otherwise."""

import torch
from memory import cuda_peak, kept_for_backward

from device.bench import Bench, about, rate, ratio, verdict
from device.candidates import Candidate, make_candidates
from device.counts import cost_of_step
from device.timing import Row, timed

MARGIN = 0.03
"""A step's share of a dense step's time may be so much above its share of the operations."""
RIVALS = ("patch dropout", "online", "authors' online")


def step_rows(bench: Bench, name: str, compile_: bool, batch: int) -> list[Row]:
    """A row for the dense step of the model `name`, and one for each keep."""
    candidates = make_candidates(bench, name, compile_, batch)
    ours = ["dense", *(f"ticket {keep}" for keep in bench.scope.keeps)]
    if not compile_:
        for key in ours:
            bench.costs[name, key] = cost_of_step(candidates[key].step, candidates[key].model, batch)
    times = timed({key: one.step for key, one in candidates.items()}, bench.scope, bench.device, bench.deadline)
    rows: list[Row] = []
    for key in ours:
        cost, dense = (bench.costs.get((name, each)) for each in (key, "dense"))
        share = cost.flops / dense.flops if cost and dense else ""
        found = ratio(times, key, "dense") if key != "dense" else ""
        row = about(name, compile_) | {"step": key, "batch": batch, "images/s": rate(times, key, batch)}
        row |= {"time / dense": found, "FLOPs / dense": share}
        row |= {"goal": verdict(found, share + MARGIN) if isinstance(share, float) else ""}
        for rival in RIVALS:
            row[f"time / {rival}"] = ratio(times, key, key.replace("ticket", rival)) if key != "dense" else ""
        memory = _memory(candidates[key], bench.device) if key in times else {}
        rows.append(row | memory | bench.limits.images(cost))
    return rows


def _memory(candidate: Candidate, device: torch.device) -> Row:
    """On a GPU what the allocator saw at most, less what other candidates hold; elsewhere what autograd keeps.

    Before a step its own weights and both moments are held, 12 bytes a weight, which belong to it; gradients are not.
    """
    if device.type == "cuda":
        candidate.model.zero_grad(set_to_none=True)
        others = torch.cuda.memory_allocated(device) - 12 * sum(
            weight.numel() for weight in candidate.model.parameters()
        )
        return {"peak MiB": round(cuda_peak(candidate.step, device) - others / 2**20)}
    return {"kept MiB": round(kept_for_backward(candidate.step), 1)}
