"""Which models there are, what they are called, and which of them can select or drop patches.

The only place that asks timm to build a model. Whether a model can serve is decided from what it is (classes of the
model, its blocks and its attention), never from its name, and decided once, when a `Selector` or `TicketViT` is made: a
model whose attention or position embedding would be computed wrongly must be refused, since nothing would look broken.
"""

import difflib
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import timm
import timm.data
import torch
from timm.layers import to_2tuple
from timm.models import get_pretrained_cfg
from timm.models.deit import VisionTransformerDistilled
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.utils.flop_counter import FlopCounterMode

from dlth.tickets.errors import DlthError, InputError, MismatchError, shown
from dlth.tickets.ranking.grid import Grid
from dlth.training.models.class_attention import unsupported
from dlth.training.models.pretrained import ADVICE
from dlth.training.models.pretrained import source as pretrained_source
from dlth.training.models.rotary_table import keep_table

Result = TypeVar("Result")
ViT = VisionTransformer | Eva
"""The two families that take tickets; distilled DeiT is one of the first."""

WIDTH_576 = {"embed_dim": 576, "num_heads": 9}
"""The paper's DeiT between small (384) and base (768)."""

FRIENDLY: dict[str, tuple[str, dict[str, int]]] = {
    **{f"deit_{size}": (f"deit_{size}_patch16_224.fb_in1k", {}) for size in ("tiny", "small", "base")},
    "deit_576": ("deit_small_patch16_224", WIDTH_576),
    **{
        f"deit_{size}_distilled": (f"deit_{size}_distilled_patch16_224.fb_in1k", {})
        for size in ("tiny", "small", "base")
    },
    **{f"deit3_{size}": (f"deit3_{size}_patch16_224.fb_in1k", {}) for size in ("small", "medium", "base", "large")},
    **{
        f"vit_{size}": (f"vit_{size}_patch16_224.augreg_in21k_ft_in1k", {})
        for size in ("tiny", "small", "base", "large")
    },
    **{f"dinov2_{size}": (f"vit_{size}_patch14_reg4_dinov2.lvd142m", {}) for size in ("small", "base", "large")},
    **{f"lvvit_{size}": (f"lvvit_{size[0]}", {}) for size in ("tiny", "small", "medium", "large")},
}
"""Friendly name -> timm's name (with the tag of its weights) and what is built differently."""

WHAT_CAN = (
    "What can: timm's VisionTransformer, distilled DeiT and Eva models, and LV-ViT, such as deit_small, vit_base,"
    " deit3_base or lvvit_small"
)
DROPS_TOO = "; in training and evaluation, --how sparse also takes Swin V1 and V2"


def resolve(name: str) -> str:
    """timm's name of a model, for a friendly or a timm name; raises InputError with the nearest names otherwise."""
    if name in FRIENDLY:
        return FRIENDLY[name][0]
    if timm.is_model(name):
        _check_tag(name)
        return name
    near = difflib.get_close_matches(name, [*FRIENDLY, *timm.list_models()], n=4)
    hint = f"did you mean {', '.join(near)}?" if near else f"friendly names: {', '.join(FRIENDLY)}."
    raise InputError(f"there is no model called {shown(name)!r}; {hint} timm.list_models() lists all others.")


def _check_tag(name: str) -> None:
    """Refuse a tag of weights that timm does not know for the model."""
    model, dot, tag = name.partition(".")
    known = [full.partition(".")[2] for full in timm.list_models(f"{model}.*", include_tags=True)] if dot else []
    if dot and tag not in known:
        there = f"there are {', '.join(known)}" if known else "it has none"
        raise InputError(f"timm knows no weights {shown(tag)!r} of {model}: {there}; {model} alone needs no tag")


def same_model(one: str, other: str) -> bool:
    """Whether two names are of one architecture, whatever weights they name."""

    def architecture(name: str) -> tuple[str, dict[str, int]]:
        timm_name, changed = FRIENDLY.get(name, (name, {}))
        return timm_name.partition(".")[0], changed

    return architecture(one) == architecture(other)


