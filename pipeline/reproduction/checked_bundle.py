"""What a bundle is found to be, and what its images say."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dlth.pipeline.reproduction.experiment import WHOLE
from dlth.tickets.errors import DlthError

Numbers = Mapping[str, Mapping[str, float]]
"""By kind of tokens: top1 and top5 in percent, loss, images."""


@dataclass(frozen=True)
class CheckedRun:
    """One run of a bundle.

    numbers: computed from its single images; hours: of training, on this many devices
    pruned, weights: arm and share of the weights of a level of pruning, as `ArmKey` has them
    """

    name: str
    seed: int
    k: int
    epochs: int
    numbers: Numbers
    hours: float
    device: str
    pruned: str = ""
    weights: str = ""

    @property
    def text(self) -> str:
        """Which run it is, and its accuracies."""
        level = f", {self.pruned} {self.weights} of weights" if self.pruned else ""
        accuracies = ", ".join(f"{tokens} {row['top1']:.2f} %" for tokens, row in self.numbers.items())
        return f"seed {self.seed}{level}: {accuracies}"


@dataclass(frozen=True)
class CheckedBundle:
    """What a bundle is.

    damage: in what it is not as it was made; then it has no runs
    unlike: in what it is not the paper's row though it is whole, such as a hundredth of the images
    """

    folder: Path
    row: str
    mode: str = ""
    scale: str = WHOLE
    runs: tuple[CheckedRun, ...] = ()
    damage: tuple[DlthError, ...] = ()
    unlike: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """What it is, and what its images say, in one line."""
        if self.damage:
            return "damaged"
        told = f"whole, but not in the table: {'; '.join(self.unlike)}" if self.unlike else "whole"
        return f"{told} | top-1 {'; '.join(run.text for run in self.runs)}"

    @property
    def in_table(self) -> bool:
        """Whether it is whole, and of the row as the paper has it."""
        return not self.damage and not self.unlike
