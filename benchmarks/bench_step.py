"""A training step on tickets against a dense step and against timm's own patch dropout.

    python benchmarks/bench_step.py --batch-size 16 --rounds 5 --json step.json

Forward, backward and AdamW of DeiT-S at 224 px, random data, float32 unless `--amp`. timm's patch dropout embeds every
patch and then keeps random ones; its counts are made equal (it rounds down, tickets round up). Memory is what autograd
keeps for the backward pass, counted by storage, the same on any device; on CUDA the peak of the allocator beside it.
"""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rounds import Step, gflop, report, spread, time_rounds
from torch import Tensor, nn

from dlth.tickets.ranking.budget import num_kept
from dlth.training import TicketViT
from dlth.training.models.registry import build

KEEPS = ("0.9", "0.7", "0.5")


def training_step(model: nn.Module, inputs: tuple[Tensor, ...], labels: Tensor, amp: bool) -> Step:
    """One step of AdamW with its own state."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def step() -> None:
        with torch.autocast(labels.device.type, dtype=torch.bfloat16, enabled=amp):
            loss = F.cross_entropy(model(*inputs), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def kept_for_backward(step: Step) -> float:
    """MiB that autograd holds at the end of the forward pass, beside the weights."""
    storages: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        if not isinstance(tensor if tensor._base is None else tensor._base, nn.Parameter):
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        step()
    return sum(storages.values()) / 2**20


def cuda_peak(step: Step, device: torch.device) -> float:
    """Highest number of MiB that tensors held during a step."""
    torch.cuda.reset_peak_memory_stats(device)
    step()
    return torch.cuda.max_memory_allocated(device) / 2**20


def candidates(options: argparse.Namespace) -> dict[str, Step]:
    """Steps by name: dense, and tickets and patch dropout at each keep."""
    batch, device = options.batch_size, options.device
    images, labels = torch.randn(batch, 3, 224, 224, device=device), torch.arange(batch, device=device)
    backend = options.torchcompile
    wrap: Callable[[nn.Module], nn.Module] = (
        partial(torch.compile, backend=backend) if backend else (lambda model: model)
    )

    def step(model: nn.Module, *inputs: Tensor) -> Step:
        return training_step(wrap(model.to(device).train()), (images, *inputs), labels, options.amp)

    steps = {"dense": step(build(options.model))}
    for keep in KEEPS:
        k = num_kept(keep, 196)
        patches = torch.rand(batch, 196, device=device).argsort(dim=1)[:, :k]
        steps[f"ticket {keep}"] = step(TicketViT(build(options.model)), patches)
        steps[f"dropout {keep}"] = step(build(options.model, patch_drop_rate=1 - (k + 0.5) / 196))
    return steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="deit_small")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--threads", type=int, default=1, help="of a CPU")
    parser.add_argument("--amp", action="store_true", help="bf16 autocast")
    parser.add_argument("--torchcompile", metavar="BACKEND", help="compile all models with this backend, e.g. inductor")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    torch.manual_seed(0)
    torch.set_num_threads(options.threads)
    steps = candidates(options)
    times = time_rounds(steps, options.rounds, options.device)
    cost = {name: gflop(step) / options.batch_size for name, step in steps.items()}
    memory = {name: kept_for_backward(step) for name, step in steps.items()}
    peak = {name: cuda_peak(step, options.device) for name, step in steps.items() if options.device.type == "cuda"}
    rows: list[dict[str, Any]] = []
    for keep in KEEPS:
        ticket, dropout = f"ticket {keep}", f"dropout {keep}"
        row = {
            "keep": keep,
            "tokens": num_kept(keep, 196),
            "GFLOP/image": cost[ticket],
            "FLOPs / dense": cost[ticket] / cost["dense"],
            "time / dense": spread(times, ticket, "dense"),
            "memory / dense": memory[ticket] / memory["dense"],
            "patch dropout: time / dense": spread(times, dropout, "dense"),
            "ticket / patch dropout": spread(times, ticket, dropout),
            "images/s": options.batch_size / sorted(times[ticket])[options.rounds // 2],
        }
        rows.append(row | ({"peak / dense": peak[ticket] / peak["dense"]} if peak else {}))
    facts = {"model": options.model, "batch": options.batch_size, "rounds": options.rounds, "amp": options.amp}
    facts |= {"torchcompile": options.torchcompile, "dense GFLOP/image": round(cost["dense"], 3)}
    facts |= {"dense MiB kept for backward": round(memory["dense"], 1)}
    report("Training step", rows, options.device, options.json, **facts)


if __name__ == "__main__":
    main()
