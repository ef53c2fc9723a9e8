"""Which rankers there are, and how each is made from what a user asked for."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from dlth.tickets.errors import InputError, shown
from dlth.training.models.frame import Frame
from dlth.training.models.registry import build, default_blocks, on_black_image, resolve
from dlth.training.models.weights_metadata import WeightsFile
from dlth.training.selectors.evit import Selector
from dlth.training.selectors.patch_ranker import PatchRanker


@dataclass(frozen=True)
class RankerSpec:
    """What is asked of a ranker, by whichever flags, settled with what its weights record.

    model, options: the model, and what `registry.build` takes besides
    weights: a file; None for timm's released ones, or, with a `seed`, for random ones
    images: arguments of `Frame.of`; None is the model's own
    blocks, fuse_tokens, rates: as `Selector` takes them; no blocks are the paper's
    flags: where the model's arguments are said, for messages
    """

    model: str
    options: Mapping[str, Any]
    weights: WeightsFile | None
    images: Mapping[str, Any]
    blocks: tuple[int, ...] | None
    fuse_tokens: bool
    rates: Mapping[str, Any]
    flags: str
    seed: int | None = None

    def load(self) -> tuple[nn.Module, str]:
        """The model, and where its weights are from."""
        if self.weights is not None:
            return self.weights.build(self.model, **self.options), self.weights.path.name
        if self.seed is None:
            return build(self.model, pretrained=True, **self.options), "timm hub"
        torch.manual_seed(self.seed)
        return build(self.model, **self.options), f"random weights, seed {self.seed}"


def evit(spec: RankerSpec, device: torch.device) -> Selector:
    """EViT's selector, which has seen a black image on its device.

    Raises:
        DlthError: weights, model, image size, blocks or rates that cannot serve
    """
    vit, source = spec.load()
    selector = Selector(
        vit,
        blocks=spec.blocks or default_blocks(vit),
        fuse_tokens=spec.fuse_tokens,
        **spec.rates,
        frame=Frame.of(vit, **spec.images),
        model=resolve(spec.model),
        source=source,
    )
    _check_weights(vit, source, selector.info.weights_sha256)
    on_black_image(selector.to(device).rank, selector.frame.size, device, spec.flags)
    return selector


RANKERS: dict[str, Callable[[RankerSpec, torch.device], PatchRanker]] = {"evit": evit}
"""Each ranker's name, and what makes it."""


def _check_weights(vit: nn.Module, source: str, digest: str) -> None:
    """Raises InputError for weights that hold NaN or infinity, by which no patch can be ranked, by name."""
    bad = {name: ~tensor.isfinite() for name, tensor in vit.state_dict().items() if tensor.is_floating_point()}
    bad = {name: mask for name, mask in bad.items() if mask.any()}
    if bad:
        name, mask = next(iter(bad.items()))
        raise InputError(
            f"the selector's weights ({shown(source)}, sha256 {digest[:16]}) hold values that are no numbers:"
            f" {shown(name)} has {int(mask.sum()):,} of {mask.numel():,} ({len(bad)} tensors in all). No patch can be"
            " ranked by them: take another checkpoint"
        )
