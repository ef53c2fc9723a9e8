"""Smaller forms: what they hold, what they refuse, what they cost."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from makers.tampering import attack, signed
from makers.tickets import DEIT, make_header

from dlth.tickets import ShardSpec, ShardTickets, TicketStore, generator
from dlth.tickets.derive.algebra import inverse, union
from dlth.tickets.derive.draft import Draft
from dlth.tickets.derive.shrink import shrink
from dlth.tickets.errors import DamageError, InputError, MismatchError
from dlth.tickets.format.masks import from_bits, to_bits
from dlth.tickets.statistics.compare import compare
from dlth.tickets.statistics.stats import ticket_stats


@pytest.fixture
def full(store_path: Path) -> TicketStore:
    return TicketStore(store_path)


@pytest.mark.parametrize("form", ["top", "mask"])
@pytest.mark.parametrize("keep", [None, "0.25"])
def test_a_smaller_form_holds_the_best_patches(full: TicketStore, tmp_path: Path, form: Any, keep: str | None) -> None:
    """Every ticket's first k patches are in the smaller file, in order in 'top', as a set in 'mask'; the rest stays."""
    small = shrink(full, form, keep).write(tmp_path / "small.zarr")
    k = 6 if keep is None else 4
    assert (small.header.form, small.header.k, small.header.keep) == (form, k, keep or full.header.keep)
    assert small.verify() == []
    for shard in range(len(full.shards)):
        ours, theirs = full.read(shard), small.read(shard)
        good = ~ours.skipped
        best = ours.patches[good, :k]
        np.testing.assert_array_equal(theirs.patches[good], best if form == "top" else np.sort(best, axis=1))
        np.testing.assert_array_equal(theirs.skipped, ours.skipped)
        np.testing.assert_array_equal(small.mask(shard), _sets(ours, k))
        assert theirs.keys == ours.keys
        np.testing.assert_array_equal(theirs.images, ours.images)
        np.testing.assert_array_equal(theirs.gap[good], ours.gap[good] if keep is None else np.inf)
    derived = small.header.extensions["derived"]
    assert derived["operation"] == "shrink"
    assert derived["parents"][0]["identity"] == full.identity
    assert derived["lost"] == list(small.header.lost)


def _sets(rows: ShardTickets, k: int) -> np.ndarray:
    sets = np.zeros((rows.num_rows, 16), dtype=bool)
    for row, patches in enumerate(rows.patches):
        if not rows.skipped[row]:
            sets[row, patches[:k]] = True
    return sets


def test_plain_zarr_reads_a_mask(full: TicketStore, tmp_path: Path) -> None:
    """The specification's rule, patch p is bit p % 8 of byte p // 8, in two lines of numpy."""
    small = shrink(full, "mask").write(tmp_path / "small.zarr")
    group = zarr.open_group(tmp_path / "small.zarr", mode="r", zarr_format=3)
    bits = np.unpackbits(np.asarray(group["mask"][0]), axis=1, bitorder="little")[:3, :16]
    np.testing.assert_array_equal(bits.astype(bool), small.mask(0))


@pytest.mark.parametrize(
    ("form", "asked", "error", "match"),
    [
        ("best", None, InputError, "a smaller form is one of top, mask, got 'best'"),
        ("top", "0.75", MismatchError, "the file is of form 'top' and holds the 6 best patches .* asked for 12"),
        ("top", None, InputError, "is of form 'top' with 6 patches: 'top' is no smaller"),
    ],
)
def test_what_cannot_be_made_smaller_is_refused(
    full: TicketStore, tmp_path: Path, form: Any, asked: str | None, error: type[Exception], match: str
) -> None:
    top = shrink(full, "top").write(tmp_path / "top.zarr")
    with pytest.raises(error, match=match):
        shrink(top, form, asked)


