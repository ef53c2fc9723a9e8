"""A mask made of what finished runs left in their folders, and of nothing else: whoever has those makes the same bytes.

Of the run before: its final weights (not their average, not the best epoch's) and its mask. Of the unpruned run: the
weights at the rewinding point, of which the mask records the digest and the step.
"""

import os
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from dlth.tickets.errors import DamageError, InputError, MismatchError, MissingFileError, shown
from dlth.tickets.store.disk import make_folder
from dlth.training.models.registry import check_memory, held_to
from dlth.training.models.weights import check_fits, check_own, read_weights, stored_weights, tensors_digest
from dlth.training.models.weights_metadata import MODEL_FILE, ModelNote, WeightsNote
from dlth.training.pruning.magnitude import pruned
from dlth.training.pruning.mask_file import MaskFile, check_mask_fits, mask_of, read_mask, write_mask
from dlth.training.pruning.mask_header import MaskHeader, layers_of
from dlth.training.pruning.prunable import prunable_shapes
from dlth.training.pruning.recipe import MASK, REWIND, MaskRecipe, Masks


def make_mask(recipe: MaskRecipe, parent: Path, rewind: Path | None, out: Path) -> MaskFile:
    """Write `out`/mask.safetensors, or check that the one that is there is the same to the byte.

    Args:
        recipe: what is masked
        parent: folder of the finished run that the recipe begins with
        rewind: folder of the run whose weights at the rewinding point are trained again; None for fresh random weights
    Raises:
        MissingFileError: a run that is not finished, or has kept no weights to set back to
        InputError: a layer would be emptied; weights that are no numbers
        MismatchError: the mask of `parent` is not one that this recipe goes on from
        DamageError: masked weights of `parent` are not zero, or another mask stands in `out`
    """
    mask, path = made(recipe, parent, rewind), out / MASK
    if not os.path.lexists(path):
        make_folder(out)
        return write_mask(path, mask.header, mask.masks)
    if read_mask(path).identity != mask.identity:  # of what can be read, the same identity is the same bytes
        raise DamageError(
            f"{shown(path)} is not the mask that {shown(parent)} gives ({recipe}): it is of other weights, or of"
            " another recipe. Move its folder away and run again",
            file=MASK,
        )
    return mask


def made(recipe: MaskRecipe, parent: Path, rewind: Path | None) -> MaskFile:
    """The same mask, written nowhere. Arguments and errors as `make_mask`."""
    note = _note(parent, MODEL_FILE)
    with held_to(len(stored_weights(parent / MODEL_FILE)), shown(parent / MODEL_FILE)):
        model = note.outline()
    weights = _weights(parent / MODEL_FILE, model)
    before = _before(parent, recipe, model)
    if before is not None and (found := not_zero(weights, before.masks)):
        name, number = next(iter(found.items()))
        raise DamageError(
            f"{number} masked weights of {shown(name)} in {shown(parent / MODEL_FILE)} are not zero: it was not trained"
            " under the mask beside it, or is damaged",
            file=MODEL_FILE,
        )
    prunable = {name: weights[name] for name in prunable_shapes(model, recipe.exclude)}
    masks = pruned(prunable, before.masks if before else None, recipe)
    step, initial = _rewound(rewind, model) if rewind is not None else (None, "")
    header = MaskHeader(
        **{name: getattr(note, name) for name in ModelNote.model_fields},
        recipe=recipe,
        layers=layers_of(masks),
        rewind_step=step,
        initial=initial,
        final=tensors_digest(weights),
        parent=before.identity if before else "",
    )
    return mask_of(header, masks)


def not_zero(weights: Mapping[str, Tensor], masks: Masks) -> dict[str, int]:
    """Parameter -> how many of its masked weights are not zero; those of which there is none are left out."""
    counts = {name: int(weights[name][~mask].count_nonzero()) for name, mask in masks.items()}
    return {name: count for name, count in counts.items() if count}


def _before(parent: Path, recipe: MaskRecipe, model: nn.Module) -> MaskFile | None:
    """The mask that the parent was trained under; raises MismatchError unless the recipe goes on from there."""
    path = parent / MASK
    before = read_mask(path) if os.path.lexists(path) else None
    first, there = recipe.level - recipe.rounds, before.header.recipe.level if before else 0
    if first != there:
        raise MismatchError(
            f"a mask of level {recipe.level} in {recipe.rounds} round{'s' * (recipe.rounds > 1)} begins with one of"
            f" level {first}; {shown(parent)} has level {there}"
        )
    if before is None:
        return None
    check_mask_fits(before, model, shown(path))
    its = before.header.recipe
    for name in ("rate", "scope", "exclude"):
        if getattr(its, name) != getattr(recipe, name):
            raise MismatchError(
                f"{shown(path)} was made with {name} {shown(getattr(its, name))}, and level {recipe.level} asks for"
                f" {shown(getattr(recipe, name))}: one chain of masks has one recipe"
            )
    return before


def _rewound(folder: Path, model: nn.Module) -> tuple[int, str]:
    """The step of the weights at the rewinding point, and their digest."""
    note = _note(folder, REWIND)
    return note.step, tensors_digest(_weights(folder / REWIND, model))


def _weights(path: Path, model: nn.Module) -> dict[str, Tensor]:
    """The weights of a file, which is held against a model by its header: no small note or hollow file takes memory."""
    check_memory(model, shown(path))
    check_fits(model, stored_weights(path), shown(path))
    return check_fits(model, read_weights(path), shown(path))


def _note(folder: Path, name: str) -> WeightsNote:
    """What a file of a run's weights says of itself."""
    path = folder / name
    check_own(path)
    if not path.is_file():
        kept = "only a finished run has it"
        if name == REWIND:
            kept = "only a run with --rewind-step has it; if it is lost, move that run's folder away and train it again"
        raise MissingFileError(f"{shown(folder)} holds no {name}: {kept}")
    if (note := WeightsNote.read(path)) is None:
        raise InputError(f"{shown(path)} does not say which model it is of: dlth's own weights do")
    return note
