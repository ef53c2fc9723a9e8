"""The ranker that a user chose: by a name of dlth's, by the place of their own code, as an object, or not at all.

Their own code is imported as Python imports: from what is installed, and last from the working folder, which a
command's process does not look into by itself; last, so that a file there cannot stand in for a module of another's.
Only a name with a colon that the user gave is imported, and never one that a ticket file or a checkpoint holds.
"""

import difflib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dlth.tickets import Budget, SelectorInfo
from dlth.tickets.errors import DlthError, InputError, shown
from dlth.training.models.frame import Frame
from dlth.training.selectors.patch_ranker import PatchRanker, Selection
from dlth.training.selectors.rankers import RANKERS, RankerSpec, default_ranker

NEEDED = tuple(name for name in vars(PatchRanker) if not name.startswith("_"))
"""What a ranker must have."""
KINDS = {"frame": Frame, "budget": Budget, "info": SelectorInfo, "device": torch.device}
"""Of which kinds its parts are; its `flops` are two numbers."""


@dataclass(frozen=True)
class Chosen:
    """A ranker, the name by which a header knows it, and why it was taken where nobody named one."""

    name: str
    ranker: PatchRanker
    why: str = ""


@dataclass(frozen=True)
class OwnRanker:
    """A `PatchRanker` of a user's own, by its name: every batch's result is held to what the protocol promises, so that
    what is cut, rounded or broken on the way to a ticket is an error that names the ranker.
    """

    name: str
    ranker: Any
    frame: Frame
    budget: Budget
    info: SelectorInfo
    device: torch.device
    flops: tuple[int, int]

    def select(self, images: Tensor, budget: Budget | None = None) -> Selection:
        """As `PatchRanker` has it; raises InputError for whatever the ranker raises, and for what is no `Selection`."""
        return self.asked(images, budget, f"a batch of {len(images)}")

    def asked(self, images: Tensor, budget: Budget | None, batch: str) -> Selection:
        """What `select` gives; `batch` is what the images are called where it fails."""
        shape = [len(images), self.frame.grid.num_patches]
        count = "one image" if len(images) == 1 else f"{len(images)} images"
        try:
            found = self.ranker.select(images) if budget is None else self.ranker.select(images, budget)
        except (DlthError, torch.OutOfMemoryError):  # of the latter, smaller batches may do
            raise
        except (Exception, SystemExit) as error:
            raise InputError(f"the ranker {shown(self.name)} failed on {batch} ({_said(error)})") from error
        if not (isinstance(found, tuple) and len(found) == 2 and all(isinstance(part, Tensor) for part in found)):
            raise InputError(
                f"the ranker {shown(self.name)} gave {_kind(found)} for {count}, not a Selection of two tensors:"
                " patches and gap"
            )
        patches, gap = found
        if list(patches.shape) != shape or patches.dtype != torch.int64:
            raise InputError(
                f"the ranker {shown(self.name)} does not rank: for {count} it gave patches {_kind(patches)}, not each"
                f" of 0 to {shape[1] - 1} once, int64 {shape}"
            )
        if list(gap.shape) != shape[:1] or not gap.is_floating_point():
            dtype = "" if gap.is_floating_point() else f" and {gap.dtype}"
            raise InputError(
                f"the ranker {shown(self.name)} gave gaps of shape {list(gap.shape)}{dtype} for {count}, not"
                f" {shape[:1]}, floating"
            )
        return Selection(patches.to(images.device), gap.detach().to(images.device, torch.float32))


def choose(wanted: str | PatchRanker | None, spec: RankerSpec, device: torch.device) -> Chosen:
    """Make the ranker that is `wanted`: a name of `RANKERS`, `module:name` of one's own (a function or class that takes
    a `RankerSpec` and a device, or a ranker), a ranker, or None for what fits the model.

    Raises:
        InputError: no such ranker, or code of one's own that cannot be imported, fails or makes none
        DlthError: what the ranker says of model, weights, blocks or rates
    """
    why = ""
    if wanted is None:
        wanted, why = default_ranker(spec.load()[0])
    if not isinstance(wanted, str):
        wanted = wanted.ranker if isinstance(wanted, OwnRanker) else wanted
        kind = type(wanted)
        name = f"{kind.__module__}:{kind.__qualname__}"
        return Chosen(name, _checked(wanted, name))
    if ":" in wanted:
        return Chosen(wanted, _checked(_made(_imported(wanted), spec, device, wanted), wanted))
    if wanted not in RANKERS:
        near = difflib.get_close_matches(wanted, RANKERS, n=1)
        hint = f"; did you mean {near[0]}?" if near else "."
        raise InputError(
            f"there is no ranker called {shown(wanted)!r}{hint} There are {', '.join(RANKERS)}, and your own by"
            " package.module:name"
        )
    return Chosen(wanted, RANKERS[wanted](spec, device), why)


