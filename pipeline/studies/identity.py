"""What makes a run that run and no other, as a digest at the end of its folder's name.

All that decides the result is in it, and nothing else: settings that are not free and not left at their default, and
the contents of what is read (images, tickets, weights), wherever it lies. So a study finds its runs again after data
were moved, and never takes those of other tickets of the same name for its own.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from dlth.pipeline.evidence.arm_key import ArmKey
from dlth.pipeline.evidence.study_plan import MaskPlan
from dlth.tickets.format.jsontext import canonical, strict
from dlth.training.settings.fields import fixed_settings
from dlth.training.settings.train_config import TrainConfig

DIGITS = 10
"""Hexadecimal digits of the digest: two runs of a study of ten thousand share them once in twenty thousand studies."""
MADE_OF_RUNS = {"mask", "initial weights"}
"""Contents of a pruned run that other runs of its study leave, so that they are known by what those are."""
_MOST_WORDS = 60


def run_digest(config: TrainConfig, contents: Mapping[str, Any]) -> str:
    """Sha256, hexadecimal, of the settings and `contents` that decide the result of a run."""
    fixed = fixed_settings(config)
    default = {name: field.get_default(call_default_factory=True) for name, field in TrainConfig.model_fields.items()}
    plain = strict({name: value for name, value in fixed.items() if not _same(value, default[name])})
    decides = {"settings": plain, "model": config.student, "contents": strict(dict(contents))}
    return hashlib.sha256(canonical(decides)).hexdigest()


def mask_contents(mask: MaskPlan) -> dict[str, Any]:
    """What stands in a run's digest for a mask, and for the weights it is rewound to: the recipe, and the names of the
    runs that they are made of. Those end in digests of their own, so a chain of levels is known from its beginning on.
    """
    made: dict[str, Any] = {"mask": {"of": mask.of, "recipe": asdict(mask.recipe)}}
    return made | ({"initial weights": {"rewound to": mask.rewinds_to}} if mask.rewinds_to else {})


def run_name(key: ArmKey, seed: int, digest: str) -> str:
    """The name of a run's folder: readable words, the seed, and the digest that makes it the run's own."""
    keep = f"keep{key.keep}" if key.keep else ""
    pruned = f"{key.pruned}{key.weights}" if key.pruned else ""
    draw = f"draw{key.draw}" if key.draw else ""
    words = "-".join(filter(None, (key.arm, keep, key.mode, key.variant, pruned, draw)))
    words = re.sub(r"[^A-Za-z0-9._=-]+", "_", words)
    return f"{words[:_MOST_WORDS].rstrip('-_.')}-seed{seed}-{digest[:DIGITS]}"


def _same(value: Any, default: Any) -> bool:
    return bool(value == (list(default) if isinstance(default, tuple) else default))
