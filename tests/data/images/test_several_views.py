"""The views that are averaged: pixels where their maps say, of the image itself, drawn by seed and key alone."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from dlth.data.images.several_views import SeveralViews
from dlth.data.images.views import render
from dlth.tickets import Grid, ViewSpec
from dlth.tickets.errors import InputError

VIEWS = SeveralViews(ViewSpec("whole", 32, 48), Grid(2, 3), 4, (0.2, 0.5), 7)


@pytest.mark.parametrize("own", [VIEWS.own, ViewSpec("center", 32, 48, "0.9")], ids=["whole", "center"])
def test_pixels_lie_where_the_maps_say(own: ViewSpec) -> None:
    """In the view, its mirror and every crop, a pixel came from where its map puts it; the first is the file's own."""
    height, width = 150, 220
    x, y = (np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height
    places = np.stack([np.broadcast_to(x, (height, width)), np.broadcast_to(y[:, None], (height, width))])
    image = torch.from_numpy(np.concatenate([places * 200 + 20, places[:1] * 0]).round().astype(np.uint8))
    pixels, maps = replace(VIEWS, own=own).of(image, "key")
    assert pixels.shape == (6, 3, 32, 48)
    assert torch.equal(pixels[0], render(image, own))
    x, y = np.meshgrid((np.arange(48) + 0.5) / 48, (np.arange(32) + 0.5) / 32)
    expected = np.einsum("vcd,dhw->vchw", maps, np.stack([x, y, np.ones_like(x)]))
    assert np.abs((pixels[:, :2].numpy() - 20.0) / 200 - expected).max() < 0.02
    areas = maps[2:, 0, 0] * maps[2:, 1, 1]
    assert ((np.abs(areas) > 0.19) & (np.abs(areas) < 0.51)).all()


def test_crops_are_cut_from_the_decoded_image() -> None:
    """Stripes too fine for the small view, which is even grey, stand out in crops at the image's own size."""
    image = torch.zeros(3, 128, 192, dtype=torch.uint8)
    image[:, :, ::2] = 255
    pixels, _ = replace(VIEWS, scale=(1 / 16, 1 / 16)).of(image, "key")
    spread = pixels[:, 0].float().std(dim=(1, 2))
    assert (spread[:2] < 20).all()
    assert (spread[2:] > 60).all()


def test_what_is_drawn_hangs_on_seed_and_key_alone() -> None:
    """The same again whatever torch drew meanwhile and however many crops there are; other keys and seeds otherwise."""
    image = torch.randint(0, 256, (3, 60, 50), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    before, (pixels, maps) = torch.random.get_rng_state(), VIEWS.of(image, "a")
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.rand(3)
    again, fewer = VIEWS.of(image, "a"), replace(VIEWS, crops=2).of(image, "a")
    assert torch.equal(again[0], pixels)
    assert torch.equal(fewer[0], pixels[:4])
    for other in (VIEWS.of(image, "b"), replace(VIEWS, seed=8).of(image, "a")):
        assert (other[1][:2] == maps[:2]).all()
        assert (other[1][2:] != maps[2:]).any(axis=(1, 2)).all()


@pytest.mark.parametrize("change", [{"scale": (0.0, 1.0)}, {"own": replace(VIEWS.own, interpolation="nearest")}])
def test_crops_that_cannot_be_cut_are_refused(change: dict[str, object]) -> None:
    """An area of nothing, and an interpolation by which crops are not resized."""
    with pytest.raises(InputError, match=r"scale|interpolation"):
        replace(VIEWS, **change)
