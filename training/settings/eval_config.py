"""The settings of `dlth evaluate`, apart from its code so that the command line needs no torch to know its flags."""

from typing import Literal, Self

from pydantic import model_validator

from dlth.data.shards.scan import MAX_CLASSES
from dlth.training.settings.fields import (
    MAX_BATCH,
    MAX_SIDE,
    TF32,
    WHERE,
    Deviations,
    Keep,
    Means,
    Pairs,
    Settings,
    refuse_own_flags,
    setting,
)
from dlth.training.settings.train_config import HOW, MODEL, OWN_FLAGS, PATCH_SIZE, RUN, WHAT, How

DEFAULT_SEED = 42
FROM_FILE = " What the checkpoint says of itself if absent."


class EvalConfig(Settings):
    """Settings of `dlth evaluate`; field names are the flags' names."""

    checkpoint: str = setting(
        ..., WHAT, "Weights: a run's folder, safetensors, or .pth of timm, DeiT, EViT.", path="file"
    )
    val: str = setting(
        ...,
        WHAT,
        "Validation shards: brace range, folder, glob, _info.json, address; dlth.toml's or ./shards if absent.",
        path="shards",
    )
    val_split: str | None = setting(None, WHAT, "Split of an _info.json to evaluate on.")
    val_tickets: str | None = setting(None, WHAT, "Ticket file of the validation shards.", path="file")
    keep: Keep | None = setting(None, WHAT, "Share of the patches to keep." + FROM_FILE)
    out: str | None = setting(None, WHAT, "File for the per-image results (.npz).", path="file")
    missing: Literal["error", "dense", "random", "skip"] = setting(
        "error", WHAT, "What to do with an image that has no ticket."
    )
    bad_images: Literal["error", "skip"] = setting("error", WHAT, "A corrupt image stops the run, or is left out.")

    model: str | None = setting(None, MODEL, "Friendly or timm name of the model." + FROM_FILE)
    model_kwargs: Pairs | None = setting(None, MODEL, "Further arguments of the timm model." + FROM_FILE)
    how: How | None = setting(None, MODEL, HOW + "." + FROM_FILE)
    patch_size: int | None = setting(None, MODEL, PATCH_SIZE, gt=0, le=MAX_SIDE)
    num_classes: int | None = setting(None, MODEL, "Size of the head." + FROM_FILE, gt=0, le=MAX_CLASSES)
    img_size: int | None = setting(None, MODEL, "Side of the view in pixels." + FROM_FILE, gt=0, le=MAX_SIDE)
    use_ema: bool = setting(False, MODEL, "Take the averaged weights of the run or of the checkpoint.")
    mean: Means | None = setting(None, MODEL, "Channel means of the input." + FROM_FILE)
    std: Deviations | None = setting(None, MODEL, "Channel deviations of the input." + FROM_FILE)
    crop_pct: float | None = setting(
        None, MODEL, "Share of the evaluation crop; that of --val-tickets if absent." + FROM_FILE, gt=0, le=1
    )

    batch_size: int = setting(128, RUN, "Images per forward.", gt=0, le=MAX_BATCH)
    device: str = setting("auto", RUN, "cuda, cpu, cuda:1; auto takes a GPU where there is one.")
    amp: bool = setting(False, RUN, "Compute in --amp-dtype where it is safe.")
    amp_dtype: Literal["bfloat16", "float16"] = setting("bfloat16", RUN, "Precision under --amp.")
    tf32: bool = setting(False, RUN, TF32)
    workers: int = setting(
        4, RUN, "Processes that read and decode. With 0 an image that crashes a decoder ends all.", ge=0
    )
    seed: int | None = setting(None, RUN, f"Seed of the random tokens.{FROM_FILE} Otherwise {DEFAULT_SEED}.", ge=0)

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        own = {name: OWN_FLAGS[name] for name in ("name", "num_classes", "img_size", *WHERE)}
        refuse_own_flags(self.model_kwargs, "--model-kwargs", own)
        return self
