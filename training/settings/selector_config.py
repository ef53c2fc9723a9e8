"""The settings of `dlth train-selector`: those of `dlth train`, and what the model drops, where.

A subclass, as the loop, the loader, resuming and all that a run writes are the same and ask for the same names. What
belongs to tickets and to the students that are given them is absent: neither a flag nor a line of a file says it.
"""

from typing import ClassVar, Literal

from dlth.training.settings.fields import FUSE_TOKENS, NO_SCHEDULE, WHICH_BLOCKS, Integers, Keep, setting
from dlth.training.settings.recipes import SELECTORS_RECIPES
from dlth.training.settings.train_config import DEFAULT_MODEL, MODEL, TOKENS, WHAT, TrainConfig

DROPPING = "What is dropped"
DEFAULT_STAGE_KEEP = "0.7"


class SelectorTrainConfig(TrainConfig):
    """Settings of `dlth train-selector`; field names are the flags' names."""

    trained: ClassVar[str] = "a selector (dlth train-selector)"
    recipes: ClassVar[tuple[str, ...]] = SELECTORS_RECIPES
    absent: ClassVar[frozenset[str]] = frozenset(
        (
            *("arm", "mode", "tickets", "val_tickets", "keep", "missing", "random_tokens", "hidden", "frozen_views"),
            *("how", "patch_size", "mix_token"),
            *("mask", "start_step", "rewind_step", "init_seed"),
            *(name for name in TrainConfig.model_fields if name.startswith("token_")),
            *(name for name in TrainConfig.model_fields if name.startswith("selector")),
        )
    )

    # No run of a student is of this arm: neither its numbers nor its folder may pass for those of one.
    arm: Literal["selector"] = setting("selector", WHAT, "What is trained.")  # type: ignore[assignment]

    model: str | None = setting(
        None,
        MODEL,
        f"Model to train: a friendly or timm name; what --init-from records if absent, otherwise {DEFAULT_MODEL}.",
    )
    # Milestones are shares of the patches that a student is given; a selector comes to its share by its stages.
    keep_schedule: Literal["none", "cosine"] = setting(
        NO_SCHEDULE, TOKENS, "cosine lets the stage rate fall from 1 step by step, EViT's schedule."
    )
    stage_keep: Keep | None = setting(
        None,
        DROPPING,
        f"Share of its patches that each stage keeps; what the weights record if absent, else {DEFAULT_STAGE_KEEP}.",
    )
    blocks: Integers | None = setting(None, DROPPING, WHICH_BLOCKS)
    fuse_tokens: bool | None = setting(None, DROPPING, FUSE_TOKENS)

    @property
    def share(self) -> None:
        """None: evaluation drops by the rate of the stages, and shows no patches of anybody else's choice."""
