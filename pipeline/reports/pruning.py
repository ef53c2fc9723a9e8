"""How accurate models are by the weights that remain: a table of all ways to prune, and a curve of each.

Every way begins with the unpruned model, so that is the first row of each, and the level that its curve is held to.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from dlth.pipeline.evidence.arm_key import LT, MASKED, ONE_SHOT, PRUNED, RANDOM_MASK, RR, ArmKey, by_weights, share
from dlth.pipeline.evidence.evidence import DENSE, Evidence
from dlth.pipeline.pages.charts import OTHERS, Line, Look, falling
from dlth.pipeline.pages.figures import COLOURS
from dlth.pipeline.pages.report import Cell, Picture, Section, Table
from dlth.pipeline.reports.arms import KEY_COLUMNS, MOST_GROUPS, key_cells
from dlth.tickets.errors import shown

WAYS = {
    LT: "the mask, and the weights of the rewinding point",
    RR: "the same mask, and fresh random weights",
    RANDOM_MASK: "as many weights in each layer, drawn by chance, as at the rewinding point",
    ONE_SHOT: "as many weights masked at once, not round by round; of one round it is lt",
    MASKED: "a mask whose making is not known here",
}
"""What they are, in words."""
LOOKS = {
    LT: Look(COLOURS["ticket"], 0),
    RR: Look(COLOURS["random"], 1),
    RANDOM_MASK: Look(OTHERS[0], 2),
    ONE_SHOT: Look(OTHERS[1], 3),
    MASKED: Look(OTHERS[-1], 4),
}
"""How they are drawn: each has a colour, a line and a marker of its own."""


@dataclass(frozen=True)
class Accuracies:
    """Top-1 in percent of an arm's runs, the draws of each seed together; at least one."""

    by_seed: Sequence[Sequence[float]]

    @property
    def runs(self) -> list[float]:
        """Of every run."""
        return [top1 for draws in self.by_seed for top1 in draws]

    @property
    def mean(self) -> float:
        """Over seeds, of the mean over a seed's draws."""
        return fmean(map(fmean, self.by_seed))

    @property
    def spread(self) -> float | None:
        """Standard deviation over seeds of the same; None of one seed."""
        return stdev(map(fmean, self.by_seed)) if len(self.by_seed) > 1 else None


Found = Mapping[ArmKey, Accuracies]
"""By arm, an arm's draws under its first."""


def pruning_section(evidence: Evidence) -> Section | None:
    """Accuracy by remaining weights, of each arm of patches that was pruned."""
    if not any(key.pruned for key in evidence.runs):
        return None
    found = _found(evidence)
    ways = [way for way in (*PRUNED, MASKED) if any(key.pruned == way for key in evidence.runs)]
    told = "; ".join(f"{way}, {WAYS[way]}" for way in ways)
    text = (
        "Top-1 accuracy in percent by the share of the prunable weights that remain: mean over seeds, ± their standard"
        " deviation, and how many runs; several draws of a seed count as their mean. The first row is the unpruned"
        f" model, with which every way begins. What is trained at a share: {told}."
    )
    arms = list(dict.fromkeys(key.unpruned for key in evidence.runs if key.pruned))
    pictures = (_picture(found, arm, ways, number, len(arms) > 1) for number, arm in enumerate(arms[:MOST_GROUPS]))
    table = _table(evidence, found, arms, ways)
    return Section(
        "Accuracy by remaining weights", texts=(text,), tables=(table,), pictures=tuple(filter(None, pictures))
    )


def _found(evidence: Evidence) -> Found:
    by_seed: dict[ArmKey, dict[int, list[float]]] = {}
    for key, runs in evidence.runs.items():
        for seed, run in runs.items():
            if run.images:
                by_seed.setdefault(key.all_draws, {}).setdefault(seed, []).append(run.top1(run.judged_on))
    return {key: Accuracies(list(seeds.values())) for key, seeds in by_seed.items()}


def _shares(keys: Sequence[ArmKey], arm: ArmKey) -> list[str]:
    """The shares that an arm was pruned to, falling."""
    pruned = sorted((key for key in keys if key.pruned and key.unpruned == arm), key=by_weights)
    return list(dict.fromkeys(key.weights for key in pruned))


def _table(evidence: Evidence, found: Found, arms: Sequence[ArmKey], ways: Sequence[str]) -> Table:
    keys = () if arms == [ArmKey(DENSE)] else KEY_COLUMNS
    rows: list[tuple[Cell, ...]] = []
    for arm in arms:
        rows += [(*key_cells(arm, keys), *row) for row in _rows(evidence, found, arm, ways)]
    spreads = tuple(f"± {way}" for way in ways)
    columns = (*keys, "weights", "remaining", *ways, *spreads, *(f"runs of {way}" for way in ways))
    formats = dict.fromkeys((*ways, *spreads), ".2f")
    return Table(columns, tuple(rows), "pruning", formats, keys)


def _rows(evidence: Evidence, found: Found, arm: ArmKey, ways: Sequence[str]) -> Iterator[tuple[Cell, ...]]:
    """The unpruned model, and each share with how many weights remain."""
    results = {key: run.result for key, runs in evidence.runs.items() for run in runs.values() if key.unpruned == arm}
    prunable = next((of.prunable_weights for of in results.values() if of.mask), None)
    yield ("1", prunable, *_cells([found.get(arm)] * len(ways)))
    for weights in _shares(list(evidence.runs), arm):
        there = [ArmKey(arm.arm, arm.keep, arm.mode, arm.variant, way, weights) for way in ways]
        remaining = next(of.remaining_weights for key, of in results.items() if key.weights == weights)
        yield (shown(weights, 20), remaining, *_cells([found.get(key) for key in there]))


def _cells(found: Sequence[Accuracies | None]) -> Iterator[Cell]:
    """Means of all ways, then how they spread, then how many runs each is of."""
    yield from (came.mean if came else None for came in found)
    yield from (came.spread if came else None for came in found)
    yield from (len(came.runs) if came else None for came in found)


def _picture(found: Found, arm: ArmKey, ways: Sequence[str], number: int, several: bool) -> Picture | None:
    """A curve for each way over the shares; None where no run was evaluated."""
    unpruned, lines = found.get(arm), []
    first = [(1.0, unpruned)] if unpruned is not None else []
    for way in ways:
        points = [(share(key.weights), came) for key, came in found.items() if (key.unpruned, key.pruned) == (arm, way)]
        if later := [point for point in points if point[0] > 0]:
            lines.append(_line(way, LOOKS[way], [*first, *later]))
    if not lines:
        return None
    of_arm = f" of {shown(arm, 80)}" if several else ""
    caption = (
        f"Accuracy{of_arm} over the share of weights that remain, from all to few: mean, and a band from the least to"
        " the most of the runs."
    )
    told = [f"{line.label} from {line.mean[0]:.1f} % to {line.mean[-1]:.1f} % at {line.x[-1]:.3g}" for line in lines]
    level = None
    if unpruned is not None:
        level = _line("unpruned", Look(COLOURS["dense"]), first)
        caption += " The level line is the unpruned model."
        told.insert(0, f"unpruned {unpruned.mean:.1f} %")
    figure = falling(lines, level, "remaining weights, %", "top-1 accuracy, %")
    return Picture(f"pruning-{number}", figure, caption, f"{caption} {'; '.join(told)}.")


def _line(label: str, look: Look, points: Sequence[tuple[float, Accuracies]]) -> Line:
    came = [of for _, of in points]
    least, most = [min(of.runs) for of in came], [max(of.runs) for of in came]
    return Line(label, look, [left for left, _ in points], [of.mean for of in came], least, most)
