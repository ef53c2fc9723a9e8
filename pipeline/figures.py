"""The pictures of a report: tickets on their images, curves, accuracy by arm. Each function makes one figure.

matplotlib's object interface, not pyplot: no global state, so figures can be made in any thread and none leaks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from dlth.tickets import Grid

COLOURS = {"ticket": "#0b7a53", "random": "#c8501e", "dense": "#3d4f7c"}
"""One colour per arm, the same in every figure; distinguishable with the common colour blindnesses."""
GREY = "#8a8f98"


def png(figure: Figure) -> bytes:
    """A figure as PNG bytes, without the date and version that would make two equal pictures differ."""
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    return buffer.getvalue()


def ticket_sheet(
    images: np.ndarray,
    rankings: np.ndarray,
    k: int,
    grid: Grid,
    titles: Sequence[str],
    informative: np.ndarray | None = None,
) -> Figure:
    """Each image beside what its ticket leaves of it.

    Args:
        images: uint8 [images, height, width, 3]
        rankings: int [images, patches], best first
        k: patches kept
        grid: the patches' grid
        titles: a text above each image
        informative: int [images, known], patches known to matter, outlined where given
    """
    columns = min(6, len(images))
    rows = -(-len(images) // columns)
    figure = Figure(figsize=(columns * 1.9, rows * 3.9), layout="constrained")
    axes = figure.subplots(rows * 2, columns, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for at, image in enumerate(images):
        row, column = divmod(at, columns)
        whole, kept = axes[2 * row, column], axes[2 * row + 1, column]
        whole.imshow(image)
        whole.set_title(titles[at], fontsize=9)
        kept.imshow(kept_only(image, rankings[at], k, grid))
        if informative is not None:
            for axis in (whole, kept):
                _outline(axis, informative[at], image.shape, grid)
    return figure


def kept_only(image: np.ndarray, ranking: np.ndarray, k: int, grid: Grid) -> np.ndarray:
    """An image [height, width, 3] in which the patches outside the ticket are nearly white."""
    kept = np.zeros(grid.num_patches, dtype=bool)
    kept[ranking[:k]] = True
    height, width = image.shape[0] // grid.rows, image.shape[1] // grid.cols
    mask = kept.reshape(grid.rows, grid.cols).repeat(height, axis=0).repeat(width, axis=1)[..., None]
    return np.where(mask, image, 255 - (255 - image) // 10).astype(np.uint8)


def _outline(axis: Axes, patches: np.ndarray, shape: tuple[int, ...], grid: Grid) -> None:
    height, width = shape[0] / grid.rows, shape[1] / grid.cols
    for patch in patches:
        row, column = divmod(int(patch), grid.cols)
        corner = (column * width - 0.5, row * height - 0.5)
        axis.add_patch(Rectangle(corner, width, height, fill=False, edgecolor="#e0218a", linewidth=1.2))


def curves(histories: Mapping[str, Sequence[Sequence[float]]], label: str) -> Figure:
    """One value by epoch, one line per arm and seed.

    Args:
        histories: for each arm, a sequence of runs, each a sequence of values by epoch
        label: name of the value
    """
    figure = Figure(figsize=(6.4, 3.8), layout="constrained")
    axis = figure.subplots()
    for arm, runs in histories.items():
        for number, run in enumerate(runs):
            axis.plot(
                range(1, len(run) + 1),
                run,
                color=COLOURS.get(arm, GREY),
                alpha=0.9,
                linewidth=1.8,
                linestyle=("-", "--", ":", "-.")[number % 4],
                label=arm if number == 0 else None,
            )
    axis.set_xlabel("epoch")
    axis.set_ylabel(label)
    return _plain(figure, axis)


def accuracies(values: Mapping[str, Mapping[str, Sequence[float]]]) -> Figure:
    """Accuracy by arm and evaluation; the bar is the mean, each dot a seed.

    Args:
        values: for each arm, for each way of evaluation, the seeds' accuracies in percent
    """
    figure = Figure(figsize=(6.4, 3.8), layout="constrained")
    axis = figure.subplots()
    ways = list(next(iter(values.values())))
    width = 0.8 / len(values)
    for number, (arm, by_way) in enumerate(values.items()):
        at = np.arange(len(ways)) + (number - (len(values) - 1) / 2) * width
        axis.bar(at, [np.mean(by_way[way]) for way in ways], width * 0.92, color=COLOURS.get(arm, GREY), label=arm)
        for x, way in zip(at, ways, strict=True):
            axis.plot([x] * len(by_way[way]), by_way[way], "o", color="white", markeredgecolor="black", markersize=4)
    axis.set_xticks(range(len(ways)), [f"on {way} tokens" if way != "dense" else "on all tokens" for way in ways])
    axis.set_ylabel("accuracy, %")
    axis.set_ylim(0, 100)
    return _plain(figure, axis)


def recalls(names: Sequence[str], values: Sequence[float], chance: float) -> Figure:
    """Share of the known patches that a ticket holds, by where the selector scores."""
    figure = Figure(figsize=(6.4, 3.2), layout="constrained")
    axis = figure.subplots()
    bars = axis.bar(names, values, color=COLOURS["ticket"], width=0.6, label="the selector's ticket")
    axis.bar_label(bars, fmt="%.2f", fontsize=9)
    axis.axhline(chance, color=COLOURS["random"], linestyle="--", label=f"as many random patches ({chance:.2f})")
    axis.set_ylim(0, 1.12)
    axis.set_ylabel("recall of the known patches")
    return _plain(figure, axis)


def _plain(figure: Figure, axis: Axes) -> Figure:
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis="y", color="#e4e6ea", linewidth=0.8)
    axis.set_axisbelow(True)
    figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    return figure
