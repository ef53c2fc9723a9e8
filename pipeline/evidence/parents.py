"""The runs that a mask is made of, held against what their results tell: weights altered since are no parent's weights.

A mask records digests of what it is made of, so one of altered weights would be whole, and so would all levels behind
it. Results are sealed when their runs end.
"""

import os
from pathlib import Path

from dlth.pipeline.evidence.study_plan import RUNS, MaskPlan
from dlth.tickets.errors import shown
from dlth.training.models.weights import stored_digest
from dlth.training.models.weights_metadata import MODEL_FILE
from dlth.training.pruning.mask_file import read_mask
from dlth.training.pruning.recipe import MASK, REWIND
from dlth.training.runs.result import read_result
from dlth.training.runs.runlog import RESULT


def altered_parents(study: Path, mask: MaskPlan) -> str:
    """Which files, of those that a mask is made of, hold other weights than their runs left; empty where none does.

    What is not there, and what a result of an older version does not tell of, is passed over. Raises as
    `stored_digest`, `read_mask`.
    """
    parent, told = study / RUNS / mask.of, []
    if result := read_result(parent / RESULT):
        told.append((parent / MODEL_FILE, result.weights_sha256, RESULT))
    if mask.rewinds_to:
        first = study / RUNS / mask.rewinds_to
        if result := read_result(first / RESULT):
            told.append((first / REWIND, result.rewind_weights, RESULT))
        if os.path.lexists(parent / MASK):  # one chain is set back to the same weights at each level
            told.append((first / REWIND, read_mask(parent / MASK).header.initial, f"{shown(parent.name)}/{MASK}"))
    there = dict.fromkeys(path for path, digest, _ in told if digest and path.is_file() and not path.is_symlink())
    stored = {path: stored_digest(path) for path in there}  # once, though two may tell of it
    found = {path: by for path, digest, by in reversed(told) if path in stored and digest not in ("", stored[path])}
    return "; ".join(f"{shown(path)} holds other weights than {by} tells of" for path, by in found.items())
