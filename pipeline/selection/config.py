"""The settings of stage 1, checked before a file is opened or a weight is loaded."""

from typing import Literal, Self

from pydantic import model_validator

from dlth.data.shards.scan import MAX_CLASSES
from dlth.training.settings.fields import (
    FUSE_TOKENS,
    MAX_BATCH,
    MAX_SIDE,
    WHERE,
    WHICH_BLOCKS,
    WHICH_RANKER,
    Deviations,
    Integers,
    Keep,
    Means,
    Pair,
    Pairs,
    Settings,
    refuse_own_flags,
    setting,
)

OWN_FLAGS = {
    "name": "--model",
    "num_classes": "--num-classes",
    "img_size": "--img-size",
    "pretrained": "--pretrained",
    **WHERE,
}
DEFAULT_MODEL = "deit_small"
FROM_FILE = " What the checkpoint records if absent, otherwise the model's own."
MAX_CROPS = 100
"""Of --average-views: an image's views are in memory at once."""
WHAT, BUDGET, WEIGHTS, RUN = "What is selected", "How many patches", "The selector's weights", "How it runs"


class SelectConfig(Settings):
    """Settings of `dlth select`; field names are the flags' names."""

    model: str | None = setting(
        None,
        WHAT,
        f"Selector: a friendly name or any timm ViT; what --checkpoint records if absent, otherwise {DEFAULT_MODEL}.",
    )
    ranker: str | None = setting(None, WHAT, WHICH_RANKER)
    data: str = setting(
        ...,
        WHAT,
        "Shards: brace range, folder, glob, _info.json or index; dlth.toml's or ./shards if absent.",
        path="shards",
    )
    out: str = setting(
        ...,
        WHAT,
        "The ticket file to write, an unfinished one to go on with; tickets.zarr or tickets-SPLIT.zarr if absent.",
        path="file",
    )
    split: str = setting("", WHAT, "Name of the split, for _info.json and the header (train, val, …).")
    dataset: str = setting("", WHAT, "Name of the dataset in the header, e.g. imagenet-1k.")
    view: Literal["whole", "center"] = setting(
        "whole", WHAT, "What the selector sees: the whole image (training), or the evaluation crop (validation)."
    )
    img_size: int | None = setting(None, WHAT, "Side of the view in pixels." + FROM_FILE, gt=0, le=MAX_SIDE)
    crop_pct: float | None = setting(None, WHAT, "Share of the centre view." + FROM_FILE, gt=0, le=1)
    mean: Means | None = setting(None, WHAT, "Channel means of the input." + FROM_FILE)
    std: Deviations | None = setting(None, WHAT, "Channel deviations of the input." + FROM_FILE)
    average_views: int | None = setting(
        None,
        WHAT,
        "Rank by mean ranks over the view, its mirror and so many seeded crops; costs that many plus 2.",
        ge=0,
        le=MAX_CROPS,
    )
    crop_scale: Pair = setting(
        (0.08, 1.0), WHAT, "Least and most area of a crop of --average-views, as training's --scale."
    )
    bad_images: Literal["error", "skip"] = setting(
        "error", WHAT, "A corrupt image stops the run, or is skipped, counted and remembered in the file."
    )

    keep: Keep | None = setting(
        None, BUDGET, "Share of all patches to keep; 0.7 means 138 of 196, and is taken where nothing says a rate."
    )
    stage_keep: Keep | None = setting(
        None, BUDGET, "EViT's rate of each stage instead, the paper's way; what the weights record if no rate is given."
    )
    tokens: int | None = setting(None, BUDGET, "The number of patches itself instead.", gt=0)
    blocks: Integers | None = setting(None, BUDGET, WHICH_BLOCKS)
    fuse_tokens: bool | None = setting(None, BUDGET, FUSE_TOKENS)
    top_only: bool = setting(False, BUDGET, "Store the k best alone: smaller, but no smaller crop or keep is exact.")

    pretrained: bool = setting(False, WEIGHTS, "Weights from timm's hub; so without the other two ways.")
    checkpoint: str | None = setting(
        None, WEIGHTS, "Weights: a run's folder, safetensors, or .pth of timm, DeiT, EViT.", path="file"
    )
    random_weights: bool = setting(False, WEIGHTS, "Seeded random weights: tickets without meaning, for trials.")
    num_classes: int | None = setting(
        None, WEIGHTS, "Size of the head; the checkpoint's if absent.", gt=0, le=MAX_CLASSES
    )
    model_kwargs: Pairs = setting({}, WEIGHTS, "Further arguments of the timm model, e.g. patch_size=8,depth=4.")
    use_ema: bool = setting(False, WEIGHTS, "Take the averaged weights of the run or of the checkpoint.")
    seed: int = setting(0, WEIGHTS, "Seed of random weights, and of the crops of --average-views.", ge=0)

    batch_size: int = setting(
        128, RUN, "Images of one forward; halved when the device's memory is too small.", gt=0, le=MAX_BATCH
    )
    device: str = setting("auto", RUN, "cuda, cpu, mps, cuda:1; auto takes a GPU where there is one.")
    amp: bool = setting(False, RUN, "Run the blocks in --amp-dtype; scores stay in float32.")
    amp_dtype: Literal["bfloat16", "float16"] = setting("bfloat16", RUN, "Precision of the blocks under --amp.")
    torchcompile: str | None = setting(None, RUN, "Compile the selector with this backend, e.g. inductor.")
    workers: int = setting(
        2, RUN, "Processes that read and decode. With 0 an image that crashes a decoder ends all.", ge=0
    )
    threads: int | None = setting(
        None, RUN, "Batches computed side by side on a CPU; all cores if absent.", gt=0, le=1_024
    )

    creator: str = setting("", WHAT, "Who made the file, for the header.")
    license: str = setting("", WHAT, "Licence of the tickets, for the header.")
    created: str = setting("", WHAT, "A date for the header; absent, so that the same run gives the same bytes.")

    @model_validator(mode="after")
    def _one_of_each(self) -> Self:
        budgets = [name for name in ("keep", "stage_keep", "tokens") if getattr(self, name) is not None]
        if len(budgets) > 1:
            flags = " and ".join("--" + name.replace("_", "-") for name in budgets)
            raise ValueError(f"{flags} exclude each other: each says how many patches stay. Give one.")
        refuse_own_flags(self.model_kwargs, "--model-kwargs", OWN_FLAGS)
        weights = [flag for flag in ("pretrained", "checkpoint", "random_weights") if getattr(self, flag)]
        if len(weights) != 1:
            raise ValueError(
                f"the selector's weights must come from exactly one of --pretrained, --checkpoint FILE and"
                f" --random-weights; found {len(weights)}."
            )
        return self
