"""The settings of `dlth tickets agree`: those of `dlth train` that decide what a selector in the loop sees and keeps.

A subclass, as views are drawn and the selector is opened by the very code of a run in the online mode; what belongs to
a student, its training and its images' classes is absent.
"""

import os
from typing import Any, ClassVar, Self

from pydantic import model_validator

from dlth.training.settings.fields import setting
from dlth.training.settings.train_config import OUTPUT, SELECTOR, WHAT, Mode, TrainConfig

TAKEN = {
    *("data", "split", "bad_images", "keep", "hidden", "img_size", "seed"),
    *("aa", "color_jitter", "reprob", "scale", "ratio", "hflip", "train_interpolation", "shuffle_window"),
    *("selector", "selector_checkpoint", "selector_pretrained", "selector_kwargs", "selector_ranker"),
    *("selector_blocks", "selector_fuse_tokens", "device", "amp", "amp_dtype", "workers", "batch_size"),
}
"""Settings of a run that mean here what they mean there."""


class AgreeConfig(TrainConfig):
    """Settings of `dlth tickets agree`; field names are the flags' names."""

    trained: ClassVar[str] = "nothing (dlth tickets agree)"
    recipes: ClassVar[tuple[str, ...]] = ()
    absent: ClassVar[frozenset[str]] = frozenset(TrainConfig.model_fields) - TAKEN - {"out"}

    mode: Mode = "online"

    data: str = setting(..., WHAT, "Training shards of the tickets' images, as `dlth train` takes them.", path="shards")
    selector: str | None = setting(
        None, SELECTOR, "The selector: its weights (as --selector-checkpoint), or its model where those do not say it."
    )
    images: int = setting(2_000, WHAT, "Images to look at, the first that a run of --seed meets; at most all.", gt=0)
    out: str | None = setting(  # type: ignore[assignment]
        None, OUTPUT, "JSON file to write: agreement.json in a study's folder is in the study's report.", path="file"
    )

    @model_validator(mode="before")
    @classmethod
    def _weights_by_their_path(cls, values: Any) -> Any:
        """`--selector runs/selector` names weights that are there, and no model is called so."""
        name = values.get("selector") if isinstance(values, dict) else None
        if isinstance(name, str) and not values.get("selector_checkpoint") and os.path.exists(name):
            return {**values, "selector": None, "selector_checkpoint": name}
        return values

    @model_validator(mode="after")
    def _out_is_json(self) -> Self:
        if self.out is not None and not self.out.endswith(".json"):  # it could take any other file's place
            raise ValueError(f"--out {self.out}: what is written is a JSON file, and its name must end in .json")
        return self
