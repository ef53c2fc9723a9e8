"""The arms of a study: arms x keeps x modes x variants, and controls, each with its settings of train.

Dense runs keep all patches and have no mode, so there is one for each variant. Random patches need no selector, so one
arm of them stands beside projected and online tickets alike; frozen views are other images, which every arm must see.
A control is a file of tickets, which the online mode does not read; it has the settings that the ticket arm has alone,
and its own over them.
"""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from dlth.pipeline.evidence.arm_key import CONTROL, ArmKey
from dlth.pipeline.studies.study_config import OWN, CompareConfig
from dlth.tickets.errors import InputError

Values = dict[str, Any]


@dataclass(frozen=True)
class Cell:
    """An arm of the grid, and its settings of train but for seed and folder; `control`: the kind of control, or ""."""

    key: ArmKey
    values: Mapping[str, Any]
    control: str = ""


def grid(config: CompareConfig, train: Mapping[str, Any]) -> tuple[tuple[Cell, ...], tuple[str, ...]]:
    """The arms in order, and what was left out as it makes no sense.

    Args:
        config: of the study
        train: settings that the runs share
    Raises:
        InputError: controls without a ticket file to make them of
    """
    notes: list[str] = []
    if unused := [name for name in OWN if train.get(name) is not None and (name != "keep" or config.keep)]:
        notes.append(f"the study gives its runs their own {', '.join(unused)}: what was said for all is not taken")
    cells = [
        replace(cell, values={**cell.values, **own_settings(cell, config)})
        for variant, swept in variants(config)
        for cell in _cells(config, dict(train) | swept, variant, notes)
    ]
    if "dense" in config.arms and len(config.keep) > 1:
        notes.append("the dense arm keeps all patches: it is run once per seed, whatever the keeps")
    return tuple(cells), tuple(dict.fromkeys(notes))


def own_settings(cell: Cell, config: CompareConfig) -> Values:
    """Settings that the study has for an arm alone."""
    return {**(config.arm.get("ticket", {}) if cell.control else {}), **config.arm.get(cell.key.arm, {})}


def variants(config: CompareConfig) -> Iterator[tuple[str, Values]]:
    """Each combination of swept values, in words and as settings; one without either where nothing is swept."""
    for values in itertools.product(*config.sweep.values()):
        swept = dict(zip(config.sweep, values, strict=True))
        yield ",".join(f"{name}={_in_words(value)}" for name, value in swept.items()), swept


def _in_words(value: Any) -> str:
    return "[" + ",".join(map(_in_words, value)) + "]" if isinstance(value, list) else str(value)


def _cells(config: CompareConfig, shared: Values, variant: str, notes: list[str]) -> Iterator[Cell]:
    keeps = config.keep or ((shared["keep"],) if shared.get("keep") else (None,))
    shared = {name: value for name, value in shared.items() if name not in OWN}
    controls = tuple(CONTROL + kind for kind in config.control)
    for arm in (*config.arms, *controls):
        if arm == "dense":
            yield Cell(ArmKey(arm, variant=variant), _dense(shared) | {"arm": arm})
            continue
        for mode in _modes(arm, config.mode, notes):
            values = {name: value for name, value in shared.items() if mode == "online" or not _of_online(name)}
            for keep in keeps:
                kind = arm.removeprefix(CONTROL) if arm in controls else ""
                if kind and not values.get("tickets"):
                    raise InputError(f"--control {kind} is made of a ticket file: give --tickets")
                own = {"arm": "ticket" if kind else arm, "mode": mode} | ({"keep": keep} if keep else {})
                yield Cell(ArmKey(arm, str(keep or ""), mode, variant), values | own, kind)


def _modes(arm: str, modes: tuple[str, ...], notes: list[str]) -> tuple[str, ...]:
    """The modes that an arm is run in."""
    if arm == "ticket" or "online" not in modes:
        return modes
    if arm == "random":
        if "projected" not in modes:
            return modes
        notes.append("random patches need no selector: those of mode projected stand beside online tickets too")
    else:
        notes.append(f"{arm} is a file of tickets, which the mode online does not read: it is run in the other modes")
    return tuple(mode for mode in modes if mode != "online")


def _dense(shared: Values) -> Values:
    """Without what says how patches are chosen: the dense arm refuses it, or has no use for it."""
    others = ("keep_schedule", "keep_schedule_start", "keep_schedule_epochs", "frozen_views")
    return {name: value for name, value in shared.items() if name not in others and not _of_online(name)}


def _of_online(name: str) -> bool:
    return name.startswith("selector")
