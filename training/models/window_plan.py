"""Which kept token stands where in which window: index tables for attention within windows on a part of the tokens.

The kept tokens of all images are one list, image after image, row-major within one. A layer's windows cut each
image's grid; of a window only the kept tokens are computed, and windows that hold about as many are stacked into a
group, padded to its largest. A plan is made once a batch for each grid and shift, by sorting; nothing loops over images
or windows.

Padding costs products, groups cost launches: `NUM_GROUPS` of them leave 5 to 13 % more pairs of tokens than there are
(random and clustered tickets, keep 0.7 and 0.5). Rejected: a group for each size, which has no padding and took as long
on a CPU with five times the launches; whole windows with absent tokens masked, whose attention costs what dense costs.

Axes: B images, T tokens, A places of a window, W windows of a group, n tokens of such a window.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

NUM_GROUPS = 8


@dataclass(frozen=True)
class Layout:
    """How windows cut a grid of tokens, all sizes (rows, columns).

    `shift`: so many are rolled off the top and the left, to the bottom and the right, before the grid is cut. A grid
    that is not whole windows is padded below and to the right, after that.
    """

    grid: tuple[int, int]
    window: tuple[int, int]
    shift: tuple[int, int]

    @property
    def is_padded(self) -> bool:
        """Whether windows reach beyond the grid."""
        return any(side % window for side, window in zip(self.grid, self.window, strict=True))

    @property
    def num_offsets(self) -> int:
        """How many differences there are between two places of a window: rows of a table of position biases."""
        return (2 * self.window[0] - 1) * (2 * self.window[1] - 1)


class Group(NamedTuple):
    """Windows computed together: W of n tokens, and int64 [W, n, n], for query and key their row of `bias_rows`."""

    num_windows: int
    num_slots: int
    pairs: Tensor


class WindowPlan(NamedTuple):
    """Where tokens go for attention, and come from after it.

    rows: int64 [slots], the token in each slot, one group's windows after the other's; slots without one repeat the
        first token of their window, and T stands for padding of the grid
    groups: they share the slots out, in this order
    slots: int64 [T], each token's slot
    """

    rows: Tensor
    groups: list[Group]
    slots: Tensor


def plan_windows(kept: Tensor, layout: Layout, at_hand: Tensor | None = None) -> WindowPlan:
    """The plan of a layer.

    Args:
        kept: bool [B, cells], which cells of the grid hold a token, row-major; tokens are numbered in this order
        at_hand: the same on the CPU, by which no number is read from a GPU
    """
    at_hand = kept if at_hand is None else at_hand
    cells, pairs = _window_tables(layout, kept.device)
    num_tokens, histogram = int(at_hand.sum()), _histogram(at_hand, layout)
    tokens = F.pad(number(kept), (0, 1), value=num_tokens)[:, cells].flatten(0, 1)  # [all windows, A]
    is_there = tokens >= 0
    by_count = _counts(kept, cells).argsort(stable=True)
    places = is_there.byte().argsort(dim=1, descending=True, stable=True)  # those that hold a token first
    groups, rows, own = [], [], []
    start = histogram[0]
    for size, num in _split(histogram):
        windows = by_count[start : start + num]
        start += num
        there = is_there[windows].gather(1, places[windows, :size])
        place = torch.where(there, places[windows, :size], places[windows, :1])
        table = pairs[windows % len(cells)]
        of_query = table.gather(1, place[:, :, None].expand(-1, -1, table.shape[2]))
        of_pair = of_query.gather(2, place[:, None].expand(-1, size, -1))
        groups.append(Group(num, size, of_pair.masked_fill(~there[:, None], 2 * layout.num_offsets)))
        rows.append(tokens[windows].gather(1, place).flatten())
        own.append(there.flatten())
    all_rows = torch.cat(rows)
    slots = torch.empty(num_tokens + 1, dtype=torch.int64, device=kept.device)
    owners = torch.where(torch.cat(own), all_rows, num_tokens)  # slots that are nobody's own go where padding goes
    slots.scatter_(0, owners, torch.arange(len(all_rows), device=kept.device))
    return WindowPlan(all_rows, groups, slots[:num_tokens])


def cells_of(kept: Tensor, num_cells: int) -> Tensor:
    """The cells of `kept` bool [..., cells] that hold a token, rising: int64 [..., num_cells], as many as each row has,
    so that no number of them is read.
    """
    return kept.byte().argsort(dim=-1, descending=True, stable=True)[..., :num_cells]


def _counts(kept: Tensor, cells: Tensor) -> Tensor:
    """How many places of each window of each image have a query or a key, int64 [all windows]: tokens and padding of
    the grid; none where there is no token.
    """
    there = F.pad(kept, (0, 1), value=True)[:, cells].flatten(0, 1)
    has_token = F.pad(kept, (0, 1), value=False)[:, cells].flatten(0, 1).any(dim=1)
    return there.sum(dim=1).masked_fill(~has_token, 0)


def _histogram(kept: Tensor, layout: Layout) -> list[int]:
    """How many windows have 0, 1, … all such places."""
    cells, _ = _window_tables(layout, kept.device)
    counted: list[int] = torch.bincount(_counts(kept, cells), minlength=len(cells[0]) + 1).tolist()
    return counted


def number(kept: Tensor) -> Tensor:
    """The number of the token at each cell of `kept` bool [B, …], int64; -1 where there is none."""
    return torch.where(kept, kept.flatten().cumsum(0).view_as(kept) - 1, -1)


def bias_rows(bias: Tensor) -> Tensor:
    """What `Group.pairs` counts, [2 · offsets + 1, heads]: biases [offsets, heads] of timm's relative positions; the
    same for tokens of regions that a shift brought together, lowered by 100 as timm does; a row that lets nobody look.
    """
    return torch.cat([bias, bias - 100, bias.new_full((1, bias.shape[1]), -torch.inf)])


@lru_cache(maxsize=64)
def _window_tables(layout: Layout, device: torch.device) -> tuple[Tensor, Tensor]:
    """For each window of an image: the cell at each place, int64 [windows, A], beyond the grid one above its last; and
    for two places of it their row of `bias_rows`, int64 [windows, A, A].
    """
    (rows, cols), (height, width), (down, right) = layout.grid, layout.window, layout.shift
    size = (-(-rows // height) * height, -(-cols // width) * width)
    row, col = torch.meshgrid(*(torch.arange(side, device=device) for side in size), indexing="ij")
    is_inside = (row < rows) & (col < cols)
    cell = torch.where(is_inside, (row + down) % rows * cols + (col + right) % cols, rows * cols)
    region = (row >= size[0] - down) * 2 + (col >= size[1] - right)

    def by_window(values: Tensor) -> Tensor:
        return values.unflatten(1, (-1, width)).unflatten(0, (-1, height)).transpose(1, 2).reshape(-1, height * width)

    place = torch.arange(height * width, device=device)
    offset = (place[:, None] // width - place // width + height - 1) * (2 * width - 1)
    offset = offset + place[:, None] % width - place % width + width - 1
    regions = by_window(region)
    return by_window(cell), offset + layout.num_offsets * (regions[:, :, None] != regions[:, None])


def _split(histogram: list[int]) -> list[tuple[int, int]]:
    """Groups of windows as (size, number), sizes rising, such that the windows padded to `size` hold the fewest pairs.

    Args:
        histogram: number of windows that hold 0, 1, … A tokens; those of none are in no group
    """
    largest = len(histogram) - 1
    up_to = np.cumsum(histogram)
    sizes = np.arange(largest + 1)
    cost = (up_to[None] - up_to[:, None]) * sizes[None] ** 2.0  # of one group of the sizes in (row, column]
    cost[sizes[None] < sizes[:, None]] = np.inf
    best, cuts = cost[0], []
    for _ in range(NUM_GROUPS - 1):
        with_cut = best[:, None] + cost
        cuts.append(with_cut.argmin(axis=0))
        best = with_cut.min(axis=0)
    groups, size = [], largest
    for cut in [*reversed(cuts), np.zeros(largest + 1, dtype=int)]:
        if num := int(up_to[size] - up_to[cut[size]]):
            groups.append((size, num))
        size = int(cut[size])
    return groups[::-1]