def has_released_weights(name: str, from_file: bool = False) -> bool:
    """Whether timm has trained weights of a model as it is named; `from_file`: its own loader is given a file of them.

    Raises InputError as `resolve`.
    """
    config, changed = get_pretrained_cfg(resolve(name)), name in FRIENDLY and FRIENDLY[name][1]
    return not changed and config is not None and (bool(config.has_weights) or from_file)


def build(
    name: str,
    check: Callable[[nn.Module], object] | None = None,
    /,
    *,
    num_classes: int | None = None,
    img_size: int | tuple[int, int] | None = None,
    drop_path: float = 0.0,
    pretrained: bool = False,
    **kwargs: Any,
) -> nn.Module:
    """Build a timm model, in training mode, its random weights drawn from torch's global generator.

    Args:
        name: friendly or timm name
        check: called with the model on the meta device, before any memory is taken; what it raises is raised
        num_classes: classes of the head; absent means the model's own number
        img_size: image side or (height, width) in pixels; absent means the model's own
        drop_path: stochastic depth rate of the last block
        pretrained: fetch timm's released weights
        kwargs: what timm's `create_model` takes besides, such as `embed_dim`, `patch_size`, `dynamic_img_size`
    Raises:
        InputError: no such model, arguments that it does not take, or weights that are not there or cannot be fetched
    """
    timm_name, options = resolve(name), _options(name, num_classes, img_size, drop_path, kwargs)
    with torch.device("meta"):
        shapes = _create(timm_name, options)
    if check is not None:
        check(shapes)
    check_memory(shapes, _told(timm_name, options))
    if not pretrained:
        return keep_table(_create(timm_name, options))
    if not has_released_weights(name, "pretrained_cfg_overlay" in options):
        raise InputError(f"timm has no released weights for {name}; use --checkpoint FILE or another model.")
    options = options if "pretrained_cfg_overlay" in options else options | pretrained_source(timm_name)
    try:
        return keep_table(_timms(timm_name, options | {"pretrained": True}))
    except Exception as error:  # hub, http, file and shape errors of several libraries; all mean the same to a user
        raise InputError(
            f"the released weights of {timm_name} could not be fetched or do not fit ({type(error).__name__}: "
            f"{shown(error)}). {ADVICE}"
        ) from error


def outline(
    name: str, *, num_classes: int | None = None, img_size: int | tuple[int, int] | None = None, **kwargs: Any
) -> nn.Module:
    """The model on the meta device: names and shapes of its weights, and no memory. Arguments and errors as `build`."""
    with torch.device("meta"):
        return _create(resolve(name), _options(name, num_classes, img_size, 0.0, kwargs))


@contextmanager
def held_to(tensors: int, name: str) -> Iterator[None]:
    """Within it a model is looked at on the meta device for a file `name` of so many tensors, and given up beyond them.

    Raises:
        MismatchError: more parameters than the file has; some are put twice into a model while it is built
    """
    left = 2 * tensors

    def count(_: nn.Module, __: str, parameter: nn.Parameter | None) -> None:
        nonlocal left
        left -= parameter is not None and parameter.is_meta
        if left < 0:
            raise MismatchError(f"{name} holds {tensors} tensors, too few for the model that is said to be in it")

    handle = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        handle.remove()


def _options(
    name: str,
    num_classes: int | None,
    img_size: int | tuple[int, int] | None,
    drop_path: float,
    kwargs: Mapping[str, Any],
) -> dict[str, Any]:
    """What timm's `create_model` is given."""
    _check_sizes(kwargs)
    changed = FRIENDLY[name][1] if name in FRIENDLY else {}
    own = {"num_classes": num_classes, "img_size": img_size, "drop_path_rate": drop_path or None}
    return changed | dict(kwargs) | {key: value for key, value in own.items() if value is not None}


BLOCKS = ("layers", "num_layers", "blocks", "num_blocks", "block_config", "levels")
"""Arguments that count blocks as those do whose names begin with depth."""
MAX_ARGUMENT, MAX_DEPTH = 1 << 20, 1_000
"""Widths, heads and tokens end far below; the deepest transformers have a thousand blocks, and every block takes time
to build, even without memory."""


