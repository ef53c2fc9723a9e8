"""Runs of several folders by arm and seed; runs that are no repetitions of each other are kept apart as variants.

The seeds of one arm may lie in several folders. Where two folders have the same arm and seed, they are of different
models, or each folder is a study of its own: the model's name, or the folder's, becomes part of the variant. So the
rows of the paper's table, a folder each, meet by model: its dense arm, its tickets, its random patches.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dlth.pipeline.evidence.arm_key import ArmKey, by_weights, share
from dlth.pipeline.evidence.finished_run import FinishedRun
from dlth.tickets.callbacks import Note
from dlth.tickets.errors import shown

BASE_ARMS = ("ticket", "random", "dense")


@dataclass(frozen=True, eq=False)
class Placed:
    """A run, its arm, and the folder that was named and holds it."""

    folder: Path
    arm: ArmKey
    run: FinishedRun

    def named(self, *names: str) -> "Placed":
        """The same in a variant of these names."""
        return replace(self, arm=replace(self.arm, variant=", ".join(filter(None, (*names, self.arm.variant)))))


def by_arm(placed: Sequence[Placed], tell: Note) -> dict[ArmKey, dict[int, FinishedRun]]:
    """Runs by arm and seed, both in order; `tell` hears what is kept apart, and what is left out as a second one."""
    runs: dict[ArmKey, dict[int, FinishedRun]] = {}
    for each in _kept_apart(_each_once(placed, tell), tell):
        if each.run.seed in runs.setdefault(each.arm, {}):
            tell(f"left out: {shown(each.run.folder)}, another run of {shown(each.arm)}, seed {each.run.seed}")
            continue
        runs[each.arm][each.run.seed] = each.run
    return {arm: dict(sorted(runs[arm].items())) for arm in sorted(runs, key=_order)}


def _each_once(placed: Sequence[Placed], tell: Note) -> list[Placed]:
    """Without runs that are there twice, such as a study's in its folder and in a bundle."""
    kept: dict[object, Placed] = {}
    for each in placed:
        weights = each.run.result.weights_sha256
        first = kept.setdefault((each.arm, each.run.seed, weights) if weights else id(each), each)
        if first is not each:
            tell(f"left out: {shown(each.run.folder)}, the same run as {shown(first.run.folder)}")
    return list(kept.values())


def _kept_apart(placed: Sequence[Placed], tell: Note) -> list[Placed]:
    if not _clash(placed):
        return list(placed)
    models = list(dict.fromkeys(each.run.result.model for each in placed))
    apart: list[Placed] = []
    for model in models:
        of_model = [each for each in placed if each.run.result.model == model]
        clash = _clash(of_model)
        if clash:
            tell(f"folders have runs of {shown(model)} of the same arm and seed: each folder's are arms of their own")
        name = shown(model, 80) if len(models) > 1 else ""
        apart += [each.named(name, each.folder.resolve().name if clash else "") for each in of_model]
    return apart


def _clash(placed: Sequence[Placed]) -> bool:
    """Whether two folders have a run of the same arm and seed."""
    folders: dict[tuple[ArmKey, int], set[Path]] = {}
    for each in placed:
        folders.setdefault((each.arm, each.run.seed), set()).add(each.folder)
    return any(len(named) > 1 for named in folders.values())


def _order(key: ArmKey) -> tuple[object, ...]:
    """The dense arm of a variant, then its keeps from the largest, ticket before random before controls; each with all
    of its weights, then with fewer.
    """
    base = BASE_ARMS.index(key.arm) if key.arm in BASE_ARMS else len(BASE_ARMS)
    return key.variant, key.arm != "dense", key.mode, -share(key.keep), base, key.arm, by_weights(key)
