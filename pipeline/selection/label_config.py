"""The settings of token labelling, checked before a file is opened or a weight is loaded."""

from typing import Literal, Self

from pydantic import model_validator

from dlth.data.shards.scan import MAX_CLASSES
from dlth.pipeline.selection.config import FROM_FILE, OWN_FLAGS, RUN, WEIGHTS, WHAT
from dlth.tickets.format.label_header import NUM_BEST
from dlth.training.settings.fields import (
    MAX_BATCH,
    MAX_SIDE,
    Deviations,
    Means,
    Pairs,
    Settings,
    refuse_own_flags,
    setting,
)


class LabelConfig(Settings):
    """Settings of `dlth label`; field names are the flags' names."""

    annotator: str | None = setting(
        None,
        WHAT,
        "Annotator: any timm model with a map, e.g. dm_nfnet_f6; what --checkpoint records if absent.",
    )
    data: str = setting(..., WHAT, "Shards: brace range, folder, glob, _info.json or index.", path="shards")
    out: str = setting(..., WHAT, "The token label file to write, an unfinished one to go on with.", path="file")
    split: str = setting("", WHAT, "Name of the split, for _info.json and the header (train, val, …).")
    dataset: str = setting("", WHAT, "Name of the dataset in the header, e.g. imagenet-1k.")
    num_best: int = setting(NUM_BEST, WHAT, "Classes stored of each cell.", gt=0, le=64)
    img_size: int | None = setting(None, WHAT, "Side of the view in pixels." + FROM_FILE, gt=0, le=MAX_SIDE)
    mean: Means | None = setting(None, WHAT, "Channel means of the input." + FROM_FILE)
    std: Deviations | None = setting(None, WHAT, "Channel deviations of the input." + FROM_FILE)
    bad_images: Literal["error", "skip"] = setting(
        "error", WHAT, "A corrupt image stops the run, or is skipped, counted and remembered in the file."
    )

    pretrained: bool = setting(False, WEIGHTS, "Weights from timm's hub.")
    checkpoint: str | None = setting(None, WEIGHTS, "Weights: a run's folder, safetensors, or .pth.", path="file")
    random_weights: bool = setting(False, WEIGHTS, "Seeded random weights: labels without meaning, for trials.")
    num_classes: int | None = setting(
        None, WEIGHTS, "Size of the head; the checkpoint's if absent.", gt=0, le=MAX_CLASSES
    )
    model_kwargs: Pairs = setting({}, WEIGHTS, "Further arguments of the timm model.")
    use_ema: bool = setting(False, WEIGHTS, "Take the averaged weights of the run or of the checkpoint.")
    seed: int = setting(0, WEIGHTS, "Seed of random weights.", ge=0)

    batch_size: int = setting(
        32, RUN, "Images of one forward; halved when the device's memory is too small.", gt=0, le=MAX_BATCH
    )
    device: str = setting("auto", RUN, "cuda, cpu, mps, cuda:1; auto takes a GPU where there is one.")
    amp: bool = setting(False, RUN, "Compute in --amp-dtype.")
    amp_dtype: Literal["bfloat16", "float16"] = setting("bfloat16", RUN, "Precision under --amp.")
    torchcompile: str | None = setting(None, RUN, "Compile the annotator with this backend, e.g. inductor.")
    workers: int = setting(
        2, RUN, "Processes that read and decode. With 0 an image that crashes a decoder ends all.", ge=0
    )
    threads: int | None = setting(
        None, RUN, "Batches computed side by side on a CPU; all cores if absent.", gt=0, le=1_024
    )

    creator: str = setting("", WHAT, "Who made the file, for the header.")
    license: str = setting("", WHAT, "Licence of the labels, for the header.")
    created: str = setting("", WHAT, "A date for the header; absent, so that the same run gives the same bytes.")

    @model_validator(mode="after")
    def _one_of_each(self) -> Self:
        refuse_own_flags(self.model_kwargs, "--model-kwargs", OWN_FLAGS | {"name": "--annotator"})
        weights = [flag for flag in ("pretrained", "checkpoint", "random_weights") if getattr(self, flag)]
        if len(weights) != 1:
            raise ValueError(
                "the annotator's weights must come from exactly one of --pretrained, --checkpoint FILE and"
                f" --random-weights; found {len(weights)}."
            )
        if self.annotator is None and self.checkpoint is None:
            raise ValueError("name the annotator (--annotator), or weights that record it (--checkpoint)")
        return self
