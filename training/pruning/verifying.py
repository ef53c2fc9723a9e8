"""The weights in a run's folder, held against the mask beside them: zero wherever it masks, in each file of weights."""

from pathlib import Path

from dlth.tickets.errors import DamageError, InputError, MismatchError, UnsafeError, shown
from dlth.training.models.weights import read_weights
from dlth.training.pruning.making import not_zero
from dlth.training.pruning.mask_file import MaskFile


def damaged_weights(folder: Path, mask: MaskFile) -> list[DamageError]:
    """What is wrong with a run's weights, the last, averaged and best ones, for the mask that they were trained under.

    Raises:
        UnsafeError, LimitError: a link in the place of weights, or a file beyond any model's size
    """
    paths = sorted(folder.glob("model*.safetensors"))
    return [damage for path in paths for damage in _damage(path, mask)]


def _damage(path: Path, mask: MaskFile) -> list[DamageError]:
    if path.is_symlink():
        raise UnsafeError(f"{shown(path)} is a link; weights of a run are read from its own folder alone")
    try:
        weights = read_weights(path)
    except (InputError, MismatchError) as error:
        return [DamageError(f"{shown(path)}: {error}", file=path.name)]
    shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
    if other := [name for name, shape in mask.header.shapes.items() if shapes.get(name) != shape]:
        told = f"the mask beside it has {shown(other[0])} as {mask.header.shapes[other[0]]}"
        return [DamageError(f"{shown(path)} holds {shapes.get(other[0], 'nothing')} where {told}", file=path.name)]
    return [
        DamageError(f"{shown(path)}: {count:,} masked weights of {shown(name)} are not zero", file=path.name)
        for name, count in not_zero(weights, mask.masks).items()
    ]
