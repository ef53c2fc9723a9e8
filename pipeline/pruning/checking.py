"""Masks held against all that is known of them: their own bytes, the weights beside them, the runs they were made of.

A mask's file alone shows that no bit of it has changed. In a run's folder its weights and its result must agree with
it, and any other mask that lies there is checked by itself. In a study's folder each mask is also made again from the
runs that the plan makes it of, and must be the same to the byte: what it says of its parent, of the weights it came
from and of those that were set back is then true as well.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from dlth.pipeline.evidence.parents import altered_parents
from dlth.pipeline.evidence.study_plan import RUNS, STUDY, PlannedRun, StudyPlan, read_study
from dlth.tickets.callbacks import Progress
from dlth.tickets.errors import (
    DamageError,
    DlthError,
    InputError,
    LimitError,
    MismatchError,
    MissingFileError,
    UnsafeError,
    shown,
)
from dlth.tickets.store.disk import reading
from dlth.training.models.weights import check_own, stored_digest
from dlth.training.models.weights_metadata import MODEL_FILE
from dlth.training.pruning.making import made
from dlth.training.pruning.mask_file import MAX_JSON, MaskFile, read_mask
from dlth.training.pruning.recipe import MASK
from dlth.training.pruning.verifying import damaged_weights
from dlth.training.runs.result import read_result
from dlth.training.runs.resume import CHECKPOINTS, WRITTEN
from dlth.training.runs.runlog import RESULT

_SUFFIX, _SAYS_SO = Path(MASK).suffix, b"dlth-mask"


@dataclass(frozen=True)
class MaskCheck:
    """What a check of masks found.

    whole: each mask that is as it was written -> its identity
    waiting: masks that a study plans and that are not made yet
    unproven: whole masks that could not be made again, as weights that they were made of are gone
    problems: what is wrong, one error each: damage, and what could not be read, or may not be
    left_out: what a folder holds besides its masks and what a run writes: weights of no known origin, and folders
    """

    whole: Mapping[str, str] = field(default_factory=dict)
    waiting: tuple[str, ...] = ()
    unproven: tuple[str, ...] = ()
    problems: tuple[DlthError, ...] = ()
    left_out: tuple[str, ...] = ()

    @property
    def damage(self) -> tuple[DamageError, ...]:
        """Stored bytes that are not what was written."""
        return tuple(problem for problem in self.problems if isinstance(problem, DamageError))

    @property
    def unread(self) -> tuple[DlthError, ...]:
        """Missing files, links and devices, sizes beyond all bounds, studies that prune nothing."""
        return tuple(problem for problem in self.problems if not isinstance(problem, DamageError))


def check_masks(paths: Sequence[Path], progress: Progress) -> MaskCheck:
    """Check masks' files, runs' folders and studies' folders: all of them, whatever is found in one.

    Args:
        progress: called with how many masks of how many are checked
    """
    tasks, checks = [task for path in paths for task in _tasks_of(path)], []
    for count, task in enumerate(tasks, 1):
        try:
            checks.append(task())
        except DlthError as error:
            checks.append(MaskCheck(problems=(error,)))
        progress(count, len(tasks))
    return MaskCheck(
        {place: identity for check in checks for place, identity in check.whole.items()},
        tuple(place for check in checks for place in check.waiting),
        tuple(place for check in checks for place in check.unproven),
        tuple(problem for check in checks for problem in check.problems),
        tuple(place for check in checks for place in check.left_out),
    )


def _tasks_of(path: Path) -> list[Callable[[], MaskCheck]]:
    """The checks of a path that a user names; one that tells why there are none."""
    try:
        return list(_tasks(path))
    except DlthError as error:
        return [partial(MaskCheck, problems=(error,))]


def _tasks(path: Path) -> Iterator[Callable[[], MaskCheck]]:
    """The check of each mask that a path means.

    Raises:
        MissingFileError: nothing there, or a folder without a mask
        DamageError, InputError: a study's plan that is damaged, or one that prunes nothing
    """
    if not path.is_dir():
        yield partial(_check_file, path)
    elif not os.path.lexists(path / STUDY):
        yield from _tasks_of_folder(path)
    else:
        plan = read_study(path)
        pruned = [run for run in plan.runs if run.mask is not None]
        if not pruned:
            raise InputError(f"{shown(path)} is a study that prunes no weights: it has no masks")
        for run in pruned:
            yield partial(_check_planned, path, plan, run)


def _tasks_of_folder(folder: Path) -> Iterator[Callable[[], MaskCheck]]:
    """The check of each mask in a run's folder, or in any that is no study's."""
    with reading(folder):
        there = sorted(each for each in folder.iterdir() if each.name not in (*WRITTEN, CHECKPOINTS))
    others = [each for each in there if each.suffix == _SUFFIX or each.is_dir()]
    masks = [each for each in others if _is_mask(each)]
    if not masks and not os.path.lexists(folder / MASK):
        raise MissingFileError(
            f"{shown(folder)} holds no {MASK}, and no {STUDY}: name a mask, the folder of a pruned run, or a study's"
        )
    if os.path.lexists(folder / MASK):
        yield partial(_check_run, folder)
    for each in masks:
        yield partial(_check_file, each)
    if left_out := tuple(str(each) for each in others if each not in masks):
        yield partial(MaskCheck, left_out=left_out)


def _is_mask(path: Path) -> bool:
    """Whether a file is called a mask, or says in its JSON that it is one; a link is what its name says."""
    if path.suffix == _SUFFIX and path.name.startswith(Path(MASK).stem):
        return True
    if path.is_symlink() or not path.is_file():
        return False
    with reading(shown(path)), path.open("rb") as file:
        return _SAYS_SO in file.read(MAX_JSON)


def _check_file(path: Path) -> MaskCheck:
    return MaskCheck({str(path): read_mask(path).identity})


def _check_run(folder: Path) -> MaskCheck:
    """A mask with the weights and the result beside it."""
    mask = read_mask(folder / MASK)
    problems = (*damaged_weights(folder, mask), *_result(folder, mask))
    return MaskCheck({str(folder / MASK): mask.identity}, problems=problems)


def _check_planned(study: Path, plan: StudyPlan, run: PlannedRun) -> MaskCheck:
    """A mask of a study: its run, and what making it again gives."""
    folder = plan.folder(study, run)
    _refuse_links(study, folder)
    if not os.path.lexists(folder / MASK):
        if not (folder / MODEL_FILE).is_file():
            return MaskCheck(waiting=(str(folder / MASK),))
        raise DamageError(f"{shown(folder)} is trained, and its {MASK} is gone", file=MASK)
    found = _check_run(folder)
    try:
        again = _made_again(study, plan, run)
        altered = altered_parents(study, run.mask) if run.mask is not None else ""
    except MissingFileError:
        return replace(found, unproven=tuple(found.whole))
    except (DamageError, InputError, MismatchError) as error:
        wrongs = [f"{shown(folder / MASK)} cannot be made again: {error}"]
    except DlthError as error:
        return replace(found, problems=(*found.problems, error))
    else:
        wrongs = [f"{shown(folder / MASK)} is made of altered weights: {altered}"] if altered else []
        if again.identity not in found.whole.values():
            wrongs.append(f"{shown(folder / MASK)} is not the mask that the runs of its plan give")
    return replace(found, problems=(*found.problems, *(DamageError(text, file=MASK) for text in wrongs)))


def _made_again(study: Path, plan: StudyPlan, run: PlannedRun) -> MaskFile:
    """The mask as its plan makes it. Raises as `made`, and DamageError where the plan names no run of its own."""
    assert run.mask is not None
    folders = {each.name: plan.folder(study, each) for each in plan.runs}
    if not folders.keys() >= set(run.mask.needs):
        raise DamageError(f"its plan makes it of {shown(run.mask.needs)}, which are not all runs of it", file=STUDY)
    _refuse_links(study, *(folders[name] for name in run.mask.needs))
    return made(run.mask.recipe, folders[run.mask.of], folders[run.mask.rewinds_to] if run.mask.rewinds_to else None)


def _refuse_links(study: Path, *folders: Path) -> None:
    """Raises UnsafeError where a study's runs lie outside of it."""
    for each in (study / RUNS, *folders):
        if each.is_symlink():
            raise UnsafeError(f"{shown(each)} is a link: a study's runs are read in its own folder alone")


def _result(folder: Path, mask: MaskFile) -> list[DlthError]:
    """Where a run's result speaks of another mask, or of other weights than lie beside it."""
    place, weights = folder / RESULT, folder / MODEL_FILE
    if not os.path.lexists(place):
        return []
    result = read_result(place)
    if result is None:
        return [DamageError(f"{shown(place)} cannot be read, or is damaged", file=RESULT)]
    told = (result.mask, result.prunable_weights, result.remaining_weights)
    if told != (mask.identity, mask.prunable, mask.remaining):
        of = f"mask {shown(told[0][:16])} with {told[2]} of {told[1]} weights" if told[0] else "no mask"
        beside = f"{mask.identity[:16]} with {mask.remaining} of {mask.prunable}"
        return [DamageError(f"{shown(place)} is of {of}; the one beside it is {beside}", file=RESULT)]
    try:
        check_own(weights)
        same = not weights.is_file() or stored_digest(weights) == result.weights_sha256
    except LimitError as error:
        return [error]
    except (UnsafeError, InputError):  # told already, by `damaged_weights`
        return []
    return [] if same else [DamageError(f"{shown(weights)} holds other weights than {RESULT} is of", file=MODEL_FILE)]
