"""The demo's images: geometry, held-out digits, and shards that are the same every time."""

import hashlib
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest

from dlth.data.images.decode import decode
from dlth.data.packing.demo_digits import CANVAS, GRID, PATCH, DigitImages, draw_digits, make_digit_shards
from dlth.tickets.errors import InputError


def yellow(drawn: DigitImages) -> np.ndarray:
    """Yellow pixels of each patch: int [count, 64 patches]; clutter is grey, so its red and blue hardly differ."""
    red, blue = drawn.images[..., 0].astype(int), drawn.images[..., 2].astype(int)
    tiles = (red - blue > 60).reshape(-1, GRID, PATCH, GRID, PATCH)
    return tiles.sum(axis=(2, 4)).reshape(-1, GRID * GRID)


@pytest.fixture(scope="module")
def drawn() -> DigitImages:
    return draw_digits("train", 700)


def test_the_digit_fills_two_by_two_patches_of_the_grid(drawn: DigitImages) -> None:
    """The four patches are a square inside the grid, all ink of the digit lies in them, and each place comes up."""
    assert (drawn.images.shape, drawn.images.dtype) == ((700, CANVAS, CANVAS, 3), np.uint8)
    assert (drawn.patches.shape, drawn.patches.dtype, drawn.labels.dtype) == ((700, 4), np.int64, np.int64)
    rows, columns = np.divmod(drawn.patches, GRID)
    assert (rows - rows[:, :1] == [0, 0, 1, 1]).all()
    assert (columns - columns[:, :1] == [0, 1, 0, 1]).all()
    ink = yellow(drawn)
    inside = np.take_along_axis(ink, drawn.patches, axis=1)
    assert inside.sum() == ink.sum()
    assert (inside.sum(axis=1) > 20).all()
    assert len(np.unique(drawn.patches[:, 0])) == (GRID - 1) ** 2


def test_every_other_patch_is_cluttered(drawn: DigitImages) -> None:
    """Ink alone tells nothing: patches beside the digit are as full of grey ink, at every place."""
    patches = drawn.images.max(axis=3).reshape(-1, GRID, PATCH, GRID, PATCH)
    full = (patches > 40).mean(axis=(2, 4)).reshape(-1, GRID * GRID)
    full[np.arange(700)[:, None], drawn.patches] = np.nan
    share = np.nanmean(full, axis=0)
    assert (share > 0.2).all()
    assert np.ptp(share) < 0.1


def test_labels_are_the_digits_and_balanced(drawn: DigitImages) -> None:
    """Labels come from scikit-learn's digits that were drawn, and each of the ten is there about as often."""
    from sklearn.datasets import load_digits

    assert (load_digits().target[drawn.sources] == drawn.labels).all()
    assert (np.bincount(drawn.labels, minlength=10) > 35).all()


def test_validation_digits_are_never_drawn_for_training() -> None:
    """The digits of the two splits have no one in common, whatever the seed."""
    for seed in (0, 1):
        train, val = draw_digits("train", 4000, seed).sources, draw_digits("val", 2000, seed).sources
        assert not set(train) & set(val)
        assert len(set(train)) > 1000
        assert len(set(val)) > 300


def test_the_same_seed_draws_the_same(drawn: DigitImages) -> None:
    """Drawing again gives the same pixels; another seed or split gives others."""
    again = draw_digits("train", 700)
    assert (again.images == drawn.images).all()
    assert (again.patches == drawn.patches).all()
    assert not (draw_digits("train", 700, seed=1).images == drawn.images).all(axis=(1, 2, 3)).any()
    assert not (draw_digits("val", 700).images == drawn.images).all(axis=(1, 2, 3)).any()
    with pytest.raises(InputError, match="digits are drawn for 'train' and 'val'"):
        draw_digits("test", 1)


def test_shards_hold_the_drawn_images_as_jpegs(tmp_path: Path) -> None:
    """Both splits as `pack` writes them, decodable, near the drawn pixels; the informative patches beside, by key."""
    made = make_digit_shards(tmp_path, num_train=50, num_val=20, samples_per_shard=30)
    assert [shard.rows for shard in made.train.shards] == [25, 25]
    assert (made.val.num_samples, made.val.classes) == (20, tuple("0123456789"))
    informative = json.loads(made.informative.read_text())
    assert len(informative) == 70
    for split, count in (("train", 50), ("val", 20)):
        drawn, found = draw_digits(split, count), dict[str, bytes]()
        for path in sorted(tmp_path.glob(f"{split}-*.tar")):
            with tarfile.open(path) as tar:
                found |= {member.name: tar.extractfile(member).read() for member in tar}
        assert len(found) == 2 * count
        for number in range(count):
            key = f"{split}_{number:06d}"
            pixels = decode(found[f"{key}.jpg"], where=key).permute(1, 2, 0).numpy().astype(int)
            assert np.abs(pixels - drawn.images[number]).mean() < 10
            assert int(found[f"{key}.cls"]) == drawn.labels[number]
            assert informative[key] == drawn.patches[number].tolist()


def test_making_the_shards_twice_changes_nothing(tmp_path: Path) -> None:
    """A second call finds the shards there; in another folder it writes the same bytes."""

    def digests(folder: Path) -> dict[str, str]:
        files = [path for path in folder.iterdir() if not path.name.startswith(".")]
        return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

    for folder, kept in (("one", 0), ("one", 2), ("two", 0)):
        made = make_digit_shards(tmp_path / folder, num_train=40, num_val=20, samples_per_shard=20)
        assert made.train.kept == kept
    assert digests(tmp_path / "one") == digests(tmp_path / "two")
    assert sorted(digests(tmp_path / "one")) == [
        "_info.json", "classes.json", "informative.json", "train-000000.tar", "train-000001.tar", "val-000000.tar",
    ]  # fmt: skip
