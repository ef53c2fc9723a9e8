"""The weights in a run's folder, held against the mask beside them: zero wherever it masks, in each file of weights."""

from pathlib import Path

from safetensors import safe_open

from dlth.tickets.errors import DamageError, DlthError, InputError, UnsafeError, shown
from dlth.training.models.weights import check_own, stored_weights
from dlth.training.pruning.making import not_zero
from dlth.training.pruning.mask_file import MaskFile


def damaged_weights(folder: Path, mask: MaskFile) -> list[DlthError]:
    """What is wrong with a run's weights, the last, averaged and best ones, for the mask that they were trained under.

    A DamageError for each, or an UnsafeError: a link or no file in the place of weights.
    """
    paths = sorted(folder.glob("model*.safetensors"))
    return [problem for path in paths for problem in _problems(path, mask)]


def _problems(path: Path, mask: MaskFile) -> list[DlthError]:
    try:
        check_own(path)
        shapes = {name: tuple(weight.shape) for name, weight in stored_weights(path).items()}
    except UnsafeError as error:
        return [error]
    except InputError as error:
        return [DamageError(f"{shown(path)}: {error}", file=path.name)]
    if other := [name for name, shape in mask.header.shapes.items() if shapes.get(name) != shape]:
        told = f"the mask beside it has {shown(other[0])} as {mask.header.shapes[other[0]]}"
        return [DamageError(f"{shown(path)} holds {shapes.get(other[0], 'nothing')} where {told}", file=path.name)]
    with safe_open(path, framework="pt") as file:  # what the mask is of, and no more: the rest may be of any size
        weights = {name: file.get_tensor(name) for name in mask.header.shapes}
    return [
        DamageError(f"{shown(path)}: {count:,} masked weights of {shown(name)} are not zero", file=path.name)
        for name, count in not_zero(weights, mask.masks).items()
    ]
