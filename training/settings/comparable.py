"""Whether results may be compared: what must be alike, for a difference between arms to be the arms'.

That is the images and their order, how long and by which settings was trained, and how was evaluated; of arms that drop
patches also how many they keep and by which way, of pruned ones how many weights of how many remain, by which rate, and
from which step they are trained again. What makes an arm (`ARMS_OWN`) may differ. Whether a difference that is named
matters, such as more epochs for the same computation, is the reader's to say.

A name is compared where results say it: a result of an older version is not refused for what it does not know. Order is
compared among runs of one seed, as every seed has its own.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from dlth.tickets.errors import shown
from dlth.training.settings.fields import is_free
from dlth.training.settings.train_config import TrainConfig

ALIKE = {
    "data": "the training images",
    "data_labels": "the training images' labels",
    "data_order": "the order of the training images in their shards",
    "data_content": "the training images' bytes",
    "left_out": "how many training images were left out",
    "val": "the validation images",
    "val_labels": "the validation images' labels",
    "val_order": "the order of the validation images in their shards",
    "val_content": "the validation images' bytes",
    "val_tickets": "the validation images' tickets",
}
ALIKE_BY_SEED = {"visited_sha256": "which images an epoch visits, and in which order"}
ALIKE_RUNS = {
    "model": "the student",
    "steps": "how many steps were taken",
    "val_view": "how validation images are seen",
}
ALIKE_PRUNED = {
    "prunable_weights": "how many weights may be pruned",
    "remaining_weights": "how many weights remain",
}
ALIKE_MASKS = {
    "rate": "which share of the weights a round of pruning masks",
    "scope": "whether weights are pruned over all layers or in each",
    "exclude": "which parameters are left whole",
}
"""Of the recipe of a mask, where it is known."""
SPARSE = ("mode", "how", "patch_size", "hidden", "keep_schedule", "keep_schedule_start", "keep_schedule_epochs")
"""Settings that arms which drop patches must have alike."""
ARMS_OWN = (
    *("arm", "seed", "keep", "missing", "bad_images", "random_tokens", "frozen_views"),
    *("selector", "selector_pretrained", "selector_kwargs", "selector_blocks", "selector_fuse_tokens"),
    *("start_step", "rewind_step", "init_seed"),
    *("selector_ranker", "model", "crop_pct", "nan_patience", "torchcompile", "channels_last"),
)
"""Settings that may differ: they make the arm, or touch no result, or are compared by what came of them."""
STARTS = "init_from"
"""Whose weights a run begins with. That is a pruned arm's own, which others are set back to; by its name among all
others, as those of older versions have no digest of them.
"""
FOLLOWS = {
    "epochs": ("steps", "decay_milestones"),
    "keep": ("k",),
    "img_size": ("val_view",),
    "crop_pct": ("val_view",),
}
"""What differs of itself where a setting does."""

Fact = tuple[str, Any]
"""What must be alike, and among which results: those of a seed or of a packing, or all (None)."""
CONTENT = {"data_content": "data_order", "val_content": "val_order"}
"""Digests of bytes, by the packing that they take their sample in: another packing's says nothing of these bytes."""


def comparable(
    results: Sequence[Mapping[str, Any]], besides: Collection[str] = (), *, one_arm: bool = False
) -> list[str]:
    """What keeps results, each a result.json, from being compared: a sentence for each difference, none if they may be.

    A pruned one may have the recipe of its mask beside what result.json says, as "recipe".
    Each is held against the first that says the same, or the first of its seed. `besides` names settings, and names of
    `ALIKE` and `ALIKE_RUNS`, that may differ too, and with each what follows from it: with "epochs" also "steps".
    `one_arm`: they repeat one arm with other seeds, so they have its tickets, or its selector, alike as well.
    """
    besides = {*besides, *(fact for name in besides for fact in FOLLOWS.get(name, ()))}
    differences, said = [], [_facts(result, besides) | (_tickets(result) if one_arm else {}) for result in results]
    for place, facts in enumerate(said):
        for fact, value in facts.items():
            first = next((other for other in range(place) if fact in said[other]), None)
            if first is not None and said[first][fact] != value:
                sides = _side(results[first], said[first][fact]), _side(results[place], value)
                differences.append(f"{fact[0]}: {', '.join(sides)}")
    return differences


def as_judged(result: Mapping[str, Any]) -> dict[str, Any]:
    """A result without what its arm is not judged by: the dense arm's has no say in tickets of validation images."""
    if result["arm"] != "dense":
        return dict(result)
    return {**result, "data": {name: value for name, value in result["data"].items() if name != "val_tickets"}}


def _facts(result: Mapping[str, Any], besides: Collection[str]) -> dict[Fact, Any]:
    """What a result says of what must be alike."""
    data, config, drops = result["data"], result.get("config", {}), result["arm"] != "dense"
    packing = {name: data.get(order) for name, order in CONTENT.items()}
    images = [name for name in ALIKE if name in data and name not in besides]
    facts: dict[Fact, Any] = {(ALIKE[name], packing.get(name)): data[name] for name in images}
    facts |= {(text, result["seed"]): data[name] for name, text in ALIKE_BY_SEED.items() if name in data}
    facts |= {(ALIKE_RUNS[name], None): result[name] for name in ALIKE_RUNS if name in result and name not in besides}
    if drops and "k" in result and "k" not in besides:
        facts["how many patches are kept", None] = result["k"]
    if result.get("mask"):
        facts |= _pruning(result, config)
    fixed = [name for name, field in TrainConfig.model_fields.items() if not is_free(field)]
    settings = [name for name in fixed if name in config and name not in ARMS_OWN and name not in besides]
    settings = [name for name in settings if drops or name not in SPARSE]
    settings += [STARTS] if STARTS in config and STARTS not in besides and not result.get("mask") else []
    return facts | {(f"the setting {name}", None): config[name] for name in settings}


def _pruning(result: Mapping[str, Any], config: Mapping[str, Any]) -> dict[Fact, Any]:
    """What the result of a pruned model says of its weights; one with fresh weights is set back to no step."""
    recipe = result.get("recipe", {})
    facts: dict[Fact, Any] = {(text, None): result[name] for name, text in ALIKE_PRUNED.items() if name in result}
    facts |= {(text, None): recipe[name] for name, text in ALIKE_MASKS.items() if name in recipe}
    if config.get("init_from") is not None:
        facts["the step that weights are set back to", None] = config.get("start_step", 0)
    return facts


def _tickets(result: Mapping[str, Any]) -> dict[Fact, Any]:
    """What a result says of the tickets that it was trained on."""
    selector = result.get("selector", {}).get("weights_sha256")
    facts: dict[Fact, Any] = {("the training images' tickets", None): result["tickets"]} if "tickets" in result else {}
    return facts | ({} if selector is None else {("the weights of the selector in the loop", None): selector})


def _side(result: Mapping[str, Any], value: Any) -> str:
    digest = isinstance(value, str) and len(value) == 64
    said = "none" if value in ("", None) else value[:12] if digest else shown(value, 60)
    return f"{said} (arm {result['arm']}, seed {result['seed']})"
