"""What may be expected by GPU class, as arithmetic: counted operations over datasheets' rates; nothing is measured.

    python benchmarks/gpu_classes.py --write

Operations are counted on torch's meta device, which computes nothing: of a forward, of a training step (forward and
backward; two per multiply-add) and of the ranking of all patches. Datasheets' rates are of dense products of bfloat16,
or of float16 where tensor cores have no bfloat16. No training step reaches them; `SHARE` of them is assumed. `--write`
puts the tables into docs/gpu.md, between two marks.
"""

import argparse
import math
from dataclasses import dataclass
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
SHARE = 0.4
"""Of the datasheet's rate: an assumption. `make gpu` measures what a machine reaches."""
CORE_MICROSECONDS = {"crop": 1_400, "deit": 2_447}
"""Of one core for an image: docs/benchmarks.md, two shared cores; others differ."""


@dataclass(frozen=True)
class Gpu:
    """A datasheet: 10^12 operations per second of dense products, GB/s and GB of memory; `note`: what is unsure."""

    name: str
    tflops: float
    bandwidth: int
    memory: int
    note: str = ""


GPUS = (
    Gpu("T4", 65, 320, 16, "float16"),
    Gpu("V100 SXM2", 125, 900, 32, "float16; 16 GB as well"),
    Gpu("RTX 3090", 71, 936, 24),
    Gpu("RTX 4090", 165, 1_008, 24),
    Gpu("A100 SXM", 312, 2_039, 80, "40 GB: 1,555 GB/s"),
    Gpu("H100 SXM", 989, 3_350, 80, "PCIe: less"),
    Gpu("H200 SXM", 989, 4_800, 141),
    Gpu("B200", 2_250, 8_000, 180, "unsure: sources differ on memory and bandwidth"),
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
    """What a training step in float32 holds: weights with gradients and AdamW's moments, and what backward needs of
    images.
    """
    student = make_student(build(model).train())
    weights = sum(parameter.numel() for parameter in student.parameters())
    row: dict[str, Any] = {"model": name, "weights and AdamW, GB": 16 * weights / 1e9}
    for keep in ("1", MIDDLE):
        row[f"MiB/image, keep {keep}"] = kept = round(kept_of_image(student, keep), 1)
        row[f"256 images, keep {keep}, GB"] = 256 * kept * 2**20 / 1e9
    return row


def kept_of_image(student: Student, keep: str) -> float:
    """MiB that autograd holds of one image in float32, counted on fake tensors, which have shapes and no numbers."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        image, patches = torch.randn(1, 3, SIDE, SIDE), torch.arange(num_kept(keep, PATCHES))[None]
        return kept_for_backward(lambda: student(image, None if keep == "1" else patches))


def images_per_second(gpu: Gpu, gflop_per_image: float, share: float) -> float:
    """How many images at that share of the datasheet's rate."""
    return share * gpu.tflops * 1e3 / gflop_per_image


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


def class_rows(model: str, counts: dict[tuple[str, str], Counts]) -> list[dict[str, Any]]:
    """Images per second of a training step by GPU class, and what must reach the GPU for it."""
    rows = []
    for gpu in GPUS:
        row: dict[str, Any] = {"GPU": gpu.name, "dense, 100 %": _told(gpu, counts[model, "1"].step, 1)}
        row |= {f"keep {keep}, 40 %": _told(gpu, counts[model, keep].step, SHARE) for keep in KEEPS}
        rate = images_per_second(gpu, counts[model, MIDDLE].step, SHARE)
        cores = (f"{math.ceil(rate * micro / 1e6):,}" for micro in CORE_MICROSECONDS.values())
        row["cores: crop / deit"] = " / ".join(cores)
        whole = rate * 3 * SIDE**2 / 1e9
        row["to the GPU, GB/s: whole / cut"] = f"{whole:.2f} / {whole * num_kept(MIDDLE, PATCHES) / PATCHES:.2f}"
        rows.append(row)
    return rows


def tables() -> str:
    """All tables as Markdown."""
    counts = {(name, keep): counts_of(model, keep) for name, model in MODELS.items() for keep in KEEPS}
    sheets = [
        {"GPU": gpu.name, "TFLOP/s": gpu.tflops, "GB/s": gpu.bandwidth, "GB": gpu.memory, "note": gpu.note}
        for gpu in GPUS
    ]
    parts = ["Counted operations, 224 px, patches of 16:", markdown(counted_rows(counts))]
    parts += ["Datasheets (dense bfloat16, as far as they are known here):", markdown(sheets)]
    memory = [memory_row(name, model) for name, model in MODELS.items()]
    parts += ["Memory of a training step in float32, optimizer included:", markdown(memory)]
    for model in MODELS:
        parts += [
            f"{model}, a training step, images/s; cores and bytes for keep {MIDDLE} at 40 %:",
            markdown(class_rows(model, counts)),
        ]
    return "\n\n".join(parts)


def _told(gpu: Gpu, gflop_per_image: float, share: float) -> str:
    """To two digits: more would be claimed than is known."""
    rate = images_per_second(gpu, gflop_per_image, share)
    digits = 1 - math.floor(math.log10(rate))
    return f"{round(rate, digits):,.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="put the tables into docs/gpu.md")
    options = parser.parse_args()
    text = tables()
    print(text)
    if options.write:
        put_into(PAGE, text, "classes")


if __name__ == "__main__":
    main()
