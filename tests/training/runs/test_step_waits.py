"""A step waits for its device once: nothing else is read from it, and nothing is copied to it on the way.

Steps are run on PyTorch's `meta` device, whose tensors have shapes and no numbers: whoever asks one for a number, or
for as many rows as are true, is refused there where a GPU would be waited for.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from makers.masks import mask_file
from makers.runs import KWARGS
from makers.tickets import write_labels
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dlth.data.loading.batch import Batch
from dlth.training.device.precision import Precision
from dlth.training.distributed.process_group import World
from dlth.training.models.registry import build
from dlth.training.pruning.weight_masks import WeightMasks
from dlth.training.reporter import Reporter
from dlth.training.runs.checkpoint import write_tensors
from dlth.training.runs.optim import make_ema, make_optimizer
from dlth.training.runs.setup import Parts, prepare
from dlth.training.runs.step import Stepper, StepResult
from dlth.training.selectors.evit import Selector
from dlth.training.settings.layering import layered
from dlth.training.settings.selector_config import SelectorTrainConfig
from dlth.training.settings.train_config import TrainConfig

MakeRun = Callable[..., TrainConfig]
CPU, META = torch.device("cpu"), torch.device("meta")
SHORT: dict[str, Any] = {"epochs": 1, "warmup_epochs": 0, "val": None, "val_tickets": None}
MOVING: dict[str, Any] = {"mixup": 0.8, "cutmix": 1.0, "mix_group": 2, "reprob": 0.5, "smoothing": 0.1}
HALVES: dict[str, Any] = {"grad_accum_steps": 2, "batch_size": 4}
VIT, LVVIT = KWARGS | {"depth": 2}, KWARGS | {"depth": 2, "embed_dim": 24, "stem_width": 8}
RESNET = {"layers": (1, 1, 1, 1), "channels": (8, 8, 8, 16)}
RUNS: dict[str, dict[str, Any]] = {
    "ticket, average, accumulation, clipping": MOVING | HALVES | {"model_ema": True, "clip_grad": 1.0},
    "random": {"arm": "random"} | MOVING,
    "dense": {"arm": "dense"} | MOVING,
    "rotary": {"model": "eva02_tiny_patch14_224"},
    "DINOv3": {"model": "vit_small_patch16_dinov3"},
    "zero, batch norms": {"model": "resnet18", "model_kwargs": RESNET},
    "small-dense": {"how": "small-dense", "model_kwargs": VIT | {"dynamic_img_size": True}},
    "LV-ViT, MixToken, token labels": {"model": "lvvit_t", "model_kwargs": LVVIT, "mix_token": 1.0, "mix_group": 2},
    "mask": MOVING | {"opt": "sgd"},
    "selector in the loop": MOVING | {"mode": "online", "selector": "vit_tiny_patch16_224", "selector_kwargs": VIT},
    "selector in training": MOVING | {"blocks": (0, 1), "fuse_tokens": True},
}


class Watch(TorchDispatchMode):
    """Counts what has to wait: numbers asked of a tensor, and tensors that go from one device to another.

    A tensor without axes is no copy: it travels as an argument of a kernel.
    """

    def __init__(self) -> None:
        super().__init__()
        self.read, self.copied = 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, Tensor) and leaf.ndim]
        self.read += func is torch.ops.aten._local_scalar_dense.default
        self.copied += len({tensor.device for tensor in tensors}) > 1
        return result


def prepared(make_run: MakeRun, name: str, tmp_path: Path) -> Parts:
    """The run of that name, with the files that it wants beside shards and tickets."""
    options: dict[str, Any] = SHORT | RUNS[name]
    if "labels" in name:
        options["token_labels"] = str(write_labels(make_run().data, tmp_path / "labels.zarr").path)
    if name == "mask":
        mask_file(
            build("vit_tiny_patch16_224", num_classes=4, img_size=32, **VIT), "vit_tiny_patch16_224", tmp_path / "m"
        )
        options["mask"] = str(tmp_path / "m")
    if "loop" in name:
        weights = build("vit_tiny_patch16_224", num_classes=4, img_size=32, **VIT).state_dict()
        write_tensors(tmp_path / "selector.safetensors", weights)
        options |= {"selector_checkpoint": str(tmp_path / "selector.safetensors"), "selector_blocks": (0, 1)}
    config = make_run(**options) if "training" not in name else _selectors(make_run(), options)
    return prepare(config, World(0, 1, CPU), Reporter())


def _selectors(config: TrainConfig, options: dict[str, Any]) -> SelectorTrainConfig:
    """The same run as that of a selector in training."""
    names = ("data", "out", "model", "model_kwargs", "img_size", "batch_size", "lr", "workers", "device")
    own = {name: value for name, value in options.items() if name in SelectorTrainConfig.names()}
    return layered({name: getattr(config, name) for name in names} | own, kind=SelectorTrainConfig)


def on_meta(parts: Parts) -> Stepper:
    """A run's stepper with all that it has on the `meta` device."""
    config, model, select = parts.config, parts.student.model, None
    ema = make_ema(model, config)
    for module in (model, *([ema.module] if ema is not None else [])):
        module.to(META)
    optimizer = make_optimizer(model, config, config.batch_size)
    masks = None if parts.mask is None else WeightMasks(model, parts.mask.masks)
    if parts.online is not None:
        assert isinstance(parts.online.selector, Selector)
        parts.online.selector.to(META)
        select = parts.online.ranking(parts.pixels)
    world = World(0, 1, META)
    stepper = Stepper(parts.student, optimizer, ema, config, world, parts.pixels, 4, select, 1, masks)
    stepper.precision = Precision(None, CPU)  # the meta device has no autocast that could be switched off
    return stepper