def _imported(place: str) -> object:
    """What stands at `package.module:name`."""
    module_name, _, name = place.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    looked = f"cannot be imported from what is installed, nor from {shown(here)}"
    with _their_code(f"--ranker {shown(place)}: {shown(module_name)} {looked}"):
        module = import_module(module_name)
        if hasattr(module, name):
            return getattr(module, name)
    raise InputError(f"--ranker {shown(place)}: {shown(module_name)} has no {shown(name)!r}")


def _made(found: object, spec: RankerSpec, device: torch.device, place: str) -> object:
    """The ranker itself, or what its maker makes."""
    if not isinstance(found, type) and hasattr(found, "select"):
        return found
    if not callable(found):
        raise InputError(f"--ranker {shown(place)} is {shown(found)}: neither a ranker nor what makes one")
    make: Callable[..., object] = found
    with _their_code(f"--ranker {shown(place)} failed when called with a RankerSpec and a device"):
        return make(spec, device)


def _checked(ranker: object, name: str) -> OwnRanker:
    """A user's ranker, which has everything of a `PatchRanker`, and has ranked each patch of black images: of one, and
    of several at once.
    """
    with _their_code(f"the ranker {shown(name)} does not say what it is"):
        parts = {part: getattr(ranker, part) for part in NEEDED if hasattr(ranker, part)}
    if missing := [part for part in NEEDED if part not in parts]:
        raise InputError(f"the ranker {shown(name)} is a {type(ranker).__name__} without {', '.join(missing)}: {_SEE}")
    del parts["select"]
    for part, kind in KINDS.items():
        if not isinstance(parts[part], kind):
            raise InputError(f"the ranker {shown(name)} has {part} {_kind(parts[part])}, not a {kind.__name__}: {_SEE}")
    flops = parts["flops"]
    if not (isinstance(flops, tuple) and len(flops) == 2 and all(isinstance(part, int | float) for part in flops)):
        raise InputError(f"the ranker {shown(name)} has flops {shown(flops)}, not two numbers: {_SEE}")
    made = OwnRanker(name, ranker, **parts)
    num_patches, of_budget = made.frame.grid.num_patches, made.budget.num_patches
    if num_patches != of_budget:
        raise InputError(f"the ranker {shown(name)} has a budget of {of_budget} patches for images of {num_patches}")
    everyone = torch.arange(num_patches)
    for count in (1, 3):
        black = torch.zeros(count, 3, *made.frame.size, device=made.device)
        images = "a black image" if count == 1 else f"{count} black images"
        with _their_code(f"the ranker {shown(name)} failed on {images}"), torch.no_grad():
            patches = made.asked(black, None, images).patches.sort(dim=1).values.cpu()
        if not (patches == everyone).all():
            raise InputError(
                f"the ranker {shown(name)} does not rank: of {images} it gave patches that are not each of 0 to"
                f" {num_patches - 1} once"
            )
    return made


_SEE = "see PatchRanker in dlth.training.selectors.patch_ranker"


@contextmanager
def _their_code(trouble: str) -> Iterator[None]:
    """Whatever a user's code raises is an error that says so, and no library chooses the exit code; dlth's own errors
    stay what they are.
    """
    try:
        yield
    except DlthError:
        raise
    except (Exception, SystemExit) as error:
        raise InputError(f"{trouble} ({_said(error)})") from error


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {shown(error)}"


def _kind(found: object) -> str:
    """What something is, in a few words."""
    return f"{found.dtype} {list(found.shape)}" if isinstance(found, Tensor) else f"of type {type(found).__name__}"
