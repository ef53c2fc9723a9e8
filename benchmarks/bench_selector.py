"""The selector against a dense forward pass, and against itself without the early exit.

    python benchmarks/bench_selector.py --batch-size 32 --rounds 7 --json selector.json

DeiT-S at 224 px, random weights, selection blocks 3, 6, 9, float32 unless `--amp`. "Whole forward" is the selector run
to the end (`Selector.logits`): the same attention, survivors' queries alone, but all blocks. The authors' own selector
counts 5.99 / 6.89 / 7.85 / 7.98 GFLOP an image at stage keep 0.7 / 0.8 / 0.888 / 0.9; `bench_device.py --authors`
runs it.
"""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from rounds import gflop, report, spread, time_rounds

from dlth.training import Selector
from dlth.training.models.registry import build

STAGE_KEEPS = ("0.9", "0.888", "0.8", "0.7")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="deit_small")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--threads", type=int, default=1, help="of a CPU")
    parser.add_argument("--amp", action="store_true", help="bf16 autocast (scores stay float32)")
    parser.add_argument(
        "--torchcompile", metavar="BACKEND", help="compile all candidates with this backend, e.g. inductor"
    )
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    torch.manual_seed(0)
    torch.set_num_threads(options.threads)
    vit = build(options.model).eval().to(options.device)
    images = torch.randn(options.batch_size, 3, 224, 224, device=options.device)
    one = images[:1]
    selectors = {rate: Selector(vit, rate) for rate in STAGE_KEEPS}
    backend = options.torchcompile
    wrap = partial(torch.compile, backend=backend, dynamic=False) if backend else (lambda function: function)
    functions: dict[str, Callable[[torch.Tensor], object]] = {"dense": vit}
    for rate, selector in selectors.items():
        functions |= {f"rank {rate}": selector.rank, f"whole {rate}": selector.logits}
    with torch.no_grad(), torch.autocast(options.device.type, dtype=torch.bfloat16, enabled=options.amp):
        cost = {name: gflop(partial(function, one)) for name, function in functions.items()}
        candidates = {name: partial(wrap(function), images) for name, function in functions.items()}
        times = time_rounds(candidates, options.rounds, options.device)
    rows = [
        {
            "stage keep": rate,
            "tokens": " ".join(map(str, selectors[rate].budget.stage_tokens)),
            "GFLOP/image": cost[f"rank {rate}"],
            "FLOPs / dense": cost[f"rank {rate}"] / cost["dense"],
            "time / dense": spread(times, f"rank {rate}", "dense"),
            "FLOPs / whole forward": cost[f"rank {rate}"] / cost[f"whole {rate}"],
            "time / whole forward": spread(times, f"rank {rate}", f"whole {rate}"),
            "images/s": options.batch_size / sorted(times[f"rank {rate}"])[options.rounds // 2],
        }
        for rate in STAGE_KEEPS
    ]
    facts = {"model": options.model, "batch": options.batch_size, "rounds": options.rounds}
    facts |= {"amp": options.amp, "torchcompile": options.torchcompile, "dense GFLOP/image": round(cost["dense"], 3)}
    report("Selector", rows, options.device, options.json, **facts)


if __name__ == "__main__":
    main()
