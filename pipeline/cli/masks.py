"""`dlth masks …`: look at masks of weights, check them."""

from collections.abc import Sized
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dlth.pipeline.cli import console
from dlth.pipeline.cli.options import Json, checked
from dlth.tickets.errors import shown
from dlth.tickets.store.disk import user_path

if TYPE_CHECKING:
    from dlth.training.pruning.mask_file import MaskFile

COLUMNS = ("layer", "shape", "weights", "remaining", "%")


def info(
    mask: Annotated[str, typer.Argument(help="A mask's file (mask.safetensors), or a pruned run's folder.")],
    json: Json = False,
) -> None:
    """Show what a mask is: model, recipe, where it comes from, and how many weights remain of each layer."""
    from dlth.training.pruning.mask_file import read_mask
    from dlth.training.pruning.recipe import MASK

    path = user_path(mask)
    found = read_mask(path / MASK if path.is_dir() else path)
    if json:
        counts = {"prunable": found.prunable, "remaining": found.remaining}
        console.as_json({"identity": found.identity, **counts, "header": found.header.model_dump(mode="json")})
        return
    console.result(f"mask {shown(mask)}", describe(found))
    console.table("what remains", COLUMNS, layer_rows(found))


def verify(
    places: Annotated[list[str], typer.Argument(help="Masks' files, pruned runs' folders, or studies' folders.")],
    json: Json = False,
) -> None:
    """Check every bit of masks, the weights trained under them, and in a study that its runs give these masks; exit
    code 1 and the damage's name if something is wrong.
    """
    from dlth.pipeline.pruning.checking import check_masks

    with console.counting("verify", 0, "masks", quiet=json) as counter:
        found = check_masks([user_path(place) for place in places], counter)
    notes = [f"{_masks(found.waiting)} not made yet: runs come first that are not finished"] if found.waiting else []
    notes += [f"{shown(name)} could not be made again: what it was made of is gone" for name in found.unproven]
    notes += [f"{shown(name)} is left out: no mask by its name, nor by what it says" for name in found.left_out]
    notes += [f"[{error.code}] {error}" for error in found.unread[0 if found.damage else 1 :]]
    unread = [str(error) for error in found.unread]
    facts = {
        "ok": not found.problems,
        "unread": unread,
        "masks": found.whole,
        "waiting": found.waiting,
        "unproven": found.unproven,
        "left_out": found.left_out,
    }
    checked(found.damage, facts, json, notes)
    if found.unread:
        raise found.unread[0]
    if not json:
        console.note(f"{_masks(found.whole)} whole")


def _masks(found: Sized) -> str:
    """``1 mask is``, ``3 masks are``."""
    return "1 mask is" if len(found) == 1 else f"{len(found)} masks are"


def describe(mask: "MaskFile") -> dict[str, Any]:
    """The facts of a mask that a person asks for first."""
    header, recipe = mask.header, mask.header.recipe
    built = ", ".join(f"{name}={value}" for name, value in header.model_kwargs.items())
    size = f"{header.img_size} px" if header.img_size is not None else ""
    classes = f"{header.num_classes} classes" if header.num_classes is not None else ""
    share = _percent(mask.remaining, mask.prunable)
    return {
        "identity": mask.identity,
        "format": f"{header.format} {header.version}",
        "model": shown(", ".join(filter(None, (header.model, built, size, classes))), 500),
        "recipe": str(recipe),
        "remaining": f"{mask.remaining:,} of {mask.prunable:,} prunable weights ({share} %)",
        "starts from": f"step {header.rewind_step:,}, sha256 {header.initial}"
        if header.initial
        else "fresh random weights",
        "made of": f"final weights, sha256 {header.final}" if header.final else "no weights",
        "parent mask": header.parent or "none: the unpruned model",
    }


def layer_rows(mask: "MaskFile") -> list[tuple[str, str, int, int, str]]:
    """A line of the table for each prunable parameter."""
    return [
        (each.name, "x".join(map(str, each.shape)), each.size, each.kept, _percent(each.kept, each.size))
        for each in mask.header.layers
    ]


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.2f}"
