"""Which kinds of students there are, by how they leave patches out; a new one is a file of its own and a line here."""

from torch import nn

from dlth.tickets.errors import InputError, shown
from dlth.training.models.registry import check_can_drop
from dlth.training.models.small_dense import SmallDense
from dlth.training.models.sparse_swin import SparseSwin
from dlth.training.models.student import Student
from dlth.training.models.ticket_vit import TicketViT
from dlth.training.models.zero import ZeroStudent

STUDENTS: dict[str, tuple[type[Student], ...]] = {
    "sparse": (TicketViT, SparseSwin),
    "zero": (ZeroStudent,),
    "small-dense": (SmallDense,),
}
"""How patches are left out -> kinds of students that do it so, the first that takes a model before the others.

sparse: only the tokens of kept patches are computed; zero: dropped patches are zero in the normalised, mixed image;
small-dense: kept patches are laid out as a smaller image.
"""


def make_student(model: nn.Module, how: str | None = None, patch_size: int | None = None) -> Student:
    """A model as a student, whose `forward(images, patches or None)` gives logits.

    Args:
        model: of timm; for `zero` and `small-dense` any module that takes images [B, C, height, width]
        how: a name of `STUDENTS`; None is the first that takes the model, so `sparse` where that can be
        patch_size: side of the tickets' patches in pixels; None is the model's own, 16 where it has none of one size
    Raises:
        InputError: no such way, or a model that cannot go it, with what would work
    """
    if how is not None and how not in STUDENTS:
        raise InputError(f"there is no --how {shown(how)!r}; there are {', '.join(STUDENTS)}")
    kinds = [kind for kind in STUDENTS if how in (None, kind)]
    kind = next((kind for name in kinds for kind in STUDENTS[name] if kind.takes(model)), None)
    if kind is not None:
        return kind(model, patch_size)
    try:
        check_can_drop(model)  # says why not
    except InputError as error:
        raise InputError(f"{error} Any model takes --how zero.") from error
    raise InputError(f"{type(model).__name__} has no --how {how}; any model takes --how zero")
