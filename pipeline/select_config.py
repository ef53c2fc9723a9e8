"""The settings of stage 1, checked before a file is opened or a weight is loaded."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator


def _comma_list(value: object) -> object:
    return tuple(part.strip() for part in value.split(",")) if isinstance(value, str) else value


def _pairs(value: object) -> object:
    """`a=1,b=true` to a dict; values are read as Python literals of TOML's kind: numbers, true/false, text."""
    if not isinstance(value, str):
        return value
    pairs: dict[str, Any] = {}
    for part in value.split(","):
        name, equals, text = part.partition("=")
        if not equals:
            raise ValueError(f"expected name=value, found {part!r}")
        pairs[name.strip()] = _literal(text.strip())
    return pairs


def _literal(text: str) -> Any:
    for read in (int, float):
        try:
            return read(text)
        except ValueError:
            continue
    return {"true": True, "false": False}.get(text.lower(), text)


def _setting(default: Any, panel: str, description: str, **limits: Any) -> Any:
    return Field(default, description=description, json_schema_extra={"panel": panel}, **limits)


WHAT, BUDGET, WEIGHTS, RUN = "What is selected", "How many patches", "The selector's weights", "How it runs"


class SelectConfig(BaseModel):
    """Settings of `dlth select`; field names are the flags' names."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    model: str = _setting("deit_small", WHAT, "Selector: a friendly name (deit_small) or any timm ViT.")
    data: str = _setting(..., WHAT, "Shards: brace range, folder, glob, _info.json or index; local or remote.")
    out: str = _setting(..., WHAT, "The ticket file to write. An unfinished one is continued.")
    split: str = _setting("", WHAT, "Name of the split, for _info.json and the header (train, val, …).")
    dataset: str = _setting("", WHAT, "Name of the dataset in the header, e.g. imagenet-1k.")
    view: Literal["whole", "center"] = _setting(
        "whole", WHAT, "What the selector sees: the whole image (training), or the evaluation crop (validation)."
    )
    img_size: int | None = _setting(None, WHAT, "Side of the view in pixels; the model's own if absent.", gt=0)
    crop_pct: float | None = _setting(None, WHAT, "Share of the centre view; the model's own if absent.", gt=0, le=1)
    bad_images: Literal["error", "skip"] = _setting(
        "error", WHAT, "A corrupt image stops the run, or is skipped, counted and remembered in the file."
    )
    max_pixels: int = _setting(100_000_000, WHAT, "Images that claim more pixels are refused undecoded.", gt=0)

    keep: str | None = _setting(None, BUDGET, "Share of all patches to keep; 0.7 means 138 of 196. The default is 0.7.")
    stage_keep: str | None = _setting(None, BUDGET, "EViT's rate of each stage instead; the paper's way of saying it.")
    tokens: int | None = _setting(None, BUDGET, "The number of patches itself instead.", gt=0)
    blocks: Annotated[tuple[int, ...] | None, BeforeValidator(_comma_list)] = _setting(
        None, BUDGET, "Blocks that select, from 0, e.g. 3,6,9; a quarter, half and three quarters of the depth if absent."
    )
    fuse_tokens: bool = _setting(False, BUDGET, "Fuse dropped tokens into one, as EViT may.")
    top_only: bool = _setting(False, BUDGET, "Store the k best alone: smaller, but no smaller crop or keep is exact.")

    pretrained: bool = _setting(False, WEIGHTS, "Weights from timm's hub.")
    checkpoint: str | None = _setting(None, WEIGHTS, "Weights from a file: safetensors or .pth of timm, DeiT, EViT.")
    random_weights: bool = _setting(False, WEIGHTS, "Seeded random weights: tickets without meaning, for trials.")
    num_classes: int | None = _setting(None, WEIGHTS, "Size of the head; read from the checkpoint if absent.", gt=0)
    model_kwargs: Annotated[dict[str, Any], BeforeValidator(_pairs)] = _setting(
        {}, WEIGHTS, "Further arguments of the timm model, e.g. patch_size=8,depth=4."
    )
    use_ema: bool = _setting(False, WEIGHTS, "Take the checkpoint's averaged weights.")
    seed: int = _setting(0, WEIGHTS, "Seed of random weights.", ge=0)

    batch_size: int = _setting(128, RUN, "Images of one forward; halved when the device's memory is too small.", gt=0)
    device: str = _setting("auto", RUN, "cuda, cpu, mps, cuda:1; auto takes a GPU where there is one.")
    amp: bool = _setting(False, RUN, "Run the blocks in --amp-dtype; scores stay in float32.")
    amp_dtype: Literal["bfloat16", "float16"] = _setting("bfloat16", RUN, "Precision of the blocks under --amp.")
    compile: bool = _setting(False, RUN, "Compile the selector.")
    workers: int = _setting(2, RUN, "Processes that read and decode.", ge=0)
    threads: int | None = _setting(None, RUN, "Batches computed side by side on a CPU; all cores if absent.", gt=0)

    creator: str = _setting("", WHAT, "Who made the file, for the header.")
    license: str = _setting("", WHAT, "Licence of the tickets, for the header.")
    created: str = _setting("", WHAT, "A date for the header; absent, so that the same run gives the same bytes.")

    @model_validator(mode="after")
    def _one_of_each(self) -> SelectConfig:
        budgets = [name for name in ("keep", "stage_keep", "tokens") if getattr(self, name) is not None]
        if len(budgets) > 1:
            flags = " and ".join("--" + name.replace("_", "-") for name in budgets)
            raise ValueError(f"{flags} exclude each other: each says how many patches stay. Give one.")
        weights = [flag for flag in ("pretrained", "checkpoint", "random_weights") if getattr(self, flag)]
        if len(weights) != 1:
            raise ValueError(
                f"the selector's weights must come from exactly one of --pretrained, --checkpoint FILE and"
                f" --random-weights; found {len(weights)}."
            )
        return self
