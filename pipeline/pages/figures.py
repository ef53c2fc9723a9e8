"""The pictures of tickets on their images, and recall by block. Each function makes one figure.

matplotlib's object interface, not pyplot: no global state, so figures can be made in any thread and none leaks.
"""

import warnings
from collections.abc import Sequence
from io import BytesIO

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dlth.tickets import Grid
from dlth.tickets.ranking.ranks import kept_sets
from dlth.training.drawing import own_style

COLOURS = {"ticket": "#0b7a53", "random": "#c8501e", "dense": "#3d4f7c"}
"""One colour per arm, the same in every figure; distinguishable with the common colour blindnesses."""
ALONE = ("#1d5cc8", "#d65414")
"""Patches that one of two tickets keeps alone: blue the first's, orange the second's."""
KNOWN = "#e0218a"
"""A line around patches that are known to matter."""
SMALL = 128
"""Pictures up to this side are kept without loss and drawn with sharp pixels."""
GREY = "#8a8f98"
DPI = 220
"""Pixels of a report's pictures per inch: twice what they are shown at, so they are sharp on a phone and in print."""
VEIL = (216, 221, 228)
"""Colour that lies over dropped patches."""


@own_style()
def png(figure: Figure, dpi: int = 110) -> bytes:
    """A figure as PNG bytes, without the date and version that would make two equal pictures differ."""
    buffer = BytesIO()
    with warnings.catch_warnings():  # a key in a script that the font lacks is drawn as boxes, without a word
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    return buffer.getvalue()


def kept_only(image: np.ndarray, ranking: np.ndarray, k: int, grid: Grid) -> np.ndarray:
    """An image [height, width, 3] in which a pale veil lies over the patches outside the ticket."""
    kept = _on_pixels(kept_sets(ranking[:k], grid.num_patches), image, grid)
    return np.where(kept, image, _faded(image))


def order_shade(image: np.ndarray, ranking: np.ndarray, k: int, grid: Grid) -> np.ndarray:
    """An image [height, width, 3] in grey, its kept patches shaded by order: the deepest green is the best patch."""
    strength = np.zeros(grid.num_patches)
    strength[ranking[:k]] = 0.92 - 0.8 * np.arange(k) / k
    grey = 150 + 0.4 * np.repeat(image.mean(axis=2, keepdims=True), 3, axis=2)  # pale, so that depth is order alone
    weight = _on_pixels(strength, image, grid)
    mixed = (1 - weight) * grey + weight * _rgb(COLOURS["ticket"])
    return np.where(weight > 0, mixed, _faded(grey)).astype(np.uint8)


def difference(image: np.ndarray, one: np.ndarray, two: np.ndarray, k: int, grid: Grid) -> np.ndarray:
    """An image [height, width, 3] with the patches of ranking `one` alone in blue, of `two` alone in orange."""
    in_one, in_two = kept_sets(np.stack([one[:k], two[:k]]), grid.num_patches)
    plain = np.where(_on_pixels(in_one | in_two, image, grid), image, _faded(image))
    for alone, colour in ((in_one & ~in_two, ALONE[0]), (in_two & ~in_one, ALONE[1])):
        layer = _on_pixels(alone, image, grid)
        plain = np.where(layer, (0.3 * plain + 0.7 * _rgb(colour)).astype(np.uint8), plain)
    return plain


def outlined(image: np.ndarray, patches: np.ndarray, grid: Grid, colour: str = "#000000") -> np.ndarray:
    """An image [height, width, 3] with a thin line around these patches [n]."""
    chosen = _on_pixels(kept_sets(patches, grid.num_patches), image, grid)
    edge = np.zeros_like(chosen)
    edge[1:] |= chosen[1:] != chosen[:-1]
    edge[:, 1:] |= chosen[:, 1:] != chosen[:, :-1]
    return np.where(edge, (0.3 * image + 0.7 * _rgb(colour)).astype(np.uint8), image)


def enlarged(image: np.ndarray) -> np.ndarray:
    """An image [height, width, 3] so large that a line of one pixel is thin."""
    times = -(-SMALL // max(image.shape[:2]))
    return image.repeat(times, axis=0).repeat(times, axis=1)


@own_style()
def panel_sheet(panels: Sequence[Sequence[np.ndarray]], titles: Sequence[str], names: Sequence[str]) -> Figure:
    """A strip of panels for each image, three strips in a row.

    Args:
        panels: for each image, pictures uint8 [height, width, 3] of one size
        titles: a text above each strip; it may come from outside
        names: what the panels show, said once above the whole
    """
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    height = 3.9 / len(names) + 0.25 + 0.16 * titles[0].count("\n")
    figure = Figure(figsize=(columns * 4.0, rows * height + 0.4), layout="constrained")
    for axis in figure.subplots(rows, columns, squeeze=False).flat:
        axis.set_axis_off()
    for axis, pictures, title in zip(figure.axes, panels, titles, strict=False):
        gap = np.full((pictures[0].shape[0], max(1, pictures[0].shape[1] // 24), 3), 255, dtype=np.uint8)
        strip = [part for picture in pictures for part in (picture, gap)][:-1]
        axis.imshow(np.concatenate(strip, axis=1), interpolation="nearest" if gap.shape[1] < 6 else None)
        axis.set_title(title, fontsize=8, loc="left", parse_math=False)
    figure.suptitle("From left to right: " + ", ".join(names), fontsize=9, color=GREY, x=0.01, ha="left")
    return figure


def _on_pixels(values: np.ndarray, image: np.ndarray, grid: Grid) -> np.ndarray:
    """One value a patch [patches] as one value a pixel [height, width, 1]."""
    rows = np.arange(image.shape[0]) * grid.rows // image.shape[0]
    columns = np.arange(image.shape[1]) * grid.cols // image.shape[1]
    return values.reshape(grid.rows, grid.cols)[rows[:, None], columns[None]][..., None]


def _faded(image: np.ndarray) -> np.ndarray:
    """An image under a pale grey veil, which neither a white sky nor a black ground can be mistaken for."""
    return (0.2 * image + 0.8 * np.array(VEIL)).astype(np.uint8)


def _rgb(colour: str) -> np.ndarray:
    return np.array([int(colour[at : at + 2], 16) for at in (1, 3, 5)], dtype=np.float64)


@own_style()
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
