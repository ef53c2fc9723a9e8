"""Finished runs side by side: by arm and seed, what keeps arms from being compared, and the images that all have seen.

A family is what is compared: the arms that drop patches at one keep, mode and variant, and the dense arm of the
variant, of the same weights; and the ways to prune one arm to the same share of its weights, and that arm unpruned.
Runs that differ in more than the arm stop the verdicts of their family; tables show them all the same.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, reduce
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dlth.pipeline.evidence.agreement import Agreement
from dlth.pipeline.evidence.arm_key import MASKED, MOST_DRAWS, PRUNED, ArmKey, pairs, stands_in
from dlth.pipeline.evidence.finished_run import FinishedRun
from dlth.pipeline.evidence.run_states import RunState
from dlth.pipeline.evidence.study_plan import StudyPlan
from dlth.pipeline.evidence.validation_images import ValidationImages
from dlth.training.settings.comparable import as_judged, comparable

DENSE = "dense"
COMPARED = (("ticket", DENSE), ("ticket", "random"), (DENSE, "random"))
"""Which arms the paper's clauses hold against which, in their order."""


@dataclass(frozen=True, eq=False)
class Evidence:
    """What folders hold.

    runs: finished runs by arm and seed, both in order
    unfinished: runs of the folders that have no result, or one that cannot be read
    studies: plans by the folder of the study
    notes: what a person should know, such as runs that were left out
    agreements: what `dlth tickets agree --out` left in the folders about tickets that runs were trained on, by name
    images: what the runs were evaluated on, where who gathers has it at hand
    """

    runs: Mapping[ArmKey, Mapping[int, FinishedRun]]
    unfinished: tuple[RunState, ...] = ()
    studies: Mapping[Path, StudyPlan] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    agreements: Mapping[str, Agreement] = field(default_factory=dict)
    images: ValidationImages | None = None

    @property
    def all_runs(self) -> list[FinishedRun]:
        """Every finished run, arm by arm, seed by seed."""
        return [run for runs in self.runs.values() for run in runs.values()]

    @cached_property
    def charged_flops(self) -> dict[Path, float]:
        """For each planned run, by its folder, its share of the operations that the tickets cost."""
        return {
            plan.folder(study, run): run.cost.charged_flops for study, plan in self.studies.items() for run in plan.runs
        }

    @cached_property
    def differences(self) -> dict[ArmKey, list[str]]:
        """For each arm that drops patches or weights and cannot be judged, what its families' runs differ in."""
        found = {
            arm: [text for family in self._families(arm) for text in self._differences(family)] for arm in self.runs
        }
        return {arm: list(dict.fromkeys(differences)) for arm, differences in found.items() if differences}

    @cached_property
    def apart(self) -> dict[tuple[ArmKey, ArmKey], list[str]]:
        """For each two arms of which one stands in beside the other, and cannot, what they differ in besides.

        Each is judged in its own family, and families of two modes or variants are not compared as wholes.
        """
        drawn = self._drawn
        claimed = [pair for arms in COMPARED for pair in pairs(*arms, drawn) if stands_in(*pair)]
        found = {pair: self._differences([arm for key in pair for arm in drawn[key]], "mode") for pair in claimed}
        return {pair: differences for pair, differences in found.items() if differences}

    def _differences(self, arms: Collection[ArmKey], *besides: str) -> list[str]:
        """In what the runs of arms differ, but for `besides` and what a study lets its arms differ in.

        A study says that of its own arms: it has a run of each, and further runs of an arm, wherever they are from, are
        like those.
        """
        results = {arm: [as_judged(run.facts) for run in self.runs[arm].values()] for arm in arms}
        folders = [{run.folder for run in self.runs[arm].values()} for arm in arms]
        plans = [plan for plan, own in self._planned if not any(own.isdisjoint(of_arm) for of_arm in folders)]
        allowed = {*besides, *(name for plan in plans for name in plan.may_differ)}
        among = comparable([result for of_arm in results.values() for result in of_arm], allowed)
        return among or [text for of_arm in results.values() for text in comparable(of_arm, one_arm=True)]

    @cached_property
    def _planned(self) -> list[tuple[StudyPlan, set[Path]]]:
        """Each plan with the folders of its runs."""
        return [(plan, {plan.folder(study, run) for run in plan.runs}) for study, plan in self.studies.items()]

    def _families(self, arm: ArmKey) -> Iterator[list[ArmKey]]:
        """The arms that one is compared with, and itself: by their patches, and by their weights."""
        if arm.arm != DENSE:
            alike = [key for key in self.runs if _weights(key) == _weights(arm) and key.variant == arm.variant]
            yield [key for key in alike if key.arm == DENSE or (key.keep, key.mode) == (arm.keep, arm.mode)]
        if arm.pruned in PRUNED:
            alike = [key for key in self.runs if key.unpruned == arm.unpruned]
            yield [key for key in alike if key.weights in ("", arm.weights) and key.pruned != MASKED]

    @cached_property
    def judged(self) -> dict[ArmKey, Mapping[int, FinishedRun]]:
        """Runs that can be judged: of families without differences, and with validation images."""
        judged: dict[ArmKey, Mapping[int, FinishedRun]] = {}
        for arm, runs in self.runs.items():
            with_images = {seed: run for seed, run in runs.items() if run.images}
            if with_images and arm not in self.differences:
                judged[arm] = with_images
        return judged

    @cached_property
    def hits(self) -> dict[ArmKey, dict[int, NDArray[np.bool_]]]:
        """By arm and seed bool [N], whether an image was right on the tokens that the arm is judged by.

        The same N images in the same order, that of their keys: those that every judged run has seen. Of an arm that
        was drawn several times bool [draws, N] under the key of its first draw: of each seed as many draws, the first,
        as all of them have.
        """
        runs = [run for runs in self.judged.values() for run in runs.values()]
        rows = dict(zip(map(id, runs), shared_images(runs), strict=True))
        hits: dict[ArmKey, dict[int, NDArray[np.bool_]]] = {}
        for arm, draws in self._drawn.items():
            by_seed: dict[int, list[NDArray[np.bool_]]] = {}
            for seed, run in (item for draw in draws for item in self.judged[draw].items()):
                by_seed.setdefault(seed, []).append(run.images[f"{run.judged_on}_top1"][rows[id(run)]])
            num = min(MOST_DRAWS, *map(len, by_seed.values()))
            hits[arm] = {seed: of[0] if num == 1 else np.stack(of[:num]) for seed, of in sorted(by_seed.items())}
        return hits

    @cached_property
    def _drawn(self) -> dict[ArmKey, list[ArmKey]]:
        """The judged arms: the draws of each, in order, by the key that stands for them together."""
        drawn: dict[ArmKey, list[ArmKey]] = {}
        for arm in self.judged:
            drawn.setdefault(arm.all_draws, []).append(arm)
        return drawn

    @property
    def left_out(self) -> int:
        """Validation images that not every judged run has seen, so no verdict counts them."""
        runs = [run for runs in self.judged.values() for run in runs.values()]
        shared = next((hits.shape[-1] for seeds in self.hits.values() for hits in seeds.values()), 0)
        return max((len(run.images["keys"]) for run in runs), default=0) - shared


def _weights(arm: ArmKey) -> tuple[str, str]:
    return arm.pruned, arm.weights


def shared_images(runs: Sequence[FinishedRun]) -> list[NDArray[np.int64]]:
    """For each run int [N], the rows of the N images that all of them have seen, in the order of their keys."""
    if not runs:
        return []
    seen = [run.images["keys"][run.images[f"{run.judged_on}_seen"]] for run in runs]
    shared = reduce(np.intersect1d, seen, np.unique(seen[0]))
    rows = []
    for run in runs:
        order = np.argsort(run.images["keys"], kind="stable")
        rows.append(order[np.searchsorted(run.images["keys"], shared, sorter=order)])
    return rows