def test_a_mask_refuses_what_needs_an_order(full: TicketStore, tmp_path: Path) -> None:
    """Smaller keeps, algebra and statistics at another k name the form instead of guessing."""
    mask = shrink(full, "mask").write(tmp_path / "mask.zarr")
    with pytest.raises(MismatchError, match=r"form 'mask': it keeps a set of 6 patches .* cannot say which 4 are best"):
        shrink(mask, "top", "0.25")
    with pytest.raises(InputError, match="'top' is no smaller"):
        shrink(mask, "top")
    with pytest.raises(MismatchError, match="cannot say which 4 are best"):
        ticket_stats(mask, k=4)
    with pytest.raises(MismatchError, match="cannot say which 4 are best"):
        compare(full, mask, ks=(4,))
    with pytest.raises(InputError, match=r"the union needs an order of patches; mask\.zarr is of form 'mask'"):
        union([full, mask])
    with pytest.raises(InputError, match="is of form 'mask'"):
        inverse(mask)
    assert ticket_stats(mask).frequency.sum() == pytest.approx(6)
    agreement = compare(full, mask)
    assert [overlap.k for overlap in agreement.overlaps] == [6]
    assert agreement.overlaps[0].iou.mean == 1


def test_a_wrong_mask_is_damage(full: TicketStore, tmp_path: Path) -> None:
    """A row with too few patches is found although the attacker made all digests anew."""
    path = tmp_path / "mask.zarr"
    shrink(full, "mask").write(path)
    array = zarr.open_array(path / "mask", mode="r+", zarr_format=3)
    rows = np.asarray(array[2])
    rows[0, 0] ^= 1
    array[2] = rows
    attack(path, signed)
    store = TicketStore(path)
    with pytest.raises(DamageError, match=r"mask/c\.2 .*toy-000002.tar.*: row 0 keeps [57] patches, .* keeps 6"):
        store.patches(2)
    assert [damage.shard for damage in store.verify()] == ["toy-000002.tar"]


def test_bits_after_the_last_patch_are_refused() -> None:
    """A grid of 12 patches leaves four bits: they must be zero, or one set would have two spellings."""
    kept = np.zeros((2, 12), dtype=bool)
    kept[:, 3:7] = True
    bits = to_bits(kept)
    np.testing.assert_array_equal(from_bits(bits, 12, 4)[0], [[3, 4, 5, 6]] * 2)
    bits[1, 1] |= 0x80
    with pytest.raises(ValueError, match="row 1 has a bit after the last patch"):
        from_bits(bits, 12, 4)


def test_a_mask_costs_less_than_17_bytes_an_image(tmp_path: Path, smooth: Callable[[int, int], np.ndarray]) -> None:
    """On tickets whose patches lie together, as models choose them, 1,000 images a shard."""
    rows = 1_000
    head = make_header(**DEIT)
    keys = tuple(f"key{row}" for row in range(rows))
    hashes = generator("hashes").integers(0, 256, (rows, 16), dtype=np.uint8)
    zeros = np.zeros(rows)
    tickets = ShardTickets(keys, hashes, smooth(rows, 14), zeros.astype(np.float32), zeros.astype(bool))
    full = Draft(head, (ShardSpec("a.tar", rows),), 12, lambda shard: tickets).write(tmp_path / "full.zarr")
    small = shrink(full, "mask", "0.7").write(tmp_path / "mask.zarr")
    assert (small.path / "mask/c.0.0.0").stat().st_size <= 17 * rows


@pytest.fixture(scope="session")
def smooth() -> Callable[[int, int], np.ndarray]:
    """``smooth(rows, side)`` -> rankings int64 [rows, side²] of scores that vary smoothly over the image.

    Gaussian-filtered noise (sigma 0.9 to 2 patches), a pull to the centre and 5 to 25 % noise of each patch's own.
    """

    def make(rows: int, side: int) -> np.ndarray:
        rng = generator("smooth tickets")
        places = np.arange(side)
        apart = places[:, None] - places[None, :]
        scores = np.empty((rows, side * side))
        for row in range(rows):
            blur = np.exp(-0.5 * (apart / rng.uniform(0.9, 2.0)) ** 2)
            field = blur @ rng.normal(size=(side, side)) @ blur.T
            middle = (places - (side - 1) / 2) / side
            field = field / field.std() - 2 * rng.uniform(0, 1) * (middle[:, None] ** 2 + middle[None, :] ** 2) * 4
            own = rng.uniform(0.05, 0.25)
            scores[row] = ((1 - own) * field + own * rng.normal(size=(side, side))).ravel()
        return np.argsort(-scores, axis=1, kind="stable")

    return make
