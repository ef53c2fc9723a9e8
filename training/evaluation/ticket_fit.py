"""How a ticket file and a student fit: the side of its patches, how many are kept, what is moved from where to where.

A ticket is a ranking of places, so it serves any student: on another grid it is moved there (`projection.py`), and the
number kept is the same share of the patches. Every such move is said, as it changes what the ticket is.
"""

from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from torch import nn

from dlth.tickets import Grid, TicketHeader, TicketStore, ViewSpec, num_kept
from dlth.tickets.callbacks import Note
from dlth.tickets.ranking.budget import Rate
from dlth.training.models.frame import described
from dlth.training.models.registry import image_size_of, one_patch_size_of
from dlth.training.models.student import ImageStudent, Student
from dlth.training.models.students import make_student


def fitted_student(model: nn.Module, how: str | None, patch_size: int | None, *stores: TicketStore | None) -> Student:
    """The model as a student; where nothing says how large its patches are, they are those of the first ticket file.

    Raises InputError as `make_student`.
    """
    student = make_student(model, how, patch_size)
    if patch_size is not None or one_patch_size_of(model) is not None or not isinstance(student, ImageStudent):
        return student
    size = image_size_of(model)
    for grid in (store.header.grid for store in stores if store is not None):
        side, rest = divmod(size[0], grid.rows)
        if rest == 0 and size[1] == side * grid.cols:
            return make_student(model, how, side)
    return student


def tokens_kept(keep: str | None, student: Student, note: Note, *stores: TicketStore | None) -> int | None:
    """How many patches are kept: the share asked for, else that of the first ticket file; None without either.

    `note` is told where the student needs another number. Raises InputError for a share that makes no sense.
    """
    num_patches = student.grid.num_patches
    header = next((store.header for store in stores if store is not None), None)
    if keep is not None:
        asked = num_kept(keep, num_patches)
    elif header is not None:
        asked = header.k if header.grid == student.grid else num_kept(exact_share(header), num_patches)
    else:
        return None
    k = student.most_kept(asked)
    if k != asked:
        note(f"--how {student.how} needs a square: the {k} best of the {asked} patches asked for are kept")
    return k


def exact_share(header: TicketHeader) -> Rate:
    """The share of its patches that a file keeps: what it was asked for, or k of them where six digits of it are more.

    Of 68 of 196 patches the digits are 0.346939, a hair above, and 273 of 784 patches would be kept, not 272.
    """
    given = num_kept(header.keep, header.grid.num_patches) == header.k
    return header.keep if given else Fraction(header.k, header.grid.num_patches)


def other_grid_text(header: TicketHeader, grid: Grid, patch_size: int) -> str:
    """What a person should know where tickets are not of the student's `grid`; else empty."""
    if header.grid == grid:
        return ""
    square = header.grid.rows == header.grid.cols
    fits = f"; --img-size {header.grid.rows * patch_size} would take them as they are" if square else ""
    return f"tickets of {header.grid} patches are moved to the student's {grid}{fits}"


def tickets_crop(store: TicketStore | None, images: Mapping[str, Any], note: Note) -> dict[str, Any]:
    """Crop share and interpolation of validation tickets that were made on a centre crop; nothing for others.

    An evaluation that sees more than the tickets' selector saw hardly ever keeps the patches at its border.
    `images` has the two as they would hold without tickets (None: the model's own); `note` is told of a change.
    """
    if store is None or store.header.view.kind != "center":
        return {}
    view = store.header.view
    crop = {"crop_pct": float(view.crop_pct), "interpolation": view.interpolation}
    changed = [f"{name} {images[name]}" for name in crop if images[name] not in (None, crop[name])]
    if changed:
        note(f"validation images are seen as their tickets were made, {described(view)}, not with {', '.join(changed)}")
    return crop


def moved_text(tickets: ViewSpec, seen: ViewSpec) -> str:
    """What a person should know where validation images are not `seen` in the view of their `tickets`; else empty."""
    if tickets == seen:
        return ""
    hides = tickets.kind == "center" and float(tickets.crop_pct) < float(seen.crop_pct)
    border = "; the selector never saw what lies at the border, so patches there are hardly ever kept" if hides else ""
    return f"tickets made on {described(tickets)} are moved to the evaluation's {described(seen)}{border}"
