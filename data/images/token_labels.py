"""Token labels in a view: what each patch that a student sees should be called, from labels of the image's cells.

Token labelling (Jiang et al., 2021, arXiv 2104.10858) stores of each cell of an image its best classes and their
scores. In training the map is cut as the image is: a patch's score of a class is the map's mean over the patch, taken
as roi_align takes it (bilinear, on a lattice of points, as many as the patch covers cells), absent classes scoring 0;
then softmax over classes, then smoothing. roi_align knows boxes; a view may be mirrored, sheared or turned besides, so
the lattice goes through the view's affine map, and for a box the numbers are roi_align's. Area outside the image
scores 0 for every class.

A batch carries the cells and the maps (13 KB an image), and its targets are made where the model is, for the patches
that are kept: [B, P, classes] through worker processes would be forty times the image. Nothing is drawn and nothing
waits for the device, so how many points are needed is worked out where the maps are made.

Axes: B images, P patches of the grid, k kept ones, R and C rows and columns of cells, S points, N classes.
"""

from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dlth.data.images.mixing import BatchMix, MixPlan, mix_targets, partner_rows, shares
from dlth.tickets.ranking.grid import Grid

Geometry = Literal["right", "authors"]
"""Rows and columns where they belong, or exchanged as the released code has them: it hands (top, left, bottom, right)
to roi_align, whose order is (x1, y1, x2, y2)."""
Truth = Literal["none", "stated", "authors"]
"""How the image's own label corrects the class token's: not at all; half of it where the annotator is wrong and a tenth
where it is right, as LV-ViT's code says that it does; or the other way about, as it does."""

_TRUTH_SHARE = {"none": (0.0, 0.0), "stated": (0.1, 0.5), "authors": (0.5, 0.1)}
"""Share of the image's label where the annotator's best class is right, and where it is wrong."""


class TokenLabels(NamedTuple):
    """Labels of the cells of B images, and where their views lie in them.

    `classes` int32 and `scores` (float16, as files have them), both [B, best, R, C]; an image without labels has
    classes of -1. `matrix` float32 [B, 2, 3]: (x, y, 1) in the view to (x, y) in the map, unit squares both. `points`:
    the most points that a patch takes along one side, and that the whole view takes.
    """

    classes: Tensor
    scores: Tensor
    matrix: Tensor
    points: tuple[int, int]

    @classmethod
    def of(
        cls, classes: NDArray[np.integer], scores: NDArray[np.floating], matrix: NDArray[np.floating], grid: Grid
    ) -> "TokenLabels":
        """Of arrays, for views of `grid`; `classes` beyond any head, as they stand in a file, are none."""
        known = np.where(classes == np.iinfo(np.uint16).max, -1, classes.astype(np.int32))
        maps = torch.from_numpy(np.ascontiguousarray(matrix, dtype=np.float32))
        cells = Grid(*classes.shape[2:])
        points = [int(_num_points(maps, cells, over).max()) for over in (grid, Grid(1, 1))]
        return cls(torch.from_numpy(known), torch.from_numpy(scores.copy()), maps, (points[0], points[1]))


class TokenTargets(NamedTuple):
    """Soft labels, float32: `truth` [B, N] of the image by its own label, `cls` [B, N] of the class token, `patches`
    [B, k, N] in the order of the patches.
    """

    truth: Tensor
    cls: Tensor
    patches: Tensor


def token_targets(
    labels: TokenLabels,
    images: Tensor,
    grid: Grid,
    num_classes: int,
    smoothing: float = 0.0,
    patches: Tensor | None = None,
    mix: MixPlan | BatchMix | None = None,
    geometry: Geometry = "right",
    truth: Truth = "none",
) -> TokenTargets:
    """Targets of a batch, mixed as its pixels or tokens are: a patch by its own area.

    Args:
        labels: of the batch before mixing
        images: their own labels int64 [B]
        grid: the view's patches
        smoothing: both kinds of labels are multiplied by 1 - s + s/N, and s/N is added, as LV-ViT's authors do
        patches: those kept, int64 [B, k]; None is all of them
        mix: how the batch mixes; None: not at all
        geometry, truth: see `Geometry` and `Truth`
    """
    plan = mix or MixPlan()
    own = mix_targets(images, num_classes, smoothing, MixPlan())
    cls, of_patches = _unmixed(labels, own, grid, smoothing, patches, geometry, truth)
    if plan == MixPlan() or (isinstance(plan, BatchMix) and not plan.mixed.any()):
        return TokenTargets(own, cls, of_patches)
    classes, scores, matrix = (partner_rows(part) for part in labels[:3])
    other = TokenLabels(classes, scores, matrix, labels.points)
    _, others_patches = _unmixed(other, partner_rows(own), grid, smoothing, patches, geometry, truth)
    whole_B1, patch_BP = shares(plan, grid, len(images), cls.device)
    share = (patch_BP if patches is None else patch_BP.gather(1, patches)).unsqueeze(-1)
    return TokenTargets(
        mix_targets(images, num_classes, smoothing, plan),
        cls * whole_B1 + partner_rows(cls) * (1.0 - whole_B1),
        of_patches * share + others_patches * (1.0 - share),
    )


