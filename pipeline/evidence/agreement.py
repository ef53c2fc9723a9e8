"""How far cached tickets, moved to training's views, agree with a selector that sees those views: the values.

Of the k best patches by either: the share in common |A ∩ B| / k, the intersection over union |A ∩ B| / (2k - |A ∩ B|),
and the share of the selector's score caught, the sum of its scores over the ticket's patches as a share of the same sum
over its own k. With a selector of several stages the score is that of the first, which alone sees all patches, and its
own k are not the k best by it: then more than 1 may be caught. Two marks stand beside each: the ranking not moved at
all, and random patches.

It is measured in `pipeline/selection/agree.py`, and kept as a JSON file that carries its own digest, so that a report
can show it.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from dlth.tickets.errors import DamageError, DlthError, InputError, shown
from dlth.tickets.format.jsontext import strict
from dlth.training.run_files import write_text
from dlth.training.runs.sealed_json import read_sealed, sealed

AREAS = (0.25, 0.5, 0.8)
"""Where crops are cut into bins, by the share of the image's area that they show."""
RANKINGS = ("projected", "not moved", "random")
"""Whose k best are held against the selector's own."""
MAX_BYTES = 1 << 20


@dataclass(frozen=True)
class Overlap:
    """A ranking's k best against the selector's own, means over images; `spread` is the standard deviation of `share`.

    `caught` is None where the selector has no score for each patch, or scores below 0.
    """

    share: float
    spread: float
    iou: float
    caught: float | None = None


@dataclass(frozen=True)
class AgreementRow:
    """The images of one kind of view: all, of some area, mirrored or not."""

    views: str
    num_images: int
    projected: Overlap
    not_moved: Overlap
    random: Overlap


@dataclass(frozen=True)
class Agreement:
    """What was compared, and how far it agrees.

    tickets, tickets_are: identity of the file, and what it is in words; selector, selector_is: likewise of the one in
        the loop; data: identity of the images
    k of num_patches are kept; views: settings of the augmentation and the seed
    num_images were looked at, num_left_out of them were corrupt
    rows: all views first
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    tickets: str
    tickets_are: str
    selector: Mapping[str, Any]
    selector_is: str
    data: Mapping[str, str]
    k: int
    num_patches: int
    views: Mapping[str, Any]
    num_images: int
    num_left_out: int
    rows: tuple[AgreementRow, ...] = Field(max_length=100)


@dataclass(frozen=True, eq=False)
class Seen:
    """What single images came to, axis N images: shares of the k best in common and of the score caught, by `RANKINGS`.

    common: int64 [N, 3]; caught: float64 [N, 3], NaN where there are no scores; area: float64 [N]; mirrored: bool [N]
    """

    common: NDArray[np.int64]
    caught: NDArray[np.float64]
    area: NDArray[np.float64]
    mirrored: NDArray[np.bool_]

    @classmethod
    def joined(cls, parts: Sequence["Seen"]) -> "Seen":
        """All images of at least one part."""
        common, caught, area, mirrored = (
            np.concatenate([getattr(part, name) for part in parts]) for name in cls.__dataclass_fields__
        )
        return cls(common, caught, area, mirrored)

    def rows(self, k: int) -> tuple[AgreementRow, ...]:
        """Means by kind of view; kinds without an image are left out."""
        return tuple(self._row(name, chosen, k) for name, chosen in self._kinds() if chosen.any())

    def _kinds(self) -> Iterator[tuple[str, NDArray[np.bool_]]]:
        yield "all", np.ones(len(self.area), dtype=bool)
        bins, edges = np.digitize(self.area, AREAS), (0.0, *AREAS, 1.0)
        for number, (low, high) in enumerate(pairwise(edges)):
            yield f"area {low:g} to {high:g}", bins == number
        yield "mirrored", self.mirrored
        yield "not mirrored", ~self.mirrored

    def _row(self, name: str, chosen: NDArray[np.bool_], k: int) -> AgreementRow:
        overlaps = []
        for common, caught in zip(self.common[chosen].T, self.caught[chosen].T, strict=True):
            share = common / k
            known = None if np.isnan(caught).any() else float(caught.mean())
            overlaps.append(
                Overlap(float(share.mean()), float(share.std()), float((share / (2 - share)).mean()), known)
            )
        return AgreementRow(name, int(chosen.sum()), *overlaps)


_CHECK: TypeAdapter[Agreement] = TypeAdapter(Agreement)


def write_agreement(path: Path, agreement: Agreement) -> None:
    """Write the JSON file. Raises as `refuse_other` and `published`."""
    refuse_other(path)
    write_text(path, json.dumps(sealed(strict(asdict(agreement))), indent=1, allow_nan=False) + "\n")


def refuse_other(path: Path) -> None:
    """Raises InputError where something else than an earlier agreement lies, whose place a new one would take."""
    if not os.path.lexists(path):
        return
    try:
        read_agreement(path)
    except DlthError as error:
        raise InputError(f"{shown(path)} is there and holds something else; take another --out ({error})") from error


def read_agreement(path: Path) -> Agreement:
    """What such a file says. Raises MissingFileError, or DamageError for one that says something else."""
    content, whole = read_sealed(path, MAX_BYTES)
    try:
        if not whole:
            raise DamageError(f"{shown(path)} carries no digest of itself: dlth tickets agree --out writes one")
        return _CHECK.validate_json(json.dumps(content))
    except ValidationError as error:
        raise DamageError(f"{shown(path)} is no agreement of tickets: {shown(error)}", file=path.name) from error
