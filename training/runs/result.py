"""How a run ends: with a result, or in divergence."""

import json
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from dlth.tickets.errors import DamageError, DlthError, LimitError, MissingFileError, shown
from dlth.tickets.format.jsontext import strict
from dlth.training.distributed.signals import EXIT_RESUMABLE
from dlth.training.run_files import write_text
from dlth.training.runs.runlog import RESULT
from dlth.training.runs.sealed_json import read_sealed, sealed

Measured = Annotated[float, Field(ge=0, le=1e30)]
"""What is measured or counted in a run: readers may add and multiply it."""
PACKAGES = ("dlth", "torch", "torchvision", "timm", "numpy", "zarr")


def versions() -> dict[str, str]:
    """Versions of everything that takes part in a result."""
    return {name: version(name) for name in PACKAGES} | {"python": platform.python_version()}


@dataclass(frozen=True)
class RunResult:
    """One training of one arm with one seed; result.json is this, once the run is finished.

    status: "finished", or "stopped" when a signal asked for it (then a checkpoint holds the rest)
    arm, mode: what was trained on; the mode is empty for the dense arm, and for the random one if it is "projected"
    k, keep, num_patches: patches that were trained on, as asked for, and in all; evaluations drop to k
    k_last: patches kept in the last step, more than k after a dense finish; None in results of older versions
    how, patch_size: how the student leaves patches out, and their side in pixels
    tokens, flops: tokens that its model's first blocks compute for an image of k patches, and its operations
    tickets, val_tickets: identities of the ticket files, empty where there is none
    tickets_are, val_tickets_are: what those tickets are in words (selector, control, what they were made from)
    val_view, val_tickets_view: how validation images are seen, and how their tickets' selector saw them
    selector: the online mode's: model, digest and source of its weights, blocks, rates; of a selector's own training,
        its blocks and rates; else empty
    mask: identity of the mask of weights, empty for an unpruned model; prunable_weights, remaining_weights: what it is
        about, and how many of those are not masked; None without one
    rewind_weights: digest of the weights that it kept for others to begin with; empty where it kept none
    initial_weights: digest of the weights that it began with, before any was masked (`tensors_digest`); empty in
        results of older versions
    evaluation: weights ("model", "ema") -> arm -> top1, top5, loss, images, tokens
    train_images, train_tokens, train_flops: what training has shown and computed in all, as the log's epochs count it;
        None in results of older versions
    best: epoch, metric and value of model_best.safetensors, empty without validation
    train_loss: mean loss of the last whole epoch, None where no step of it had a number as loss
    hidden_share: mean share of the kept patches' area that showed fill or noise, over the run; None without a step
    whole_images: how often an image was trained on all patches as it, or the one it mixed with, had no ticket
    device, versions: who computed it: the device's name, packages, and of a GPU what decides its kernels
    peak_memory_bytes: most that a GPU's allocator held in the run, or that the process held on a CPU
    throughput: images and tokens per second over all ranks, seconds in data and in compute, over the whole run;
        step_seconds: median of what a step computed, over the steps since the run was last started
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True)

    status: Literal["finished", "stopped"]
    arm: str
    mode: str
    model: str
    k: int
    keep: str
    num_patches: int
    tickets: str
    val_tickets: str
    seed: int
    epochs: int
    steps: int
    data: dict[str, Any]
    device: str
    world_size: int
    parameters: int
    peak_memory_bytes: int
    throughput: dict[str, Measured]
    evaluation: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    best: dict[str, Any] = field(default_factory=dict)
    how: str = "sparse"
    patch_size: int | None = None
    tokens: int | None = None
    flops: int | None = None
    train_images: int | None = None
    train_tokens: int | None = None
    train_flops: Measured | None = None
    train_loss: float | None = None
    hidden_share: float | None = None
    whole_images: int = 0
    k_last: int | None = None
    tickets_are: str = ""
    val_tickets_are: str = ""
    val_view: str = ""
    val_tickets_view: str = ""
    selector: dict[str, Any] = field(default_factory=dict)
    mask: str = ""
    prunable_weights: int | None = None
    remaining_weights: int | None = None
    rewind_weights: str = ""
    initial_weights: str = ""
    weights_sha256: str = ""
    config_sha256: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=versions)

    @property
    def exit_code(self) -> int:
        """0 when finished; `EXIT_RESUMABLE` when stopped on request."""
        return 0 if self.status == "finished" else EXIT_RESUMABLE

    def to_json(self) -> dict[str, Any]:
        """The result as JSON holds it."""
        return asdict(self)


MAX_RESULT_BYTES = 16 << 20
"""A result has six kilobytes, and a number for each corrupt image at most."""
_CHECK: TypeAdapter[RunResult] = TypeAdapter(RunResult)


def read_result(path: Path) -> RunResult | None:
    """The result that a result.json holds; None if there is none, or one that cannot be read or is damaged."""
    try:
        return _CHECK.validate_json(json.dumps(read_sealed(path, MAX_RESULT_BYTES)[0]))
    except (MissingFileError, DamageError, LimitError, ValidationError):
        return None


def write_result(folder: Path, result: RunResult) -> None:
    """Write result.json, the mark of a finished run."""
    write_text(folder / RESULT, json.dumps(sealed(strict(result.to_json())), indent=2, allow_nan=False) + "\n")


class DivergedError(DlthError, ArithmeticError):
    """Training has lost its numbers: the loss, the gradient or the weights are NaN or infinite."""

    code = "E_DIVERGED"


def diverged(
    out: Path, rank: int, step: int, bad_steps: int, loss: float, grad_norm: float, keys: Sequence[str]
) -> DivergedError:
    """Write down the batch on which a run diverged, and make the error that says so.

    Args:
        out: the run's folder; each rank writes ``diverged-rank<R>.json`` there
        rank, step: where; together with the seed they name every random number of the step
        bad_steps: how many steps in a row had a loss or a gradient that is not finite
        loss, grad_norm: the last loss, and the norm of its gradient
        keys: this rank's images whose loss was no number
    """
    out.mkdir(parents=True, exist_ok=True)
    record = {
        "step": step,
        "rank": rank,
        "bad_steps": bad_steps,
        "loss": str(loss),
        "grad_norm": str(grad_norm),
        "keys": list(keys),
    }
    write_text(out / f"diverged-rank{rank}.json", json.dumps(record, indent=1))
    named = ", ".join(shown(key, 60) for key in keys[:10]) or "none of this rank's"
    more = f" and {len(keys) - 10} more" if len(keys) > 10 else ""
    return DivergedError(
        f"the loss was {loss} and the norm of its gradient {grad_norm} for {bad_steps} steps in a row, up to step"
        f" {step}; the last batch's images without a number: {named}{more} (all in diverged-rank{rank}.json;"
        " those that a selector in the loop cannot score are among them). The"
        " checkpoints hold the last good weights; a lower --lr, --clip-grad 1 or --amp-dtype bfloat16 may help."
    )
