"""Accuracy of a student on dense, ticket and random tokens of the same images, side by side and exact.

What is kept is the result *per image*, at the image's own place: so nothing is counted twice, averages do not depend on
the number of ranks, and paired statistics between arms need no second run.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from dlth.tickets.errors import shown
from dlth.training.run_files import published


@dataclass(frozen=True)
class ImageResults:
    """Per image [N]: label first, label among the first five, cross entropy, and whether it was measured at all."""

    top1: NDArray[np.bool_]
    top5: NDArray[np.bool_]
    loss: NDArray[np.float32]
    seen: NDArray[np.bool_]

    @classmethod
    def of(cls, table: torch.Tensor) -> Self:
        """The results that a table float64 [N, 4] holds, each image's `scores` in its row and zeros for none."""
        top1, top5, loss, seen = table.numpy().T
        if seen.max(initial=0) > 1:
            raise AssertionError("an image was measured more than once: ranks or batches overlap")
        return cls(top1 > 0, top5 > 0, loss.astype(np.float32), seen > 0)

    def summary(self) -> dict[str, float]:
        """Accuracies in percent and the mean loss over the images that were measured, with their number."""
        return {
            "top1": 100 * float(self.top1[self.seen].mean()),
            "top5": 100 * float(self.top5[self.seen].mean()),
            "loss": float(self.loss[self.seen].mean(dtype=np.float64)),
            "images": int(self.seen.sum()),
        }


@dataclass(frozen=True)
class EvalResult:
    """One student on one set: results by arm, in the order of the set; `tokens` patches kept by arm.

    `about_tickets` says in words what the tickets are (tickets_are), and in which view they were made and measured.
    `stand_ins` bool [N]: images without a ticket that were measured under "ticket" all the same, on all patches or on
    random ones, as `shown_on` says.
    """

    keys: tuple[str, ...]
    labels: NDArray[np.int64]
    results: Mapping[str, ImageResults]
    tokens: Mapping[str, int]
    about_tickets: Mapping[str, str] = field(default_factory=dict)
    stand_ins: NDArray[np.bool_] | None = None
    shown_on: Literal["whole", "random"] = "whole"

    @property
    def left_out(self) -> tuple[str, ...]:
        """Keys of the images that were not measured: corrupt or without a ticket, where settings leave those out."""
        seen = next(iter(self.results.values())).seen
        return tuple(self.keys[at] for at in np.flatnonzero(~seen))

    def notes(self) -> list[str]:
        """What a person should know: images that were not measured, and those measured without the ticket they lack."""
        notes = []
        if self.left_out:
            named = ", ".join(shown(key, 60) for key in self.left_out[:10])
            notes.append(f"{len(self.left_out):,} of {len(self.keys):,} validation images were not measured: {named}")
        if lacking := self._num_stand_ins():
            row, patches = self.table()["ticket"], "all" if self.shown_on == "whole" else "random"
            notes.append(
                f"{lacking:,} of the {row['images']:,} images under 'ticket' have none and were measured on {patches}"
                f" patches; top-1 of the others: {row['top1_with_ticket']:.2f} %"
            )
        for arm, result in self.results.items():
            if lost := int((result.seen & ~np.isfinite(result.loss)).sum()):
                notes.append(
                    f"{lost:,} of {int(result.seen.sum()):,} images on {arm} tokens got no numbers from the model (not"
                    " finite) and count as wrong: look at its weights, --mean and --std"
                )
        return notes

    def table(self) -> dict[str, dict[str, Any]]:
        """A row per arm: top1, top5 (percent), loss, images, tokens; that of tickets says what they are.

        Where images without a ticket are among the last, it has their number as `whole` or `random`, by what they were
        shown on, and the accuracy of the others as `top1_with_ticket`.
        """
        rows: dict[str, dict[str, Any]] = {
            arm: result.summary() | {"tokens": self.tokens[arm]} for arm, result in self.results.items()
        }
        if "ticket" in rows:
            rows["ticket"] |= self.about_tickets
        if self.stand_ins is not None and (lacking := self._num_stand_ins()):
            ticket = self.results["ticket"]
            others = replace(ticket, seen=ticket.seen & ~self.stand_ins)
            rows["ticket"] |= {self.shown_on: lacking, "top1_with_ticket": others.summary()["top1"]}
        return rows

    def _num_stand_ins(self) -> int:
        if self.stand_ins is None or "ticket" not in self.results:
            return 0
        return int((self.results["ticket"].seen & self.stand_ins).sum())

    def save(self, path: Path) -> None:
        """Write the per-image results: keys, labels, and {arm}_top1, {arm}_top5, {arm}_loss, {arm}_seen.

        `without_ticket` says which were measured under "ticket" although they have none, where there are any.
        Raises SpaceError and InputError, as `published`.
        """
        columns: dict[str, NDArray[np.generic]] = {"keys": np.array(self.keys), "labels": self.labels}
        if self.stand_ins is not None:
            columns["without_ticket"] = self.stand_ins
        for arm, result in self.results.items():
            columns |= {f"{arm}_{name}": values for name, values in vars(result).items()}
        with published(path) as file:
            np.savez_compressed(file, allow_pickle=False, **columns)


def scores(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Top-1, top-5, loss and a one, float64 [B, 4]; a tie of logits goes to the lower class.

    Logits that are no numbers are no answer: sorted, they would be one, the lowest class.
    """
    order = logits.sort(dim=1, descending=True, stable=True).indices[:, :5]
    hits = (order == labels[:, None]) & logits.isfinite().all(dim=1, keepdim=True)
    loss = F.cross_entropy(logits, labels, reduction="none").masked_fill(~logits.isfinite().all(dim=1), math.nan)
    return torch.stack([hits[:, 0], hits.any(dim=1), loss, torch.ones_like(loss)], dim=1).double()