def _check_sizes(kwargs: Mapping[str, Any]) -> None:
    """Raises InputError for numbers that no model's argument is, before any of them is multiplied with another."""
    for name, value in kwargs.items():
        values = value if isinstance(value, list | tuple) else [value]
        numbers = [number for number in values if isinstance(number, int | float)]
        most = MAX_ARGUMENT
        if name.startswith("depth") or name in BLOCKS:  # of all stages together
            numbers, most = [sum(map(abs, numbers))], MAX_DEPTH
        if any(not -most <= number <= most for number in numbers):
            raise InputError(f"the model's argument {shown(name)} is {shown(value)}; it ends at {most}")


def check_memory(shapes: nn.Module, name: str) -> None:
    """Raises InputError for a model whose weights alone are more than the machine's memory, before any is taken."""
    needed = sum(weight.numel() * weight.element_size() for weight in shapes.state_dict().values())
    there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > there:
        raise InputError(f"{name} has {needed / 1e9:,.0f} GB of weights; this machine has {there / 1e9:,.0f} GB")


def _told(timm_name: str, options: Mapping[str, Any]) -> str:
    return f"{timm_name} with {shown(', '.join(f'{key}={value!r}' for key, value in options.items()))}"


def _create(timm_name: str, options: dict[str, Any]) -> nn.Module:
    try:
        return _timms(timm_name, options)
    except MismatchError:  # of `held_to`
        raise
    except Exception as error:  # a model's code meets its arguments unchecked: whatever it raises, they do not fit
        built = shown(", ".join(f"{key}={value!r}" for key, value in options.items()))
        raise InputError(f"{timm_name} cannot be built with {built}: {shown(error)}") from error


def _timms(timm_name: str, options: dict[str, Any]) -> nn.Module:
    """timm's model. A CNN takes images of any size and no argument of it: its size is what it says of its input."""
    try:
        return timm.create_model(timm_name, **options)
    except TypeError as error:
        if "img_size" not in options or "'img_size'" not in str(error):
            raise
    others = dict(options)
    height, width = to_2tuple(others.pop("img_size"))
    model: Any = timm.create_model(timm_name, **others)
    model.pretrained_cfg["input_size"] = (3, height, width)
    return model


ARGUMENTS = "--model-kwargs and --img-size"
"""Flags by which a model's arguments are said."""


def on_black_image(
    forward: Callable[[Tensor], Result], size: tuple[int, int], device: torch.device, flags: str = ARGUMENTS
) -> Result:
    """What `forward` makes of a black image float32 [1, 3, *size]: a model's arguments may still not fit an image.

    Raises:
        InputError: what torch says of it, and the flags that are to be looked at
    """
    try:
        with torch.no_grad():
            return forward(torch.zeros(1, 3, *size, device=device))
    except (RuntimeError, AssertionError, TypeError, ValueError, IndexError) as error:
        if isinstance(error, DlthError):
            raise
        height, width = size
        raise InputError(
            f"the model cannot see an RGB image of {height}x{width} pixels ({shown(error)}): look at {flags}"
        ) from error


def flops_of(forward: Callable[[Tensor], object], size: tuple[int, int], device: torch.device) -> int:
    """Floating-point operations of `forward` on one image of `size`, counted by torch; raises as `on_black_image`.

    Attention runs as plain matrix products: torch 2.11 has no count for the CPU's fused kernel and would leave it out.
    """
    counter = FlopCounterMode(display=False)
    with counter, sdpa_kernel(SDPBackend.MATH):
        on_black_image(forward, size, device)
    return int(counter.get_total_flops())


def grid_of(vit: nn.Module) -> Grid:
    """Rows and columns of patches at the image size the model was built for; raises InputError if it has no grid."""
    size = getattr(getattr(vit, "patch_embed", None), "grid_size", None)
    if size is None:
        raise InputError(f"{type(vit).__name__} does not say how many patches an image has. {WHAT_CAN}.")
    return Grid(int(size[0]), int(size[1]))


def patch_size_of(vit: nn.Module) -> int:
    """Side of a patch in pixels; raises InputError if patches are not square."""
    stem: Any = getattr(vit, "patch_embed", None)
    if stem is None or not hasattr(stem, "feat_ratio"):
        raise InputError(f"{type(vit).__name__} does not say how large its patches are. {WHAT_CAN}.")
    rows, cols = stem.feat_ratio(as_scalar=False)
    if rows != cols:
        raise InputError(f"tickets need square patches; this model's are {rows}x{cols} pixels")
    return int(rows)


