"""Rendering a view: timm's evaluation pixels, and pixels where the recorded view says."""

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform

from dlth.data.images.views import check_view, render
from dlth.tickets.errors import InputError
from dlth.tickets.format.header import ViewSpec
from dlth.tickets.ranking.grid import Grid

SHAPES = [(96, 128), (150, 90), (64, 64), (33, 500), (40, 50)]


def coordinates(height: int, width: int) -> torch.Tensor:
    """Red says x, green y (20 to 220)."""
    x = ((torch.arange(width) + 0.5) / width * 200 + 20).expand(height, width)
    y = ((torch.arange(height) + 0.5) / height * 200 + 20)[:, None].expand(height, width)
    return torch.stack([x, y, torch.zeros_like(x)]).round().to(torch.uint8)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    "spec",
    [ViewSpec("whole", 48, 48), ViewSpec("center", 48, 48, "0.875"), ViewSpec("center", 32, 48, "0.9")],
    ids=["whole", "center", "oblong"],
)
def test_pixels_lie_where_the_view_says(shape: tuple[int, int], spec: ViewSpec) -> None:
    """Every rendered pixel came from where the view of that image's size puts it."""
    result = render(coordinates(*shape), spec)
    assert result.shape == (3, spec.height, spec.width)
    x, y = np.meshgrid((np.arange(spec.width) + 0.5) / spec.width, (np.arange(spec.height) + 0.5) / spec.height)
    matrix = spec.view_of(*shape, Grid(4, 4)).matrix
    expected = np.einsum("cd,dhw->chw", matrix, np.stack([x, y, np.ones_like(x)]))
    inner = ((expected > 0.03) & (expected < 0.97)).all(0)
    seen = (result[:2].numpy().astype(float) - 20) / 200
    assert np.abs(seen - expected)[:, inner].max() < 0.02


@pytest.mark.parametrize("shape", SHAPES)
def test_center_view_is_timms_evaluation_crop(shape: tuple[int, int]) -> None:
    """The centre view shows what timm's evaluation transform shows, up to the resampling of PIL and tensors."""
    generator = np.random.default_rng(0)
    coarse = Image.fromarray(generator.integers(0, 255, (6, 8, 3), dtype=np.uint8))
    picture = coarse.resize((shape[1], shape[0]), Image.Resampling.BICUBIC)
    transform = create_transform(48, crop_pct=0.875, interpolation="bicubic", normalize=False)
    ours = render(torch.from_numpy(np.array(picture)).permute(2, 0, 1), ViewSpec("center", 48, 48, "0.875"))
    theirs = transform(picture)
    assert (ours.int() - theirs.int()).abs().max() <= 2


@pytest.mark.parametrize("crop_pct", ["0.875", "1", "0.4"])
@pytest.mark.parametrize("shape", [*SHAPES, (500, 33), (7, 900), (400, 3000)])
def test_resizing_what_the_crop_needs_gives_the_same_pixels(
    shape: tuple[int, int], crop_pct: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The way of very long images differs from the ordinary one by two grey levels of rounding and a pixel."""
    spec = ViewSpec("center", 48, 48, crop_pct)
    whole = render(coordinates(*shape), spec)
    monkeypatch.setattr("dlth.data.images.views.MAX_RESIZED", 0)
    part = render(coordinates(*shape), spec)
    slope = 200 / min(spec.resized(*shape))  # grey levels from one pixel to the next
    assert (whole.int() - part.int()).abs().max() <= 2 + slope


def test_unknown_interpolation_is_named() -> None:
    """A header with another library's interpolation is refused by its name."""
    with pytest.raises(InputError, match="'magic' is none of"):
        render(coordinates(8, 8), ViewSpec("whole", 4, 4, interpolation="magic"))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (ViewSpec("center", 224, 224, "0.0005"), "224 x 224 pixels, cut with a crop_pct of 0.0005, is too large"),
        (ViewSpec("center", 1, 1, "0.000000000000000000000000000001"), "too large: .*a larger crop_pct"),
        (ViewSpec("center", 8000, 16, "0.9"), "cut from 8192 pixels along a side"),
        (ViewSpec("whole", 65536, 65536), "a view of 65536 x 65536 pixels is too large"),
        (ViewSpec("whole", 8, 8, interpolation="lanczos"), "'lanczos' is none of bicubic, bilinear, nearest"),
    ],
    ids=["tiny crop", "tiniest crop", "long side", "large view", "no way to resample tensors"],
)
def test_views_that_ask_for_too_much_are_refused_before_an_image_is_read(spec: ViewSpec, message: str) -> None:
    """Numbers of a view come from notes, flags and headers: none makes an ordinary image take gigabytes."""
    with pytest.raises(InputError, match=message):
        check_view(spec)
    with pytest.raises(InputError, match=message):
        render(coordinates(40, 50), spec)


@pytest.mark.parametrize("spec", [ViewSpec("center", 1024, 1024, "0.875"), ViewSpec("center", 224, 224, "0.1")])
def test_views_of_laboratories_are_shown(spec: ViewSpec) -> None:
    """Large images and narrow crops stay possible."""
    assert render(coordinates(40, 50), spec).shape == (3, spec.height, spec.width)
