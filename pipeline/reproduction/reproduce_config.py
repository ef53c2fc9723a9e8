"""The settings of `dlth reproduce`: where images and weights are, and on what; what is trained, the rows say."""

from typing import Literal

from dlth.pipeline.reproduction.experiment import WHOLE
from dlth.tickets.ranking.budget import exact_rate
from dlth.training.settings.fields import MAX_BATCH, Integers, Keep, Settings, setting

IMAGES, WEIGHTS, HOW, RUN = "Images", "Tickets and weights", "How rows are run", "Machine"


class ReproduceConfig(Settings):
    """Settings of `dlth reproduce`; field names are the flags' names."""

    data: str = setting(..., IMAGES, "Training shards of the rows' data set.", path="shards")
    val: str = setting(..., IMAGES, "Validation shards.", path="shards")
    split: str | None = setting(None, IMAGES, "Split of an _info.json to train on.")
    val_split: str | None = setting(None, IMAGES, "Split of an _info.json to evaluate on.")
    token_labels: str | None = setting(None, IMAGES, "Token label file, for LV-ViT's rows.", path="file")

    selector: str | None = setting(
        None,
        WEIGHTS,
        "Weights that select for all rows: a run's folder, safetensors, .pth; those of each row's own selector row,"
        " trained here, if absent.",
        path="file",
    )
    tickets: str | None = setting(
        None, WEIGHTS, "Ticket file of the training shards, for all rows; made by the selector if absent.", path="file"
    )
    val_tickets: str | None = setting(None, WEIGHTS, "Ticket file of the validation shards, likewise.", path="file")
    init_from: str | None = setting(
        None, WEIGHTS, "Weights that selector rows start from; timm's pretrained ones if absent.", path="file"
    )

    mode: Literal["projected", "online"] = setting(
        "projected", HOW, "Cached tickets moved into each view, or the selector in the loop, as the authors had it."
    )
    seeds: Integers = setting((0,), HOW, "Seeds of each row; three or more for a verdict.")
    scale: Keep = setting(
        WHOLE, HOW, "Share of images (the first shards) and of epochs to try rows with; no number of theirs counts."
    )
    out: str = setting("reproduction", HOW, "Folder of selectors, tickets, runs and bundles.", path="file")

    gpus: int = setting(1, RUN, "Processes that train a run together, each on its GPU.", gt=0)
    batch_size: int = setting(
        128, RUN, "Most images of a forward; the row's images of a step follow by accumulation.", gt=0, le=MAX_BATCH
    )
    device: str = setting("auto", RUN, "cuda, cpu, cuda:1; auto takes a GPU where there is one.")
    workers: int = setting(4, RUN, "Processes that read and augment, for each of training.", ge=0)
    amp: bool = setting(False, RUN, "Compute in --amp-dtype where it is safe.")
    amp_dtype: Literal["bfloat16", "float16"] = setting("bfloat16", RUN, "Precision under --amp.")
    measure: float = setting(5.0, RUN, "Seconds for which steps of each row are measured, to tell hours; 0: not.", ge=0)

    @property
    def is_whole(self) -> bool:
        """Whether rows are run as the paper has them."""
        return exact_rate(self.scale) == 1
