"""What all ranks of a run must have alike, compared before the first step.

Each rank has its own command line, `dlth.toml` and disks. Ranks that differ do not notice: gradients of other arms or
seeds add up as well, and where the numbers of steps differ the ranks wait for each other for ever. So each says what it
has as JSON, every rank compares the same texts, and all end alike.
"""

import json
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from typing import Any

from dlth.tickets.errors import MismatchError, shown
from dlth.training.distributed.process_group import World
from dlth.training.settings.fields import Settings, path_kind

LOCAL = ("device", "workers", "resume")
"""Settings of a machine; whether ranks go on from one checkpoint is compared by what it holds."""


def agree(world: World, facts: Mapping[str, Any]) -> None:
    """Return if every rank has the same facts, which JSON must be able to hold.

    Raises:
        MismatchError: on all ranks alike; names each fact that differs, and two ranks' values of it
    """
    if world.size == 1:
        return
    ranks = [json.loads(text) for text in world.texts(json.dumps(facts))]
    lines = []
    for name in dict.fromkeys(name for theirs in ranks for name in theirs):
        if other := next((rank for rank, theirs in enumerate(ranks) if _differ(theirs, ranks[0], name)), 0):
            texts = _text(ranks[0], name), _text(ranks[other], name)
            lines.append(f"{shown(name)}: rank 0 has {texts[0]}, rank {other} {texts[1]}")
    if lines:
        raise MismatchError(
            "the ranks of this run do not agree:\n  " + "\n  ".join(lines) + "\nStart all of them with the same"
            " settings, and with the same files; look for a dlth.toml of its own on a machine."
        )


def settings_of(command: str, config: Settings, also: Iterable[str] = ()) -> dict[str, Any]:
    """The settings on which ranks must agree: not what a machine may have elsewhere or otherwise.

    What is read may lie elsewhere on each machine: it is compared by what it holds, once it is open. `also` names paths
    that must agree all the same.
    """
    kinds = type(config).model_fields
    left_out = {name for name, kind in kinds.items() if path_kind(kind)} - set(also) | set(LOCAL)
    return {"command": command, "dlth": version("dlth")} | config.model_dump(mode="json", exclude=left_out)


def _differ(one: Mapping[str, Any], other: Mapping[str, Any], name: str) -> bool:
    return name not in one or name not in other or one[name] != other[name]


def _text(facts: Mapping[str, Any], name: str) -> str:
    value = facts.get(name)
    return "nothing" if value in (None, "") else shown(value)
