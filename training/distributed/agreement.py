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
    first, *others = (json.loads(text) for text in world.texts(json.dumps(facts)))
    lines = []
    for name in dict.fromkeys(name for said in (first, *others) for name in said):
        theirs = next(((rank, said) for rank, said in enumerate(others, 1) if _other(said, first, name)), None)
        if theirs is not None:
            rank, said = theirs
            lines.append(f"{shown(name)}: rank 0 has {_text(first, name)}, rank {rank} {_text(said, name)}")
    if lines:
        raise MismatchError(
            "the ranks of this run do not agree:\n  " + "\n  ".join(lines) + "\nStart all of them with the same"
            " settings, and with the same files; look for a dlth.toml of its own on a machine."
        )


def settings_of(command: str, config: Settings, also: Iterable[str] = ()) -> dict[str, Any]:
    """The settings on which ranks must agree: not what a machine may have elsewhere or otherwise.

    What is read may lie elsewhere on each machine: it is compared by what it holds, once it is open.

    Args:
        command: which one it is
        config: its settings
        also: names of paths that must agree all the same
    """
    kinds = type(config).model_fields
    left_out = {name for name, kind in kinds.items() if path_kind(kind)} - set(also) | set(LOCAL)
    return {"command": command, "dlth": version("dlth")} | config.model_dump(mode="json", exclude=left_out)


def _other(said: Mapping[str, Any], first: Mapping[str, Any], name: str) -> bool:
    return name not in said or name not in first or said[name] != first[name]


def _text(said: Mapping[str, Any], name: str) -> str:
    value = said.get(name)
    return "nothing" if value in (None, "") else shown(value)
