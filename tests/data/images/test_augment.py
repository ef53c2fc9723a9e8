"""Augmentation: the recorded view says where pixels came from, draws depend on the sample's name alone."""

import numpy as np
import pytest
import torch

from dlth.data.images.augment import Augmentation, Augmented, _in_unit_square, augment
from dlth.data.images.rand_augment import OPERATIONS, RandAugment
from dlth.data.images.visibility import demote, hidden_by_warps, hidden_share
from dlth.tickets.errors import InputError
from dlth.tickets.ranking.grid import Grid
from dlth.tickets.ranking.projection import covered, project
from dlth.tickets.ranking.view import View

GRID = Grid(4, 4)
PLAIN = Augmentation(size=(64, 64), hflip=0.0)
WARPED = Augmentation(size=(64, 64), hflip=0.5, rand_augment="rand-m9-mstd0.5-n1-p1-inc1")


def coordinates(height: int, width: int) -> torch.Tensor:
    """An image that says where each pixel is: red is x, green is y, both from 20 to 220; blue is constant."""
    x = (torch.arange(width) + 0.5) / width * 200 + 20
    y = (torch.arange(height) + 0.5) / height * 200 + 20
    red, green = x.expand(height, width), y[:, None].expand(height, width)
    return torch.stack([red, green, torch.full_like(red, 40.0)]).round().to(torch.uint8)


