"""One experiment of the paper: what is trained, how long, on what, and what dlth cannot do as its authors did.

Rates are the paper's: the share that each of three stages keeps of 14 x 14 patches. A run is given a share of all
patches instead, the shortest that keeps as many at every stage.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from dlth.pipeline.evidence.arm_key import RR
from dlth.tickets.ranking.budget import Budget, exact_rate, share_left

PATCHES, STAGES = 196, 3
"""Patches of every image of the paper, and stages in which its selectors drop them."""
WHOLE = "1"
"""The scale of a row as the paper has it, of all images and epochs."""
ARMS = {"lt": "ticket", "rc": "random", "dense": "dense", "selector": "selector", "evit": "selector"}
"""What the paper calls an arm, and dlth; "selector" is a run of `dlth train-selector`. Rows of pruned weights have none
of these arms: theirs are `dlth prune`'s.
"""


@dataclass(frozen=True)
class Dataset:
    """The images of an experiment: how many there are, by which a bundle of a part of them is known."""

    name: str
    images: int
    val_images: int


IMAGENET, CIFAR10 = Dataset("ImageNet-1k", 1_281_167, 50_000), Dataset("CIFAR-10", 50_000, 10_000)


@dataclass(frozen=True)
class Reference:
    """A published number: top-1 in percent on all patches, and who published it."""

    top1: float
    source: str


@dataclass(frozen=True)
class Pruning:
    """How the weights of a row are pruned, as `dlth prune` takes it; they are set back to their first values.

    The paper gives no numbers: these are the lottery ticket papers' (Frankle and Carbin, 2019).
    """

    rounds: int = 10
    rate: str = "0.2"


@dataclass(frozen=True)
class Experiment:
    """One row.

    name: of the row; dataset: its images
    arm: a name of `ARMS`, of a row of pruned weights lt or rr
    settings: of `dlth train`, or `train-selector`, in which it differs from its recipe; the recipe is among them
    epochs, batch: length of each run, and images of a step over all processes
    rate: share that each stage keeps, empty for the dense arm; patches: of an image, from which the rate drops, or
        0 where the model has none
    pruning: how its weights are pruned, None where they are not
    selector: the row whose weights select for it, empty for rows that need none
    reference: the published number, None where none is known
    caveats: what is not as the authors did; missing: why dlth cannot run it, empty where it can
    """

    name: str
    arm: str
    dataset: Dataset
    settings: Mapping[str, Any]
    epochs: int
    batch: int
    rate: str = ""
    patches: int = PATCHES
    pruning: Pruning | None = None
    selector: str = ""
    reference: Reference | None = None
    caveats: tuple[str, ...] = ()
    missing: str = ""

    @cached_property
    def keep(self) -> str:
        """The share of the patches that `dlth train --keep` is given; empty for the dense arm and for selectors."""
        return share_of(self.rate, self.patches) if self.rate and self.is_student else ""

    @property
    def k(self) -> int:
        """Patches kept, of the grid of the paper."""
        return Budget.from_stage_keep(self.rate, self.patches, STAGES).k if self.rate else self.patches

    @property
    def trained_as(self) -> str:
        """The arm of `dlth train`, or "selector": whole images where weights are pruned."""
        return "dense" if self.pruning is not None else ARMS[self.arm]

    @property
    def is_student(self) -> bool:
        """Whether `dlth train` runs it; a selector is `dlth train-selector`'s."""
        return self.trained_as != "selector"

    @property
    def needs(self) -> tuple[str, ...]:
        """What must be given or made before it can run, in words."""
        selector = (f"a selector ({self.selector})",) if self.selector else ()
        labels = ("token labels",) if self.settings.get("recipe") == "lvvit" and self.is_student else ()
        weights = ("trained weights to start from",) if self.arm == "selector" else ()
        return (f"{self.dataset.name} as shards", *weights, *selector, *labels)

    @property
    def remarks(self) -> tuple[str, ...]:
        """What a person should know of it: why it cannot be run, what it needs, how many runs it is, what is not as
        the authors did.
        """
        why = (f"cannot be run: {self.missing}",) if self.missing else ()
        chains = 2 if self.arm == RR else 1  # rr's masks are those of lt's levels
        many = (f"{1 + chains * self.pruning.rounds} trainings with each seed",) if self.pruning is not None else ()
        return (*why, f"needs {', '.join(self.needs)}", *many, *self.caveats)

    def to_json(self) -> dict[str, Any]:
        """The row as JSON holds it."""
        return asdict(self) | {"k": self.k, "keep": self.keep, "needs": list(self.needs)}


def share_of(rate: str, patches: int = PATCHES) -> str:
    """The shortest share of the patches that keeps, stage by stage, as many as `rate` of each stage; the nearest to
    the rate's cube where several are as short. Where none does so in every stage, the shortest that ends at as many.
    """
    wanted, cube, ends_alike = Budget.from_stage_keep(rate, patches, STAGES), float(exact_rate(rate)) ** STAGES, ""
    for digits in range(1, 7):
        unit = 10**digits
        numerators = range((wanted.k - 1) * unit // patches + 1, wanted.k * unit // patches + 1)
        shares = sorted((f"{at / unit:.{digits}f}" for at in numerators), key=lambda share: abs(float(share) - cube))
        for share in shares:
            if Budget.from_keep(share, patches, STAGES).stage_tokens == wanted.stage_tokens:
                return share
        ends_alike = ends_alike or next(iter(shares), "")
    return ends_alike


def matched_epochs(rate: str, epochs: int = 300) -> int:
    """Epochs of a random arm that computes as many tokens as a dense one: `epochs` over the share that is left.

    These are the numbers of the authors' scripts.
    """
    return round(epochs / share_left(rate, STAGES))
