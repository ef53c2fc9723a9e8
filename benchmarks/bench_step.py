"""A training step on tickets against a dense step of the same model, and against timm's own patch dropout.

    python benchmarks/bench_step.py --batch-size 16 --rounds 5 --students deit swin --json step.json

Forward, backward and AdamW at 224 px, random data, float32 unless `--amp`. Patches are drawn scattered, which is a
Swin's worst case, or `--clustered` in blobs, as tickets mostly are. timm's patch dropout embeds every patch of DeiT and
then keeps random ones; its counts are made equal (it rounds down, tickets round up). Memory is what autograd keeps for
the backward pass, counted by storage, the same on any device; on CUDA the peak of the allocator beside it.
"""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from memory import cuda_peak, kept_for_backward
from rounds import Step, gflop, report, spread, time_rounds
from torch import Tensor, nn

from dlth.tickets.ranking.budget import num_kept
from dlth.training import make_student
from dlth.training.models.registry import build

KEEPS = ("0.9", "0.7", "0.5")
STUDENTS = {
    "deit": ("deit_small", "sparse"),
    "swin": ("swin_tiny_patch4_window7_224", "sparse"),
    "swin-small-dense": ("swin_tiny_patch4_window7_224", "small-dense"),
    "lvvit": ("lvvit_s", "sparse"),
}
"""Name here -> model and --how."""


def training_step(model: nn.Module, inputs: tuple[Tensor, ...], labels: Tensor, amp: bool) -> Step:
    """One step of AdamW with its own state."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def step() -> None:
        with torch.autocast(labels.device.type, dtype=torch.bfloat16, enabled=amp):
            logits = model(*inputs)
            loss = F.cross_entropy(getattr(logits, "cls", logits), labels)  # LV-ViT's patches have logits, too
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def draw(options: argparse.Namespace, k: int) -> Tensor:
    """k of 196 patches of each image, int64 [B, k]: alone, or where a smooth random field is highest."""
    field = torch.rand(options.batch_size, 1, *((5, 5) if options.clustered else (14, 14)), device=options.device)
    return F.interpolate(field, (14, 14), mode="bicubic").flatten(1).argsort(dim=1, descending=True)[:, :k]


def candidates(name: str, options: argparse.Namespace) -> dict[str, Step]:
    """Steps by name: dense, and tickets at each keep; of DeiT patch dropout as well."""
    batch, device = options.batch_size, options.device
    images, labels = torch.randn(batch, 3, 224, 224, device=device), torch.arange(batch, device=device)
    backend = options.torchcompile
    wrap: Callable[[nn.Module], nn.Module] = (
        partial(torch.compile, backend=backend) if backend else (lambda model: model)
    )

    def step(model: nn.Module, *inputs: Tensor) -> Step:
        return training_step(wrap(model.to(device).train()), (images, *inputs), labels, options.amp)

    model, how = STUDENTS[name]
    steps = {"dense": step(build(model))}
    for keep in KEEPS:
        student = make_student(build(model), how)
        k = student.most_kept(num_kept(keep, 196))
        steps[f"ticket {keep}"] = step(student, draw(options, k))
        if name == "deit":
            steps[f"dropout {keep}"] = step(build(model, patch_drop_rate=1 - (k + 0.5) / 196))
    return steps


def measure(name: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each keep of a student."""
    steps = candidates(name, options)
    times = time_rounds(steps, options.rounds, options.device)
    cost = {key: gflop(step) / options.batch_size for key, step in steps.items()}
    memory = {key: kept_for_backward(step) for key, step in steps.items()}
    peak = {key: cuda_peak(step, options.device) for key, step in steps.items() if options.device.type == "cuda"}
    rows: list[dict[str, Any]] = []
    for keep in KEEPS:
        ticket, dropout = f"ticket {keep}", f"dropout {keep}"
        row = {
            "student": name,
            "keep": keep,
            "GFLOP/image": cost[ticket],
            "FLOPs / dense": cost[ticket] / cost["dense"],
            "time / dense": spread(times, ticket, "dense"),
            "memory / dense": memory[ticket] / memory["dense"],
            "ticket / patch dropout": spread(times, ticket, dropout) if dropout in times else "",
            "images/s": options.batch_size / sorted(times[ticket])[options.rounds // 2],
        }
        rows.append(row | ({"peak / dense": peak[ticket] / peak["dense"]} if peak else {}))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--students", nargs="+", choices=STUDENTS, default=list(STUDENTS))
    parser.add_argument("--clustered", action="store_true", help="draw patches in blobs")
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
    rows = [row for name in options.students for row in measure(name, options)]
    facts = {"batch": options.batch_size, "rounds": options.rounds, "amp": options.amp}
    facts |= {"clustered": options.clustered, "torchcompile": options.torchcompile}
    report("Training step", rows, options.device, options.json, **facts)


if __name__ == "__main__":
    main()