def one_patch_size_of(model: nn.Module) -> int | None:
    """Side in pixels of the patches that a model embeds, where its tokens stay of that size; None for all others.

    timm says of Swin and its like, which merge tokens on the way, that features come in several reductions.
    """
    if not hasattr(getattr(model, "patch_embed", None), "feat_ratio"):
        return None
    stages = getattr(model, "feature_info", [])
    return patch_size_of(model) if len({stage["reduction"] for stage in stages}) <= 1 else None


def image_size_of(model: nn.Module) -> tuple[int, int]:
    """Height and width in pixels of the images that a model was built for, 224 where it does not say."""
    size = getattr(getattr(model, "patch_embed", None), "img_size", None)
    height, width = size or timm.data.resolve_model_data_config(model)["input_size"][1:]
    return int(height), int(width)


def default_blocks(vit: nn.Module) -> tuple[int, ...]:
    """The paper's selection blocks, counted from 0: 3, 6, 9 of 12; 4, 8, 12 of 16; alike for other depths."""
    depth = len(check_family(vit, "select").blocks)
    return tuple(sorted({depth // 4, depth // 2, 3 * depth // 4})) if depth >= 4 else (depth - 1,)


def check_family(vit: nn.Module, verb: str) -> ViT:
    """The model as one of the families whose forward pass is known; raises InputError that names what it is."""
    known = {VisionTransformer._pos_embed, VisionTransformerDistilled._pos_embed, Eva._pos_embed}
    if isinstance(vit, VisionTransformer | Eva):
        base = Eva if isinstance(vit, Eva) else VisionTransformer
        if type(vit)._pos_embed in known and type(vit).forward_features is base.forward_features:
            return vit
    reason = _REASONS.get(type(vit).__name__, "it is no plain vision transformer")
    too = DROPS_TOO if verb == "drop" else ""
    raise InputError(f"{type(vit).__name__} cannot {verb} patches: {reason}. {WHAT_CAN}{too}.")


def check_can_select(vit: nn.Module) -> ViT:
    """The model, if its class token's attention can rank patches; raises InputError that says why not and what can."""
    checked = check_family(vit, "select")
    if reason := why_no_class_attention(checked):
        others = "Rankers feature-norm and, for heads that pool by attention, pool-attention need no class token"
        raise InputError(f"this {type(checked).__name__} cannot select patches: {reason}. {WHAT_CAN}. {others}.")
    return checked


def why_no_class_attention(vit: ViT) -> str:
    """Why the class token's attention in this model cannot rank patches; empty if it can."""
    if vit.cls_token is None:
        pooling = f" (it pools by {vit.global_pool!r})" if vit.global_pool else ""
        return f"it has no class token{pooling}"
    pools_patches = ("avg", "avgmax", "max", "map") if not isinstance(vit, Eva) else ("max", "avgmax", "map")
    if vit.global_pool in pools_patches:
        return (
            f"its head pools by {vit.global_pool!r} and never trained the class token. If its weights did (MAE, CLIP),"
            " build it with global_pool='token'"
        )
    return next(filter(None, map(unsupported, vit.blocks)), "")


def check_can_drop(vit: nn.Module) -> ViT:
    """The model, if it can be run on a ticket's patches alone; raises InputError that says why not and what can."""
    checked = check_family(vit, "drop")
    if not isinstance(checked.patch_drop, nn.Identity | None):
        raise InputError("the model drops patches at random by itself; build it with patch_drop_rate=0")
    return checked


_RELATIVE = "its relative position bias belongs to the full grid"
_REASONS = {
    "Beit": _RELATIVE,
    "VisionTransformerRelPos": _RELATIVE,
    "VisionTransformerSAM": "it attends within windows, with relative positions",
    "SwinTransformer": "it attends within windows and has no class token",
    "SwinTransformerV2": "it attends within windows and has no class token",
    "NaFlexVit": "it packs its patches itself",
    "Cait": "its class token attends only after the last patch block",
    "VOLO": "its outlook attention needs the full grid",
    "Xcit": "it attends across channels, not across patches",
    "OptimizedModule": "it is compiled already; wrap the model first and compile the wrapper",
}
"""Why well-known models that are not served are not."""