def predicted(view: View, size: tuple[int, int]) -> np.ndarray:
    """Image coordinates that the view gives to each pixel centre, float [2, height, width]."""
    height, width = size
    x, y = np.meshgrid((np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height)
    return np.einsum("cd,dhw->chw", view.matrix, np.stack([x, y, np.ones_like(x)]))


def check_pixels(result: Augmented) -> float:
    """Compare each pixel's colour with where the view says it came from; returns the share of pixels compared."""
    size = (result.image.shape[1], result.image.shape[2])
    seen = (result.image[:2].numpy().astype(float) - 20) / 200
    expected = predicted(result.view, size)
    shown = result.image[2].numpy() == 40  # where warps filled, blue is another
    inner = (expected > 0.04) & (expected < 0.96)
    compare = shown & inner.all(0)
    assert np.abs(seen - expected)[:, compare].max() < 0.03
    return float(compare.mean())


@pytest.mark.parametrize("shape", [(96, 128), (150, 90), (64, 64), (20, 300)])
@pytest.mark.parametrize("hflip", [0.0, 1.0])
def test_view_of_crop_and_mirror_predicts_pixels(shape: tuple[int, int], hflip: float) -> None:
    """For twenty crops of each shape, mirrored or not, every inner pixel came from where the view says."""
    config = Augmentation(size=(64, 48), hflip=hflip)
    compared = [check_pixels(augment(coordinates(*shape), config, GRID, 0, 0, f"key{i}")) for i in range(20)]
    assert np.mean(compared) > 0.7


def test_view_of_every_warp_predicts_pixels() -> None:
    """Each geometric operation, both ways, after crop and mirror: pixels came from where the composed view says."""
    kinds: set[tuple[bool, ...]] = set()
    for i in range(250):
        result = augment(coordinates(96, 128), WARPED, GRID, 1, 0, f"key{i}")
        plain = augment(coordinates(96, 128), Augmentation(size=(64, 64), hflip=0.5), GRID, 1, 0, f"key{i}")
        if np.allclose(result.view.matrix, plain.view.matrix):
            continue  # a colour operation: geometry is crop and mirror alone
        assert check_pixels(result) > 0.15
        change = result.view.matrix - plain.view.matrix
        kinds.add(tuple((np.abs(change) > 1e-9).ravel()) + tuple((change > 1e-9).ravel()))
    assert len({kind[:6] for kind in kinds}) == 5, "shear x and y, rotation, translation x and y were all drawn"
    assert len(kinds) >= 10, "each in both directions"


def test_two_warps_compose_in_order() -> None:
    """Two warps after one another: the view composed of both predicts the pixels (the order of composition matters)."""
    policy = RandAugment(magnitude=7, layers=2, prob=1.0, increasing=True)
    checked = 0
    for seed in range(120):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            image, moved = policy(coordinates(64, 80), (124.0, 116.0, 104.0))
        if len(moved) == 2:
            view = View.whole(GRID)
            for affine in moved:
                view = view.warped(_in_unit_square(affine, (64, 80)))
            check_pixels(Augmented(image, view, None))
            checked += 1
    assert checked >= 5


def test_hidden_is_what_warps_fill() -> None:
    """The hidden share of each patch is the share of its pixels that show fill, within the edges' blur."""
    seen = 0
    for i in range(120):
        result = augment(coordinates(96, 128), WARPED, GRID, 2, 0, f"key{i}")
        if result.hidden is None:
            continue
        filled = (result.image[2].numpy() != 40).reshape(4, 16, 4, 16).mean(axis=(1, 3)).ravel()
        assert np.abs(filled - result.hidden).max() < 0.25
        assert abs(filled.mean() - result.hidden.mean()) < 0.06
        seen += result.hidden.max() > 0.5
    assert seen >= 10


def test_ticket_follows_its_object() -> None:
    """A bright patch is first in the file's ticket; in each augmented view the projected best patch is bright."""
    followed = 0
    for i in range(60):
        row, col = divmod(i % 36, 6)
        image = torch.full((3, 96, 96), 60, dtype=torch.uint8)
        image[:, row * 16 : row * 16 + 16, col * 16 : col * 16 + 16] = 200
        first = row * 6 + col
        ranking = np.array([first, *[p for p in range(36) if p != first]])
        config = Augmentation(size=(96, 96), scale=(0.1, 0.6), interpolation="bilinear")
        result = augment(image, config, Grid(6, 6), 3, 0, f"key{i}")
        patches = result.image[0].float().reshape(6, 16, 6, 16).mean(dim=(1, 3)).ravel()
        if patches.max() > 197:  # a patch that shows nothing but the bright one
            best = project(ranking, View.whole(Grid(6, 6)), result.view)[0]
            assert patches[best] > 190
            followed += 1
    assert followed > 10


def test_erased_box_counts_as_hidden() -> None:
    """Erasing paints noise around the mean over one box of 2 to 33 % of the area, and hides exactly that box."""
    config = Augmentation(size=(64, 64), hflip=0.0, scale=(1.0, 1.0), ratio=(1.0, 1.0), reprob=1.0)
    image = torch.full((3, 64, 64), 255, dtype=torch.uint8)
    for i in range(20):
        result = augment(image, config, GRID, 4, 0, f"key{i}")
        changed = (result.image != 255).any(0).numpy()
        rows, cols = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
        box = changed[rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1]
        assert 0.015 < box.size / changed.size < 0.35
        sides = np.array([[cols[0], rows[0], cols[-1] + 1, rows[-1] + 1]]) / 64
        assert result.hidden is not None
        assert np.allclose(result.hidden, covered(sides, GRID)[0], atol=1e-9)
        assert 80 < result.image[:, changed].float().mean() < 170


def test_hidden_patches_fall_to_the_end() -> None:
    """Hidden patches go last, half-hidden ones in between; nothing hidden changes nothing."""
    ranking = torch.tensor([[2, 0, 3, 1], [2, 0, 3, 1]])
    hidden = torch.tensor([[0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    assert demote(ranking, hidden).tolist() == [[0, 3, 1, 2], [2, 0, 3, 1]]
    assert demote(ranking[:1], torch.tensor([[0.0, 0.0, 0.5, 0.0]])).tolist() == [[0, 2, 3, 1]]
    assert hidden_share(hidden, ranking[:, :2]).tolist() == [0.5, 0.0]
    assert hidden_share(hidden, None).tolist() == [0.25, 0.0]
    shift_right_by_half = np.array([[1.0, 0.0, -0.5], [0.0, 1.0, 0.0]])
    assert hidden_by_warps([shift_right_by_half], Grid(1, 4)).tolist() == [1.0, 1.0, 0.0, 0.0]
    back = np.array([[1.0, 0.0, 0.5], [0.0, 1.0, 0.0]])
    assert hidden_by_warps([shift_right_by_half, back], Grid(1, 4)).tolist() == [0.0, 0.0, 1.0, 1.0]


def test_draws_depend_on_the_name_alone() -> None:
    """The same (seed, epoch, key) gives the same bytes in any order of work; another part gives others."""
    config = Augmentation(size=(32, 32), rand_augment="rand-m9-mstd0.5-inc1", color_jitter=0.4, reprob=0.25)
    image = coordinates(48, 64)
    names = [(0, epoch, f"key{i}") for epoch in range(2) for i in range(8)]
    forward = [augment(image, config, GRID, *name).image for name in names]
    backward = [augment(image, config, GRID, *name).image for name in reversed(names)][::-1]
    assert all(torch.equal(a, b) for a, b in zip(forward, backward, strict=True))
    assert len({image.numpy().tobytes() for image in forward}) == len(names)


def test_global_random_state_is_untouched() -> None:
    """Neither torch's nor numpy's global generator notices that images are augmented, even when that fails."""
    config = Augmentation(size=(32, 32), rand_augment="rand-m9-mstd0.5-inc1", color_jitter=0.4, reprob=1.0)
    before, legacy = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    augment(coordinates(48, 64), config, GRID, 0, 0, "key")
    with pytest.raises(TypeError, match="two dimensions"):
        augment(torch.zeros(5), config, GRID, 0, 0, "key")
    assert torch.equal(before, torch.random.get_rng_state())
    assert np.array_equal(legacy, np.random.get_state()[1])


def test_rand_augment_string_is_timms() -> None:
    """The recipe's string parses to timm's values, and each of the fifteen operations works at every strength."""
    policy = RandAugment.parse("rand-m9-mstd0.5-inc1")
    assert policy == RandAugment(magnitude=9, std=0.5, highest=10, layers=2, prob=0.5, increasing=True)
    assert RandAugment.parse("rand-m15-n3-mmax20-p0.7-inc0") == RandAugment(15, 0.0, 20, 3, 0.7, False)
    assert len(OPERATIONS) == 15
    image = coordinates(24, 32)
    for increasing in (False, True):
        for magnitude in (0, 5, 10, 20):
            for operation in range(len(OPERATIONS)):
                policy = RandAugment(magnitude=magnitude, highest=20, layers=1, prob=1.0, increasing=increasing)
                with torch.random.fork_rng(devices=[]):
                    torch.manual_seed(operation)
                    result, moved = policy(image, (0.0, 0.0, 0.0))
                assert result.shape == image.shape
                assert result.dtype == torch.uint8
                assert len(moved) <= 1


@pytest.mark.parametrize("operation", range(15))
def test_operations_agree_with_timms(operation: int) -> None:
    """Each operation gives timm's pixels at the same strength, up to bilinear warps and rounding."""
    from PIL import Image
    from timm.data import auto_augment as timm_ra

    from dlth.data.images.rand_augment import Level

    generator = torch.Generator().manual_seed(0)
    smooth = torch.nn.functional.interpolate(
        torch.rand(1, 3, 6, 8, generator=generator) * 255, (48, 64), mode="bicubic"
    )
    image = smooth[0].clamp(0, 255).to(torch.uint8)
    name = timm_ra._RAND_INCREASING_TRANSFORMS[operation]
    level_fn = timm_ra.LEVEL_TO_ARG[name]
    ours, affine = OPERATIONS[operation](image, Level(0.7, 1.0, True), (124.0, 116.0, 104.0))
    pictures = []
    for _ in range(12):  # timm draws the sign itself
        args = level_fn(7.0, {}) if level_fn else ()
        options = {"fillcolor": (124, 116, 104), "resample": Image.Resampling.BILINEAR}
        picture = timm_ra.NAME_TO_OP[name](Image.fromarray(image.permute(1, 2, 0).numpy()), *args, **options)
        pictures.append(torch.from_numpy(np.array(picture)).permute(2, 0, 1))
    errors = [(ours.int() - picture.int()).abs().float().mean().item() for picture in pictures]
    assert min(errors) < (2.5 if affine is not None else 1.5), (name, errors)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("augmix-m5-w4", "policy 'augmix' is not known here"),
        ("original-mstd0.5", "policy 'original' is not known here"),
        ("rand-m9-tweights", "part 'tweights' of 'rand-m9-tweights' is not known"),
        ("rand-w0", "part 'w0'"),
        ("rand-m", "part 'm' "),
    ],
    ids=["augmix", "autoaugment", "weighted set", "old weights", "no number"],
)
def test_untracked_policies_are_refused_by_name(text: str, message: str) -> None:
    """A policy or part that a ticket could not follow, or that is unknown, is named before an image is read."""
    with pytest.raises(InputError, match=message):
        Augmentation(rand_augment=text)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scale": (0.0, 1.0)}, "scale must be two rising numbers"),
        ({"ratio": (2.0, 1.0)}, "ratio must be two rising numbers"),
        ({"hflip": 1.5}, "hflip must lie between 0 and 1, got 1.5"),
        ({"interpolation": "random"}, "bicubic or bilinear, got 'random'"),
        ({"size": (0, 3)}, "size of at least 1x1"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_wrong_values_are_refused(change: dict[str, object], message: str) -> None:
    """Each value out of range is refused when the configuration is made."""
    with pytest.raises(InputError, match=message):
        Augmentation(**change)  # type: ignore[arg-type]
