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

import torch

from dlth.tickets.errors import DlthError, InputError, shown
from dlth.training.selectors.patch_ranker import PatchRanker
from dlth.training.selectors.rankers import RANKERS, RankerSpec, default_ranker

NEEDED = tuple(name for name in vars(PatchRanker) if not name.startswith("_"))
"""What a ranker must have."""


@dataclass(frozen=True)
class Chosen:
    """A ranker, the name by which a header knows it, and why it was taken where nobody named one."""

    name: str
    ranker: PatchRanker
    why: str = ""


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
        kind = type(wanted)
        name = f"{kind.__module__}:{kind.__qualname__}"
        return Chosen(name, _checked(wanted, name))
    if ":" in wanted:
        return Chosen(wanted, _checked(_made(_imported(wanted), spec, device, wanted), wanted))
    if wanted not in RANKERS:
        near = difflib.get_close_matches(wanted, RANKERS, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise InputError(
            f"there is no ranker called {shown(wanted)!r}; {hint}There are {', '.join(RANKERS)}, and your own by"
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
    if not hasattr(module, name):
        raise InputError(f"--ranker {shown(place)}: {shown(module_name)} has no {shown(name)!r}")
    return getattr(module, name)


def _made(found: object, spec: RankerSpec, device: torch.device, place: str) -> object:
    """The ranker itself, or what its maker makes."""
    if not isinstance(found, type) and hasattr(found, "select"):
        return found
    if not callable(found):
        raise InputError(f"--ranker {shown(place)} is {shown(found)}: neither a ranker nor what makes one")
    make: Callable[..., object] = found
    with _their_code(f"--ranker {shown(place)} failed when called with a RankerSpec and a device"):
        return make(spec, device)


def _checked(ranker: object, name: str) -> PatchRanker:
    """A user's ranker, which has everything of a `PatchRanker`, and has ranked each patch of a black image once."""
    missing = [part for part in NEEDED if not hasattr(ranker, part)]
    if missing:
        raise InputError(
            f"the ranker {shown(name)} is a {type(ranker).__name__} without {', '.join(missing)}: see PatchRanker in"
            " dlth.training.selectors.patch_ranker"
        )
    made: PatchRanker = ranker  # type: ignore[assignment]
    with _their_code(f"the ranker {shown(name)} failed on a black image"), torch.no_grad():
        patches, gap = made.select(torch.zeros(1, 3, *made.frame.size, device=made.device))
        num_patches = made.frame.grid.num_patches
        ranks = tuple(patches.shape) == (1, num_patches) and set(patches[0].tolist()) == set(range(num_patches))
    if not ranks:
        raise InputError(
            f"the ranker {shown(name)} does not rank: for one image it gave patches {list(patches.shape)}, not each of"
            f" 0 to {num_patches - 1} once"
        )
    if gap.shape != (1,):
        raise InputError(f"the ranker {shown(name)} gave gaps of shape {list(gap.shape)} for one image, not [1]")
    return made


@contextmanager
def _their_code(trouble: str) -> Iterator[None]:
    """Whatever a user's code raises is an error that says so; dlth's own errors stay what they are."""
    try:
        yield
    except DlthError:
        raise
    except Exception as error:
        raise InputError(f"{trouble} ({type(error).__name__}: {shown(error)})") from error
