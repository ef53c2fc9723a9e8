"""Charts of a report: curves with the range of their runs, a dot for each run, and the front of what is worth its cost.

Small enough to be read on a phone, where they are shrunk to its width. Colour says the arm, the line's style how many
patches it keeps, so charts can be read without colours too.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from dlth.pipeline.pages.figures import COLOURS, GREY
from dlth.training.drawing import own_style

OTHERS = ("#7b4fa3", "#a07d00", "#2f8294", "#a3446b", "#6b6b6b")
"""Colours of controls, in their order."""
STYLES = ("-", "--", ":", "-.")
MARKERS = ("o", "s", "^", "D")
MOST_TICKS = 8
_SIZE = (5.2, 3.7)


@dataclass(frozen=True)
class Look:
    """How an arm is drawn: its colour, and the place of its keep among the keeps, which gives line and marker."""

    colour: str
    place: int = 0

    @property
    def line(self) -> str:
        """Style of its line."""
        return STYLES[self.place % len(STYLES)]

    @property
    def marker(self) -> str:
        """Mark of its points."""
        return MARKERS[self.place % len(MARKERS)]


def look(arm: str, place: int, controls: Sequence[str]) -> Look:
    """The look of an arm; `controls` are the names of all control arms."""
    other = OTHERS[controls.index(arm) % len(OTHERS)] if arm in controls else GREY
    return Look(COLOURS.get(arm, other), place)


@dataclass(frozen=True)
class Line:
    """A curve: its name, its look, and one value each of x, mean, least and most."""

    label: str
    look: Look
    x: Sequence[float]
    mean: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]


@dataclass(frozen=True)
class Dots:
    """A row of runs: its name, its look, and a value for each run."""

    label: str
    look: Look
    values: Sequence[float]


@own_style()
def bands(lines: Sequence[Line], x_label: str, y_label: str) -> Figure:
    """Curves, each a mean in a band from the least to the most of its runs."""
    figure = Figure(figsize=_SIZE, layout="constrained")
    axis = figure.subplots()
    _draw(axis, lines)
    if all(value == int(value) for line in lines for value in line.x):
        axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axis.set_xlabel(x_label)
    axis.set_ylabel(y_label)
    return _finished(figure, axis)


def _draw(axis: Axes, lines: Sequence[Line]) -> None:
    """Each curve and its band."""
    for line in lines:
        axis.fill_between(line.x, line.low, line.high, color=line.look.colour, alpha=0.13, linewidth=0)
        marker = line.look.marker if len(line.x) < 25 else None
        axis.plot(
            line.x,
            line.mean,
            color=line.look.colour,
            linestyle=line.look.line,
            linewidth=1.6,
            marker=marker,
            markersize=3.5,
            label=line.label,
        )


@own_style()
def falling(lines: Sequence[Line], level: Line | None, x_label: str, y_label: str) -> Figure:
    """Curves over shares, from all to few on a scale of logarithms, and one value as a level line in its band."""
    figure = Figure(figsize=_SIZE, layout="constrained")
    axis = figure.subplots()
    if level is not None:
        axis.axhspan(level.low[0], level.high[0], color=level.look.colour, alpha=0.13, linewidth=0)
        axis.axhline(level.mean[0], color=level.look.colour, linewidth=1.2, label=level.label, zorder=1)
    _draw(axis, lines)
    axis.set_xlabel(x_label)
    axis.set_ylabel(y_label)
    _finished(figure, axis)
    shares = sorted({x for line in lines for x in line.x}, reverse=True)
    shown = shares[:: -(-len(shares) // MOST_TICKS)]
    axis.set_xscale("log")
    axis.set_xticks(shown, [f"{100 * share:.3g}" for share in shown])
    axis.set_xticks([], minor=True)
    axis.invert_xaxis()
    return figure


@own_style()
def dots(rows: Sequence[Dots], x_label: str) -> Figure:
    """A row for each arm: a dot for each run, a bar at their mean."""
    figure = Figure(figsize=(_SIZE[0], 0.9 + 0.3 * len(rows)), layout="constrained")
    axis = figure.subplots()
    for place, row in enumerate(rows):
        axis.plot(row.values, [place] * len(row.values), "o", color=row.look.colour, alpha=0.65, markersize=6)
        mean = sum(row.values) / len(row.values)
        axis.plot([mean, mean], [place - 0.32, place + 0.32], color=row.look.colour, linewidth=2)
    for text in axis.set_yticks(range(len(rows)), [row.label for row in rows]):
        text.label1.set_parse_math(False)
    axis.set_ylim(len(rows) - 0.5, -0.5)
    axis.set_xlabel(x_label)
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.tick_params(axis="y", length=0)
    axis.grid(color="#e4e6ea", linewidth=0.8)
    axis.set_axisbelow(True)
    return figure


@own_style()
def front(rows: Sequence[Line], edge: Sequence[tuple[float, float]], x_label: str, y_label: str) -> Figure:
    """A point for each arm with the range of its runs, and a line through those (x, y) that no other beats."""
    figure = Figure(figsize=_SIZE, layout="constrained")
    axis = figure.subplots()
    axis.plot(*zip(*edge, strict=True), color=GREY, linewidth=1.2, drawstyle="steps-post", zorder=1)
    for row in rows:
        ranges = [[mean - low for mean, low in zip(row.mean, row.low, strict=True)]]
        ranges += [[high - mean for mean, high in zip(row.mean, row.high, strict=True)]]
        axis.errorbar(
            row.x, row.mean, ranges, color=row.look.colour, marker=row.look.marker, linestyle="none", label=row.label
        )
    axis.set_xlim(left=0)
    axis.set_xlabel(x_label)
    axis.set_ylabel(y_label)
    return _finished(figure, axis)


def _finished(figure: Figure, axis: Axes) -> Figure:
    axis.ticklabel_format(style="sci", scilimits=(-3, 5), useMathText=True)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(color="#e4e6ea", linewidth=0.8)
    axis.set_axisbelow(True)
    legend = figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    for text in legend.get_texts():
        text.set_parse_math(False)
    return figure
