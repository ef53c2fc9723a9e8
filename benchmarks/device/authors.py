"""The code of the paper's authors, from a user's own copy of their repository: its networks are run here as they are.

Naming a folder runs what is in it. Their DeiT is loaded from that one file, its models unregistered, as today's timm
takes neither their entries nor two models of one name. What drives it is written here after what their training does:
the selector sees the mixed batch, with its graph; the student drops after embedding all patches; timm's mixup, soft
cross entropy and AdamW; in each step the loss is read, and the device waited for at its end. Autocast is to bfloat16,
as for all other candidates, and nothing is scaled (theirs: float16, scaled).
"""

import importlib.util
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import torch
from rounds import Step, synchronize
from timm.data import Mixup
from timm.loss import SoftTargetCrossEntropy
from torch import Tensor, nn

from dlth.tickets import Budget
from dlth.tickets.errors import InputError, shown

FILE = Path("deit") / "vision_transformer.py"
"""Where their DeiT is within their repository."""


def load(folder: Path) -> ModuleType:
    """Their file as a module, run. Raises InputError where there is none, or none that runs with this timm."""
    path = folder / FILE
    if not path.is_file():
        raise InputError(f"--authors {shown(folder)} is no copy of the authors' repository: it has no {FILE}")
    spec = importlib.util.spec_from_file_location("authors_vision_transformer", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of where they import from
            with mock.patch("timm.models.registry.register_model", lambda build: build):
                spec.loader.exec_module(module)
    except Exception as error:  # whatever a user's file may raise
        told = f"{type(error).__name__}: {error}"
        raise InputError(f"{shown(path)} does not run with the timm that is installed: {shown(told)}") from error
    if not hasattr(module, "VisionTransformer"):
        raise InputError(f"{shown(path)} has no VisionTransformer: it is not the authors' file")
    return module


def model_like(module: ModuleType, vit: Any, blocks: tuple[int, ...] = (), **options: Any) -> nn.Module:
    """Their network of the size of timm's `vit`, with its weights; patches may fall at `blocks`."""
    depth = len(vit.blocks)
    model: nn.Module = module.VisionTransformer(
        img_size=vit.patch_embed.img_size,
        patch_size=vit.patch_embed.patch_size,
        num_classes=vit.num_classes,
        embed_dim=vit.embed_dim,
        depth=depth,
        num_heads=vit.blocks[0].attn.num_heads,
        keep_rate=tuple(0.5 if block in blocks else 1 for block in range(depth)),  # below 1: the call says which
        **options,
    )
    model.load_state_dict(vit.state_dict())
    return model.to(vit.pos_embed.device)


def tokens_of(budget: Budget, blocks: Sequence[int], depth: int) -> tuple[int | None, ...]:
    """How many patches theirs keeps at each block, as many as ours; None at those that drop none.

    Of the rate per stage, a rounded root, theirs would keep one more patch now and then.
    """
    kept = dict(zip(blocks, budget.stage_tokens, strict=True))
    return tuple(kept.get(block) for block in range(depth))


def online_step(
    selector: nn.Module, student: nn.Module, images: Tensor, labels: Tensor, tokens: tuple[int | None, ...]
) -> Step:
    """A training step of theirs on tickets that the selector draws in the loop, of normalised images [B, 3, H, W]."""
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-5, weight_decay=0.05)
    mix = Mixup(mixup_alpha=0.8, cutmix_alpha=1.0, label_smoothing=0.1, num_classes=student.num_classes)
    criterion = SoftTargetCrossEntropy()
    selector.eval()
    student.train()

    def step() -> None:
        samples, targets = mix(images.clone(), labels)
        with torch.autocast(images.device.type, dtype=torch.bfloat16):
            selector(samples, tokens=tokens)
            student.all_idx_record = [block.idx_record for block in selector.blocks]
            loss = criterion(student(samples), targets)
        student.all_idx_record = None
        float(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        synchronize(images.device)

    return step
