"""Token labels in a view: the released code's numbers, and the geometry that it should have had."""

import numpy as np
import pytest
import torch
from makers import ROOT
from safetensors.torch import load_file
from torchvision.ops import roi_align

from dlth.data.images.mixing import BatchMix, MixPlan
from dlth.data.images.token_labels import TokenLabels, TokenTargets, token_targets
from dlth.tickets.ranking.grid import Grid
from dlth.tickets.ranking.view import View

GOLDEN = ROOT / "tests" / "training" / "golden" / "lvvit_a.safetensors"
GRID, CLASSES = Grid(4, 4), 6


def drawn(views: list[View], seed: int = 0, cells: Grid | None = None, grid: Grid = GRID) -> TokenLabels:
    """Labels of as many images as there are views: three best of six classes in each cell."""
    rng, cells = np.random.default_rng(seed), cells or Grid(5, 7)
    shape = (len(views), CLASSES, cells.rows, cells.cols)
    classes = rng.permuted(np.indices(shape)[1], axis=1)[:, :3]
    scores = rng.normal(3, 2, classes.shape).astype(np.float32)
    return TokenLabels.of(classes, scores, np.stack([view.matrix for view in views]), grid)


def targets(labels: TokenLabels, grid: Grid = GRID, **options: object) -> TokenTargets:
    """Targets of labels whose images are of class 0, 1, 2 …"""
    return token_targets(labels, torch.arange(len(labels.matrix)), grid, CLASSES, **options)


@pytest.mark.parametrize(("geometry", "name"), [("right", "targets_xy"), ("authors", "targets")])
def test_golden_targets(geometry: str, name: str) -> None:
    """Targets of ground truth, class token and patches are those of the released code, in either geometry."""
    golden = load_file(GOLDEN)
    y, x, height, width = golden["crop_y_x_h_w"].numpy().T
    boxes = zip(x, y, x + width, y + height, strict=True)
    matrix = np.stack([View.from_box(*map(float, box), Grid(8, 8)).matrix for box in boxes])
    labels = TokenLabels.of(golden["label_classes"].numpy(), golden["label_scores"].numpy(), matrix, Grid(8, 8))
    made = token_targets(labels, golden["label"], Grid(8, 8), 10, 0.1, geometry=geometry)
    expected = golden[name].transpose(1, 2)
    for part, wanted in zip(made, (expected[:, 0], expected[:, 1], expected[:, 2:]), strict=True):
        torch.testing.assert_close(part, wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize("box", [(0, 0, 1, 1), (0.1, 0.3, 0.9, 0.5), (0.6, 0, 1.1, 0.33)], ids=str)
@pytest.mark.parametrize("mirrored", [False, True])
def test_boxes_are_roi_aligns(box: tuple[float, float, float, float], mirrored: bool) -> None:
    """On maps and grids that are no squares, a box gives torchvision's roi_align; mirrored, its mirror image."""
    grid = Grid(3, 2)
    labels = drawn([View.from_box(*box, grid, mirrored)], grid=grid)
    dense = torch.zeros(1, CLASSES, 5, 7).scatter_(1, labels.classes.long(), labels.scores)
    corners = torch.tensor([[0, *box]]) * torch.tensor([1, 7, 5, 7, 5.0]) - torch.tensor([0, 0.5, 0.5, 0.5, 0.5])
    aligned = roi_align(dense, corners, (3, 2))
    expected = (aligned.flip(3) if mirrored else aligned).softmax(1).flatten(2).transpose(1, 2)
    torch.testing.assert_close(targets(labels, grid).patches, expected, atol=1e-5, rtol=0)


def test_a_turned_view_finds_its_cells() -> None:
    """In a view turned by a quarter, each patch has the label of the cell that it shows."""
    turned = View(np.array([[0.0, 1.0, 0.0], [-1.0, 0.0, 1.0]]), GRID)
    labels = drawn([turned], cells=GRID)
    whole = labels._replace(matrix=torch.from_numpy(View.whole(GRID).matrix).float()[None])
    square = targets(whole).patches.view(1, 4, 4, CLASSES)
    torch.testing.assert_close(targets(labels).patches.view(1, 4, 4, CLASSES), square.rot90(-1, (1, 2)))


@pytest.mark.parametrize("plan", [MixPlan("mixup", 0.3), MixPlan("cutmix", 0.75, (0.25, 0.0, 0.625, 0.75))], ids=str)
def test_mixed_and_dropped_as_the_patches(plan: MixPlan) -> None:
    """A kept patch has its own label and its partner's at that place, by the area that each has; an unmixed pair none
    of another's; the class token's are mixed as the image is.
    """
    views = [View.from_box(0.2 * n, 0.1, 0.9, 0.6 + 0.1 * n, GRID, mirrored=n == 1) for n in range(4)]
    labels, patches = drawn(views), torch.tensor([[5, 0], [6, 9], [1, 15], [2, 3]])
    mix = BatchMix((plan, MixPlan()), (2, 2))
    alone = targets(labels, smoothing=0.1)
    made = targets(labels, smoothing=0.1, patches=patches, mix=mix)
    area = {5: (0.3, 0.0), 0: (0.3, 1.0), 6: (0.3, 0.5), 9: (0.3, 0.0)}  # 6 lies half under the box
    for image, partner in ((0, 1), (1, 0)):
        for place, patch in enumerate(patches[image].tolist()):
            own = 0.3 if plan.kind == "mixup" else area[patch][1]
            expected = own * alone.patches[image, patch] + (1 - own) * alone.patches[partner, patch]
            torch.testing.assert_close(made.patches[image, place], expected)
        for part, whole in ((made.cls, alone.cls), (made.truth, alone.truth)):
            torch.testing.assert_close(part[image], plan.weight * whole[image] + (1 - plan.weight) * whole[partner])
    torch.testing.assert_close(made.patches[2:], alone.patches[torch.arange(2, 4)[:, None], patches[2:]])


def test_images_without_labels_have_their_own() -> None:
    """Where the file has nothing, class token and patches have the image's label, smoothed; others are untouched."""
    labels = drawn([View.whole(GRID)] * 2)
    labels.classes[1] = -1
    labels.scores[1] = torch.nan
    made = targets(labels, smoothing=0.1)
    assert (made.cls[1] == made.truth[1]).all()
    assert (made.patches[1] == made.truth[1]).all()
    assert made.patches[0].isfinite().all()
    assert not (made.patches[0] == made.truth[0]).all(-1).any()


@pytest.mark.parametrize(("truth", "right", "wrong"), [("stated", 0.1, 0.5), ("authors", 0.5, 0.1)])
def test_the_images_label_corrects_the_class_token(truth: str, right: float, wrong: float) -> None:
    """The class token's target leans on the image's label, by how much follows from whether the annotator has it."""
    labels = drawn([View.whole(GRID)] * 6)
    alone, made = targets(labels), targets(labels, truth=truth)
    agrees = alone.cls.argmax(1) == torch.arange(6)
    assert agrees.any()
    assert not agrees.all()
    share = torch.where(agrees, right, wrong)[:, None]
    torch.testing.assert_close(made.cls, alone.cls * (1 - share) + alone.truth * share)
    assert (made.patches == alone.patches).all()
