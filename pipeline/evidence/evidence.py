"""Finished runs side by side: by arm and seed, what keeps arms from being compared, and the images that all have seen.

A family is what is compared: the arms that drop patches at one keep, mode and variant, and the dense arm of the
variant. Runs that differ in more than the arm stop the verdicts of their family; tables show them all the same.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, reduce
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dlth.pipeline.evidence.agreement import Agreement
from dlth.pipeline.evidence.arm_key import ArmKey, pairs, stands_in
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
        """For each arm that drops patches and cannot be judged, what its family's runs differ in."""
        dropping = [arm for arm in self.runs if arm.arm != DENSE]
        found = {arm: self._differences(self._family(arm)) for arm in dropping}
        return {arm: differences for arm, differences in found.items() if differences}

    @cached_property
    def apart(self) -> dict[tuple[ArmKey, ArmKey], list[str]]:
        """For each two arms of which one stands in beside the other, and cannot, what they differ in besides.

        Each is judged in its own family, and families of two modes or variants are not compared as wholes.
        """
        claimed = [pair for arms in COMPARED for pair in pairs(*arms, self.judged)]
        found = {pair: self._differences(pair, "mode") for pair in claimed if stands_in(*pair)}
        return {pair: differences for pair, differences in found.items() if differences}

    def _differences(self, arms: Collection[ArmKey], *besides: str) -> list[str]:
        """In what the runs of arms differ, but for `besides` and what a study lets its arms differ in.

        A study says that of its own arms: it has a run of each, and further runs of an arm, wherever they are from, are
        like those.
        """
        results = {arm: [as_judged(run.result.to_json()) for run in self.runs[arm].values()] for arm in arms}
        folders = [{run.folder for run in self.runs[arm].values()} for arm in arms]
        plans = [plan for plan, own in self._planned if not any(own.isdisjoint(of_arm) for of_arm in folders)]
        allowed = {*besides, *(name for plan in plans for name in plan.may_differ)}
        among = comparable([result for of_arm in results.values() for result in of_arm], allowed)
        return among or [text for of_arm in results.values() for text in comparable(of_arm, one_arm=True)]

    @cached_property
    def _planned(self) -> list[tuple[StudyPlan, set[Path]]]:
        """Each plan with the folders of its runs."""
        return [(plan, {plan.folder(study, run) for run in plan.runs}) for study, plan in self.studies.items()]

    def _family(self, arm: ArmKey) -> list[ArmKey]:
        """The arms that one is compared with, and itself."""
        alike = [key for key in self.runs if key.variant == arm.variant]
        return [key for key in alike if key.arm == DENSE or (key.keep, key.mode) == (arm.keep, arm.mode)]

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

        The same N images in the same order, that of their keys: those that every judged run has seen.
        """
        runs = [run for runs in self.judged.values() for run in runs.values()]
        rows = dict(zip(map(id, runs), shared_images(runs), strict=True))
        return {
            arm: {seed: run.images[f"{run.judged_on}_top1"][rows[id(run)]] for seed, run in runs.items()}
            for arm, runs in self.judged.items()
        }

    @property
    def left_out(self) -> int:
        """Validation images that not every judged run has seen, so no verdict counts them."""
        runs = [run for runs in self.judged.values() for run in runs.values()]
        shared = next((len(hits) for seeds in self.hits.values() for hits in seeds.values()), 0)
        return max((len(run.images["keys"]) for run in runs), default=0) - shared


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
