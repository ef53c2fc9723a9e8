"""Which rankers there are, and how each is made from what a user asked for.

A new one is a file with a `Rule`, or with a class of its own, and a line in `RANKERS`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import nn

from dlth.tickets import Budget, SelectorInfo
from dlth.tickets.errors import InputError, shown
from dlth.training.models.class_attention import KEY, QUERY, QUERY_KEY, VALUE, Product
from dlth.training.models.frame import Frame
from dlth.training.models.registry import (
    build,
    check_family,
    grid_of,
    on_black_image,
    resolve,
    why_no_class_attention,
)
from dlth.training.models.weights import weights_digest
from dlth.training.models.weights_metadata import WeightsFile
from dlth.training.selectors.cls_attention import CLS_ATTENTION
from dlth.training.selectors.evit import Selector
from dlth.training.selectors.feature_norm import FEATURE_NORM
from dlth.training.selectors.gradient import GRADIENT
from dlth.training.selectors.patch_ranker import PatchRanker
from dlth.training.selectors.pool_attention import POOL_ATTENTION
from dlth.training.selectors.rollout import ROLLOUT
from dlth.training.selectors.score_ranker import Rule, ScoreRanker


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
        """The model, and where its weights are from; the same each time."""
        return self._loaded

    @cached_property
    def _loaded(self) -> tuple[nn.Module, str]:
        if self.weights is not None:
            return self.weights.build(self.model, **self.options), self.weights.path.name
        if self.seed is None:
            return build(self.model, pretrained=True, **self.options), "timm hub"
        torch.manual_seed(self.seed)
        return build(self.model, **self.options), f"random weights, seed {self.seed}"


Maker = Callable[[RankerSpec, torch.device], PatchRanker]
"""Makes a ranker of what was asked for, on the device."""


def evit(spec: RankerSpec, device: torch.device, product: Product = QUERY_KEY) -> Selector:
    """EViT's selector, which has seen a black image on its device.

    Raises:
        DlthError: weights, model, image size, blocks or rates that cannot serve
    """
    vit, source = spec.load()
    selector = Selector(
        vit,
        blocks=spec.blocks,
        fuse_tokens=spec.fuse_tokens,
        **{"stage_keep": None, **spec.rates},
        product=product,
        frame=Frame.of(vit, **spec.images),
        model=resolve(spec.model),
        source=source,
    )
    _check_weights(vit, source, selector.info.weights_sha256)
    on_black_image(selector.to(device).rank, selector.frame.size, device, spec.flags)
    return selector


def scored(rule: Rule) -> Maker:
    """What makes a ranker of one stage, which has seen a black image on its device, of a rule; raises as `evit`."""

    def make(spec: RankerSpec, device: torch.device) -> ScoreRanker:
        model, source = spec.load()
        vit = rule.check(model)
        asked = _of_one_stage(spec, grid_of(vit).num_patches)
        if asked.fuse_tokens:
            raise InputError("fused tokens are for rankers that drop patches (evit): leave the option out")
        blocks, depth = asked.blocks or (rule.block(vit),), len(vit.blocks)
        if len(blocks) != 1 or not 0 <= blocks[0] < depth:
            raise InputError(f"this ranker looks at one block, from 0 to {depth - 1}, got {shown(blocks)}")
        frame, digest = Frame.of(vit, **spec.images), weights_digest(vit)
        _check_weights(vit, source, digest)
        ranker = ScoreRanker(
            vit.eval().requires_grad_(False).to(device),
            rule,
            blocks[0],
            frame,
            Budget.of(frame.grid.num_patches, 1, **asked.rates),
            SelectorInfo(resolve(spec.model), digest, source, blocks),
            device,
        )
        on_black_image(ranker.select, frame.size, device, spec.flags)
        return ranker

    return make


RANKERS: dict[str, Maker] = {
    "evit": evit,
    "evit-kq": partial(evit, product=(KEY, QUERY)),
    "evit-qv": partial(evit, product=(QUERY, VALUE)),
    "cls-attention": scored(CLS_ATTENTION),
    "rollout": scored(ROLLOUT),
    "gradient": scored(GRADIENT),
    "pool-attention": scored(POOL_ATTENTION),
    "feature-norm": scored(FEATURE_NORM),
}
"""Each ranker's name, and what makes it."""


def default_ranker(model: nn.Module) -> tuple[str, str]:
    """Name of the ranker for a model for which nobody named one, and why it is not evit (empty if it is).

    Raises:
        InputError: a model of no family whose forward pass is known, which no ranker of this list takes
    """
    vit = check_family(model, "select")
    reason = why_no_class_attention(vit)
    if not reason:
        return "evit", ""
    name = "feature-norm" if getattr(vit, "attn_pool", None) is None else "pool-attention"
    return name, f"nobody named one, and evit cannot rank with this {type(vit).__name__}: {reason}"


def _of_one_stage(spec: RankerSpec, num_patches: int) -> RankerSpec:
    """What is asked of a ranker of one stage: what weights record of the stages in which they were trained to drop
    patches is not meant for it, but it keeps as many.
    """
    note = spec.weights.note if spec.weights is not None else None
    recorded = note.selection if note is not None else None
    if recorded is None:
        return spec
    blocks, fused, rate = recorded.blocks, recorded.fuse_tokens, recorded.stage_keep
    changes: dict[str, Any] = {"blocks": None} if spec.blocks == blocks else {}
    changes |= {"fuse_tokens": False} if spec.fuse_tokens == fused else {}
    if spec.rates.get("stage_keep") == rate:
        changes |= {"rates": {"tokens": Budget.from_stage_keep(rate, num_patches, len(blocks), fused).k}}
    return replace(spec, **changes)


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
