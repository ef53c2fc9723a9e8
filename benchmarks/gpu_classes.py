"""What may be expected by GPU class: datasheets' rates over counted operations, beside what others measured.

    python benchmarks/gpu_classes.py --write

Operations are counted on torch's meta device, which computes nothing: of a forward, of a training step (forward and
backward; two per multiply-add) and of the ranking of all patches. Datasheets' rates are of dense products of bfloat16,
or of float16 where tensor cores have no bfloat16: a bound. What others published of dense training stands beside it,
and a range is assumed where nothing was found. Nothing is measured here. `--write` puts the tables into docs/gpu.md,
between two marks. GB and MB are decimal.
"""

import argparse
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from device.page import put_into
from memory import kept_for_backward
from rounds import gflop, markdown
from torch import Tensor
from torch._subclasses import FakeTensorMode

from dlth.tickets.ranking.budget import num_kept
from dlth.training import Selector, make_student
from dlth.training.models.registry import build, outline
from dlth.training.models.student import Student

PAGE = Path(__file__).parents[1] / "docs" / "gpu.md"
MODELS = {"DeiT-T": "deit_tiny", "DeiT-S": "deit_small", "DeiT-B": "deit_base"}
KEEPS = ("1", "0.9", "0.7", "0.5")
PATCHES, SIDE, MIDDLE = 196, 224, "0.7"
Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Gpu:
    """A datasheet: 10^12 operations per second of dense products, GB/s, and GB of memory as it is sold by.

    `reached`: images/s of a dense step by model, one or the lowest and highest, as `note` says who published. Models
    without: none was found. A GPU without any: `assumed` shares of the rate, an assumption.
    """

    name: str
    tflops: float
    bandwidth: int
    memory: int
    note: str
    reached: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    assumed: tuple[float, float] = (0.1, 0.4)


FASTEST = (0.05, 0.25)
"""Assumed of what is as fast as an H100, or faster: about what was published of that."""
TIMM = {"DeiT-T": (2_291,), "DeiT-S": (1_054,), "DeiT-B": (391,)}
VMAMBA = {"DeiT-S": (2_404,), "DeiT-B": (1_032,)}
NVSUBQUADRATIC = {"DeiT-S": (1_608, 8_003)}

GPUS = (
    Gpu("T4", 65, 320, 16, "assumed; float16"),
    Gpu("RTX 3090", 71, 936, 24, "timm", TIMM),
    Gpu("RTX 4090", 165, 1_008, 24, "assumed"),
    Gpu("A100 SXM", 312, 2_039, 80, "VMamba; 40 GB: 1,555 GB/s", VMAMBA),
    Gpu("H100 SXM", 989, 3_350, 80, "nvSubquadratic; PCIe: less", NVSUBQUADRATIC),
    Gpu("H200 SXM", 989, 4_800, 141, "assumed", assumed=FASTEST),
    Gpu("B200", 2_250, 8_000, 180, "assumed; sources differ on memory and bandwidth", assumed=FASTEST),
)


@dataclass(frozen=True)
class Counts:
    """Operations of one image in billions: forward, training step, and ranking of all patches (0 where none)."""

    forward: float
    step: float
    ranking: float


def counts_of(model: str, keep: str) -> Counts:
    """Of the model on the share `keep` of its patches."""
    vit: Any = outline(model)
    student, image = make_student(vit.train()), torch.empty(1, 3, SIDE, SIDE, device="meta")
    patches = None if keep == "1" else torch.arange(num_kept(keep, PATCHES), device="meta")[None]

    def step() -> None:
        logits = student(image, patches)
        assert isinstance(logits, Tensor)
        logits.sum().backward()

    forward, whole = gflop(lambda: student(image, patches)), gflop(step)
    ranking = 0.0 if keep == "1" else gflop(lambda: Selector(vit.eval(), None, keep=keep).rank(image))
    return Counts(forward, whole, ranking)


def memory_row(name: str, model: str) -> dict[str, Any]:
    """GB that a training step in float32 holds: weights with gradients and AdamW's moments, and what backward needs of
    256 images.
    """
    student = make_student(build(model).train())
    weights = sum(parameter.numel() for parameter in student.parameters())
    row: dict[str, Any] = {"model": name, "weights and AdamW, GB": 16 * weights / 1e9}
    return row | {f"256 images, keep {keep}, GB": 256 * kept_of_image(student, keep) / 1e9 for keep in ("1", MIDDLE)}


def kept_of_image(student: Student, keep: str) -> float:
    """Bytes that autograd holds of one image in float32, counted on fake tensors, which have shapes and no numbers."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        image, patches = torch.randn(1, 3, SIDE, SIDE), torch.arange(num_kept(keep, PATCHES))[None]
        return 2**20 * kept_for_backward(lambda: student(image, None if keep == "1" else patches))


def counted_rows(counts: dict[tuple[str, str], Counts]) -> list[dict[str, Any]]:
    """Operations by model and keep."""
    return [
        {
            "model": model,
            "keep": keep,
            "forward, GFLOP/image": each.forward,
            "step, GFLOP/image": each.step,
            "step / dense": each.step / counts[model, "1"].step,
            "ranking, GFLOP/image": each.ranking or "",
        }
        for (model, keep), each in counts.items()
    ]


def class_row(gpu: Gpu, dense: Mapping[str, float]) -> dict[str, Any]:
    """Images per second of a dense step, by model, from its 10^9 operations an image: the bound, and what to expect."""
    bounds = {model: 1e3 * gpu.tflops / gflop for model, gflop in dense.items()}
    if gpu.reached:
        reached = [gpu.reached.get(model, ()) for model in bounds]
        shares = [[rate / bound for rate in rates] for rates, bound in zip(reached, bounds.values(), strict=True)]
    else:
        reached = [tuple(_two_digits(share * bound) for share in gpu.assumed) for bound in bounds.values()]
        shares = [list(gpu.assumed)]
    return {
        "GPU": gpu.name,
        "TFLOP/s": gpu.tflops,
        "GB/s": gpu.bandwidth,
        "GB": gpu.memory,
        "at 100 %, images/s: T / S / B": " / ".join(f"{_two_digits(bound):,}" for bound in bounds.values()),
        "reached or assumed, images/s: T / S / B": " / ".join(_span(f"{rate:,}" for rate in each) for each in reached),
        "share, %": " / ".join(_span(f"{100 * share:.0f}" for share in each) for each in shares),
        "by": gpu.note,
    }


def text(counted: Rows, memory: Rows) -> str:
    """All tables as Markdown."""
    dense = {row["model"]: float(row["step, GFLOP/image"]) for row in counted if row["keep"] == "1"}
    parts = ["Counted operations, 224 px, patches of 16:", markdown(counted)]
    parts += ["Memory of a training step in float32, optimizer included:", markdown(memory)]
    parts += ["A dense training step by GPU (DeiT-T / S / B):", markdown([class_row(gpu, dense) for gpu in GPUS])]
    return "\n\n".join(parts)


def _span(told: Iterable[str]) -> str:
    return " to ".join(told) or "–"


def _two_digits(rate: float) -> int:
    """More would be claimed than is known."""
    return int(round(rate, 1 - math.floor(math.log10(rate))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="put the tables into docs/gpu.md")
    options = parser.parse_args()
    counts = {(name, keep): counts_of(model, keep) for name, model in MODELS.items() for keep in KEEPS}
    tables = text(counted_rows(counts), [memory_row(name, model) for name, model in MODELS.items()])
    print(tables)
    if options.write:
        put_into(PAGE, tables, "classes")


if __name__ == "__main__":
    main()