def _unmixed(
    labels: TokenLabels,
    own_BN: Tensor,
    grid: Grid,
    smoothing: float,
    patches: Tensor | None,
    geometry: Geometry,
    truth: Truth,
) -> tuple[Tensor, Tensor]:
    """Targets of class tokens [B, N] and of patches [B, k, N]; images without labels have their own everywhere."""
    batch, num_classes = own_BN.shape
    cells = Grid(*labels.classes.shape[2:])
    matrix = labels.matrix
    if geometry == "authors":
        matrix = torch.cat([matrix[:, :, :2].flip(2), matrix[:, :, 2:]], dim=2).flip(1)  # rows and columns exchanged
    weights = _cell_weights(matrix, cells, grid, labels.points[0])
    if patches is not None:
        weights = weights.gather(1, patches.unsqueeze(-1).expand(-1, -1, cells.num_patches))
    weights = torch.cat([_cell_weights(matrix, cells, Grid(1, 1), labels.points[1]), weights], dim=1)
    known = (labels.classes[:, 0, 0, 0] >= 0).view(batch, 1, 1)
    dense = own_BN.new_zeros(batch, cells.num_patches, num_classes)
    scores = labels.scores.float().masked_fill(~known.unsqueeze(-1), 0.0)
    places = labels.classes.clamp(min=0).long()
    dense.scatter_(2, places.flatten(2).transpose(1, 2), scores.flatten(2).transpose(1, 2))
    off = smoothing / num_classes
    targets = torch.bmm(weights, dense).softmax(dim=-1) * (1.0 - smoothing + off) + off
    targets = torch.where(known, targets, own_BN.unsqueeze(1))
    return _corrected(targets[:, 0], own_BN, truth), targets[:, 1:]


def _corrected(cls_BN: Tensor, own_BN: Tensor, truth: Truth) -> Tensor:
    right, wrong = _TRUTH_SHARE[truth]
    if right == wrong:
        return cls_BN
    agrees = cls_BN.argmax(dim=-1, keepdim=True) == own_BN.argmax(dim=-1, keepdim=True)
    share = torch.full_like(agrees, wrong, dtype=cls_BN.dtype).masked_fill_(agrees, right)
    return torch.lerp(cls_BN, own_BN, share)


def _num_points(matrix: Tensor, cells: Grid, grid: Grid) -> Tensor:
    """Int64 [B, 2]: points that a patch of `grid` takes across and down: as many as the cells that it spans."""
    span = matrix[:, :, :2].abs() * _sizes(cells, matrix)[:, None]  # [B, axis of the map, of the view]
    return (span.amax(dim=1) / _sizes(grid, matrix)).ceil().long().clamp(min=1)


def _sizes(grid: Grid, like: Tensor) -> Tensor:
    """Columns and rows, float32 [2]; filled in where `like` is, as a copy to a GPU would be waited for."""
    return torch.stack([like.new_full((), grid.cols), like.new_full((), grid.rows)])


def _cell_weights(matrix: Tensor, cells: Grid, grid: Grid, most: int) -> Tensor:
    """Float32 [B, P, R·C]: the weight of each cell in the mean over each patch of `grid`; `most` points along a side.

    Bilinear interpolation of a cell map is a product of two triangles a point: no index is scattered to, so the sums
    are the same in every run, on any device. Points beyond the image by more than a cell weigh nothing (roi_align's
    rule), nearer ones count as its border.
    """
    device, batch = matrix.device, len(matrix)
    count = _num_points(matrix, cells, grid)
    step = torch.arange(most, device=device)
    inside_B2S = step < count.unsqueeze(-1)
    offset_B2S = (step + 0.5) / count.unsqueeze(-1)
    x_BCS = (torch.arange(grid.cols, device=device)[:, None] + offset_B2S[:, None, 0]) / grid.cols
    y_BRS = (torch.arange(grid.rows, device=device)[:, None] + offset_B2S[:, None, 1]) / grid.rows
    weigh_BSS = (inside_B2S[:, 1, :, None] & inside_B2S[:, 0, None, :]) / count.prod(dim=1).view(-1, 1, 1)
    view_x = x_BCS[:, None, :, None, :]
    view_y = y_BRS[:, :, None, :, None]

    def triangles(row: int, num_cells: int) -> Tensor:
        across, down, shift = matrix[:, row].T.reshape(3, batch, 1, 1, 1, 1)
        place = (across * view_x + down * view_y + shift) * num_cells - 0.5
        near = (place >= -1.0) & (place <= num_cells)
        distance = (place.clamp(0, num_cells - 1).unsqueeze(-1) - torch.arange(num_cells, device=device)).abs()
        weights: Tensor = (1.0 - distance).clamp(min=0.0) * near.unsqueeze(-1)
        return weights

    across, down = triangles(0, cells.cols), triangles(1, cells.rows)
    down = (down * weigh_BSS[:, None, None, :, :, None]).flatten(1, 2).flatten(2, 3)  # [B, P, S, R]
    across = across.flatten(1, 2).flatten(2, 3)  # [B, P, S, C]
    return torch.einsum("bpsr,bpsc->bprc", down, across).flatten(2)
