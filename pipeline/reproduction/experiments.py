"""The paper's experiments as named rows: MODEL/WHAT IS DIFFERENT/ARM/RATE, such as ``swin-t/small-dense/rc/0.9``.

What the authors' scripts ran (docs/reproduce.md has their table) is said here once per model, with the rates of each
arm; names, settings and caveats of the rows follow from it. A rate is theirs: the share that each of three stages keeps
of 14 x 14 patches. Selectors and dense arms are rows like others, as other rows need their weights or their number.

A row says what it cannot do as the authors did. Rows of what dlth has not are here too, with the reason: a list that
leaves them out would pass for all of the paper.
"""

import fnmatch
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from dlth.pipeline.reproduction.experiment import (
    CIFAR10,
    IMAGENET,
    PATCHES,
    Dataset,
    Experiment,
    Pruning,
    Reference,
    matched_epochs,
)
from dlth.tickets.errors import InputError, shown
from dlth.training.settings.layering import nearest


@dataclass(frozen=True)
class Family:
    """What the rows of one model have in common; `rows` makes some of them.

    selector: name of the row whose weights select, with "{rate}" where each rate has its own
    """

    name: str
    dataset: Dataset
    settings: Mapping[str, Any]
    selector: str
    epochs: int = 300
    batch: int = 1024
    patches: int = PATCHES
    reference: Reference | None = None
    caveats: tuple[str, ...] = ()

    def rows(self, arms: str, rates: str = "", label: str = "{arm}", **changes: Any) -> Iterator[Experiment]:
        """A row for each of `arms` and each of `rates` (words), with `changes` of the family's settings.

        The name has `label` between the family's and the rate.
        """
        for arm in arms.split():
            for rate in rates.split() or [""]:
                drops = arm in ("lt", "rc") and rate
                yield Experiment(
                    name="/".join(filter(None, (self.name, label.format(arm=arm), rate))),
                    arm=arm,
                    dataset=self.dataset,
                    settings={**self.settings, **changes},
                    epochs=self.epochs,
                    batch=self.batch,
                    rate=rate,
                    patches=self.patches,
                    selector=self.selector.format(rate=rate) if drops else "",
                    reference=self.reference if arm == "dense" else None,
                    caveats=(*ALWAYS, *(CACHED if drops else ()), *self.caveats),
                )

    def selectors(self, rates: str) -> Iterator[Experiment]:
        """The fine-tuning of a selector at each of `rates`."""
        yield from replace(self, epochs=30, batch=2048).rows("selector", rates, recipe="evit")

    def matched(self, rates: str) -> Iterator[Experiment]:
        """The random arm with as many epochs as it takes to compute as much as 300 dense ones."""
        for rate in rates.split():
            yield from replace(self, epochs=matched_epochs(rate)).rows("rc", rate, "rc-matched")

    def rapid(self, rate: str) -> Iterator[Experiment]:
        """The ticket arm at twice the learning rate."""
        yield from self.rows("lt", rate, "lr-1e-3/{arm}", lr_base=1e-3)

    def pruned(self) -> Iterator[Experiment]:
        """The weight-level experiments: the winning ticket, and its mask with fresh random weights."""
        rows = replace(self, caveats=(PRUNING, *self.caveats)).rows("lt rr", "", "imp/{arm}")
        return (replace(row, pruning=Pruning()) for row in rows)


ALWAYS = ("float32 unless --amp is given (theirs: float16)", "order and seeds of images are dlth's own")
CACHED = ("cached tickets are moved into the view (their selector sees each mixed view itself: --mode online)",)
MIX_TOKEN = "MixToken draws a box a mix group and pairs neighbours, crops are bicubic, and ten last epochs are left out"
WITHOUT_LABELS = "fine-tuned without token labels, at EViT's rates (theirs: with them, at 5e-6)"
WINDOWS = (
    "windows of 6 are cut out of those of the 224 px model, so that it runs dense too (theirs is built for 192 px)"
)
CNN = "crops are bicubic, and ten last epochs at the lowest rate are left out"
PRUNING = (
    "rounds, rate and rewinding are the lottery ticket papers' (10 of 0.2 of the remaining weights, back to the first"
    " ones): the paper gives none"
)
SMALL_CROPS = (
    "crops are enlarged to the image's size (theirs: of the image padded by 4 px), norms and biases not decayed"
)
OTHER_ATTENTION = "no student here has attention of other products (theirs: softmax(q·v)·k)"
DEIT, SWIN, LVVIT = "DeiT (Touvron et al., 2021)", "Swin (Liu et al., 2021)", "LV-ViT (Jiang et al., 2021)"
ALL_RATES, FOUR_RATES = "0.75 0.8 0.85 0.9 0.95", "0.75 0.8 0.85 0.9"


def _deit(name: str, model: str, top1: float | None) -> Family:
    reference = Reference(top1, DEIT) if top1 is not None else None
    return Family(name, IMAGENET, {"recipe": "deit", "model": model}, f"{name}/selector/{{rate}}", reference=reference)