def stepped(stepper: Stepper, batches: Sequence[Batch], parts: Parts, watch: Watch) -> StepResult:
    """A step on batches that lie on its device."""
    there = [batch.to(stepper.world.device) for batch in batches]
    with watch:
        return stepper(there, 0, parts.budget(0, 0))


@pytest.mark.parametrize("name", RUNS)
def test_a_step_reads_its_device_once_and_copies_nothing_to_it(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Forward, backward, norm, clipping, optimizer, masks and average: one read, of three numbers, answered here."""
    asked: list[list[Tensor]] = []

    def read_later(values: list[Tensor]) -> Callable[[], list[Tensor]]:
        asked.append(values)
        return lambda: [torch.ones(value.shape) for value in values]

    monkeypatch.setattr("dlth.training.runs.step.read_later", read_later)
    parts, watch = prepared(make_run, name, tmp_path), Watch()
    stepper = on_meta(parts)
    for step, batches in enumerate(parts.train_steps(0, 0)):
        # the first sends means and deviations of pixels once and for all
        assert stepped(stepper, batches, parts, watch if step else Watch()).moved
    assert [[value.shape for value in values] for values in asked] == [[torch.Size([3])]] * 3
    assert watch.copied == 0


def test_sparse_swin_reads_its_patches_once_a_forward_besides(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They say how many tokens its windows hold, and how many are left when tokens merge."""
    swin = {"patch_size": 2, "window_size": 4, "embed_dim": 12, "depths": [2, 2], "num_heads": (2, 2)}
    options = {"model": "swin_tiny_patch4_window7_224", "model_kwargs": swin, "how": "sparse", "drop_path": 0.2}
    parts = prepare(make_run(**SHORT, **options), World(0, 1, CPU), Reporter())
    batches = next(parts.train_steps(0, 0))
    patches, asked = [batch.patches for batch in batches], []

    def read(there: Tensor) -> Tensor | None:
        asked.append(there)
        return patches[len(asked) - 1]

    monkeypatch.setattr("dlth.training.models.sparse_swin.read", read)
    monkeypatch.setattr("dlth.training.runs.step.read_later", lambda values: lambda: [torch.ones(3)])
    stepper, watch = on_meta(parts), Watch()
    parts.pixels(batches[0].images.to(META))
    assert stepped(stepper, batches, parts, watch).moved
    assert (len(asked), watch.copied) == (1, 0)


def test_float16s_scaler_is_read_only_after_a_step_that_did_not_move(make_run: MakeRun) -> None:
    """A scale that overflows is asked for once, to be told of, and halved; a step that moves asks for nothing."""
    parts = prepare(make_run(amp=True, amp_dtype="float16", opt="sgd", **SHORT), World(0, 1, CPU), Reporter())
    batches = next(parts.train_steps(0, 0))
    stepper, watches = parts.stepper, (Watch(), Watch())
    stepper.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**60)
    first = stepped(stepper, batches, parts, watches[0])
    assert (first.moved, first.rescaled, stepper.scaler.get_scale()) == (False, True, 2.0**59)
    stepper.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**4)
    assert stepped(stepper, batches, parts, watches[1]).moved
    assert [watch.read for watch in watches] == [1, 0]