def _deit_small() -> Iterator[Experiment]:
    deit = _deit("deit-s", "deit_small", 79.8)
    yield from deit.rows("dense")
    yield from deit.selectors(ALL_RATES)
    yield from deit.rows("lt rc", ALL_RATES)
    yield from deit.matched(FOUR_RATES)
    yield from deit.rows("lt", "0.8", "adjusted/{arm}", keep_schedule="cosine")
    yield from deit.rows("rc", "0.8 0.85 0.9", "adjusted/{arm}", keep_schedule="cosine")
    yield from replace(deit, selector="deit-ti/lt/{rate}").rows("lt", "0.85 0.9", "ti-selects/{arm}")
    yield from deit.rows("rc", "0.9", "rc-fixed", random_tokens="fixed")
    yield from _missing(deit.rows("lt", "0.9", "products-qv/{arm}"), OTHER_ATTENTION)
    yield from deit.rapid("0.75")
    for gmacs, rate in (("2.26", "0.54"), ("2.73", "0.67"), ("3.28", "0.79")):
        for row in deit.rows("evit", rate):
            yield replace(row, name=f"deit-s/evit/{gmacs}")
    yield from deit.pruned()


def _other_deits() -> Iterator[Experiment]:
    tiny, base = _deit("deit-ti", "deit_tiny", 72.2), _deit("deit-b", "deit_base", 81.8)
    yield from tiny.rows("dense")
    yield from tiny.selectors(ALL_RATES)
    yield from tiny.rows("lt rc", ALL_RATES)
    yield from tiny.matched(ALL_RATES)
    yield from tiny.rapid("0.8")
    yield from base.rows("dense")
    yield from base.selectors("0.9 0.95")
    yield from base.rows("lt rc", "0.9 0.95")
    yield from base.matched("0.9 0.95")
    yield from base.rapid("0.95")
    wide = _deit("deit-576", "deit_576", None)
    yield from wide.rows("dense")
    yield from wide.selectors("0.95")
    yield from wide.rows("lt rc", "0.95")


def _other_models() -> Iterator[Experiment]:
    cifar = {"recipe": "cifar10", "model": "deit_small"}
    family = Family("cifar10", CIFAR10, cifar, "cifar10/dense", batch=256)
    yield from family.rows("dense")
    yield from family.rows("lt rc", "0.9 0.95")

    lvvit, reference = {"recipe": "lvvit", "model": "lvvit_small"}, Reference(83.3, LVVIT)
    family = Family("lvvit-s", IMAGENET, lvvit, "lvvit-s/selector/{rate}", reference=reference, caveats=(MIX_TOKEN,))
    yield from family.rows("dense")
    yield from replace(family, caveats=(WITHOUT_LABELS,)).selectors("0.85")
    yield from family.rows("lt rc", "0.85")

    swin, reference = {"recipe": "swin", "model": "swin_tiny_patch4_window7_224"}, Reference(81.2, SWIN)
    family = Family("swin-t", IMAGENET, swin, "deit-s/selector/{rate}", reference=reference)
    yield from family.rows("dense")
    yield from family.rows("lt rc", "0.8 0.9", "zero/{arm}", how="zero")
    yield from replace(family, caveats=(WINDOWS,)).rows("lt rc", "0.9", "small-dense/{arm}", how="small-dense")

    cnn = {"recipe": "resnet50", "model": "resnet50"}
    family = Family("resnet50", IMAGENET, cnn, "deit-s/selector/{rate}", epochs=90, caveats=(CNN,))
    yield from family.rows("dense")
    yield from family.rows("lt rc", "0.9", "zero/{arm}", how="zero")
    small = {"recipe": "resnet20", "model": "resnet20"}
    family = Family("resnet20", CIFAR10, small, "", epochs=160, batch=128, patches=4, caveats=(SMALL_CROPS,))
    yield from family.pruned()


def _missing(rows: Iterable[Experiment], why: str) -> Iterator[Experiment]:
    return (replace(row, missing=why) for row in rows)


def _named(rows: Iterable[Experiment]) -> dict[str, Experiment]:
    listed = list(rows)
    named = {row.name: row for row in listed}
    assert len(named) == len(listed), "two experiments have one name"
    return named


EXPERIMENTS: Mapping[str, Experiment] = _named(
    row for rows in (_deit_small, _other_deits, _other_models) for row in rows()
)
"""Every experiment by its name, in the order of the paper's table."""


def chosen(patterns: Iterable[str], experiments: Mapping[str, Experiment] = EXPERIMENTS) -> tuple[Experiment, ...]:
    """The rows that match any of the patterns (as a shell's, ``deit-s/*``), each once, in the table's order.

    Raises InputError for a pattern that matches none, with the nearest name.
    """
    wanted: set[str] = set()
    for pattern in patterns:
        found = fnmatch.filter(experiments, pattern)
        if not found:
            raise InputError(
                f"no experiment is called {shown(pattern)!r}{nearest(pattern, experiments)}; dlth reproduce list shows"
                " them, and 'deit-s/*' (in quotes) means all that begin so"
            )
        wanted |= set(found)
    return tuple(row for name, row in experiments.items() if name in wanted)
