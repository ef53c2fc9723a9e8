"""The order is a pure function of seed and epoch; its cuts are the same batches for any ranks and micro-batches."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlth.data.loading.order import Batching, epoch_order, live_shards
from dlth.tickets.errors import InputError

shard_rows = st.lists(st.integers(1, 40), min_size=1, max_size=12).map(lambda rows: np.array(rows, np.int64))


@given(rows=shard_rows, seed=st.integers(0, 2**40), epoch=st.integers(0, 500), window=st.integers(1, 600))
def test_every_image_once_an_epoch(rows: np.ndarray, seed: int, epoch: int, window: int) -> None:
    """Whatever the shards and the window, an epoch is a permutation of all ids, and the same one when asked again."""
    order = epoch_order(rows, seed, epoch, window)
    assert np.array_equal(np.sort(order), np.arange(rows.sum()))
    assert np.array_equal(order, epoch_order(rows, seed, epoch, window))


@given(rows=shard_rows, seed=st.integers(0, 1000), window=st.integers(1, 80))
def test_no_sample_leaves_its_window(rows: np.ndarray, seed: int, window: int) -> None:
    """A sample lies less than `window` places from where its shard's turn puts it."""
    order, unmoved = epoch_order(rows, seed, 3, window), epoch_order(rows, seed, 3, 1)
    place = np.argsort(unmoved)
    assert np.abs(place[order] - np.arange(len(order))).max() < window
    shard_of = np.repeat(np.arange(len(rows)), rows)
    assert live_shards(unmoved, shard_of) == 1


def test_window_bounds_open_shards() -> None:
    """With 100 shards of 50 and a window of 200 at most 10 shards are in use at once; with no window, all are."""
    rows = np.full(100, 50, np.int64)
    shard_of = np.repeat(np.arange(100), 50)
    assert live_shards(epoch_order(rows, 0, 0, 1), shard_of) == 1
    assert 4 <= live_shards(epoch_order(rows, 0, 0, 200), shard_of) <= 10
    assert live_shards(epoch_order(rows, 0, 0, 5000), shard_of) == 100


def test_epochs_and_seeds_differ_and_mix() -> None:
    """Another epoch or seed is another order, and neighbours of the shards are spread over the window."""
    rows = np.full(20, 100, np.int64)
    base = epoch_order(rows, 1, 0, 400)
    for other in (epoch_order(rows, 1, 1, 400), epoch_order(rows, 2, 0, 400)):
        assert np.mean(base == other) < 0.01
    assert np.median(np.abs(np.diff(base))) > 50


def test_removed_images_leave_the_order_as_it_was() -> None:
    """Removing images changes nobody else's place relative to the rest, and batches close up."""
    rows = np.array([7, 9, 4], np.int64)
    removed = np.zeros(20, bool)
    removed[[0, 8, 19]] = True
    whole, left = epoch_order(rows, 5, 2, 6), epoch_order(rows, 5, 2, 6, removed)
    assert np.array_equal(left, whole[~np.isin(whole, [0, 8, 19])])
    assert Batching(4).num_steps(len(left)) == 5


@settings(max_examples=60)
@given(samples=st.integers(1, 120), size=st.integers(1, 9), world=st.integers(1, 5), micro=st.integers(1, 4))
def test_parts_make_up_the_global_batch(samples: int, size: int, world: int, micro: int) -> None:
    """At every step the weighted parts of all ranks, put together, are the global batch, every image once."""
    order = epoch_order(np.array([samples], np.int64), 0, 0)
    batching = Batching(size * world * micro, world, micro)
    for step in range(batching.num_steps(samples)):
        parts = [part for rank in range(world) for part in batching.parts(order, step, rank)]
        assert len(parts) == world * micro
        assert all(1 <= len(part.ids) <= max(size, batching.paired + 1) for part in parts)
        counted = np.concatenate([part.ids[part.weights == 1] for part in parts])
        assert np.array_equal(counted, batching.batch(order, step))
        assert all(len(set(part.weights)) == 1 for part in parts)


@given(samples=st.integers(1, 99), world=st.integers(1, 4), micro=st.integers(1, 3), repeats=st.sampled_from([0, 3]))
def test_pairs_are_never_cut(samples: int, world: int, micro: int, repeats: int) -> None:
    """With an even micro-batch, images 2i and 2i+1 of the global batch always reach the same rank and micro-batch."""
    order = np.arange(samples)
    batching = Batching(4 * world * micro, world, micro, repeats)
    for step in range(batching.num_steps(samples)):
        whole = len(batching.batch(order, step))
        assert whole % 2 == 0 or step == batching.num_steps(samples) - 1
        for rank in range(world):
            for part in batching.parts(order, step, rank):
                assert part.start % 2 == 0
                assert len(part.ids) % 2 == 0 or part.start + len(part.ids) == whole


@given(samples=st.integers(1, 200), batch=st.integers(1, 40))
def test_no_step_is_made_on_a_handful(samples: int, batch: int) -> None:
    """Every image once; all steps but the last two are full, and none is under half a batch, or it is the only one."""
    order, batching = np.arange(samples), Batching(batch)
    sizes = [len(batching.batch(order, step)) for step in range(batching.num_steps(samples))]
    shown = np.concatenate([batching.batch(order, step) for step in range(len(sizes))])
    assert shown.tolist() == order.tolist()
    assert all(size == batch for size in sizes[:-2])
    assert len(sizes) == 1 or all(batch / 2 <= size <= batch for size in sizes)
    assert batching.num_shown(samples) == samples


@given(samples=st.integers(1, 200), batch=st.integers(1, 40))
def test_dropping_the_last_batch_leaves_full_ones(samples: int, batch: int) -> None:
    """Every step is full and fewer images than a batch are left out; images that fill no batch make one step."""
    order, batching = np.arange(samples), Batching(batch, drop_last=True)
    if samples < batch:
        assert batching.num_steps(samples) == 1
        assert batching.batch(order, 0).tolist() == order.tolist()
        return
    shown = [batching.batch(order, step) for step in range(batching.num_steps(samples))]
    assert all(len(ids) == batch for ids in shown)
    assert np.concatenate(shown).tolist() == order[: samples // batch * batch].tolist()
    assert batching.num_shown(samples) == samples // batch * batch


repeated = st.integers(2, 4).flatmap(
    lambda repeats: st.tuples(st.just(repeats), st.integers(repeats, 8), st.integers(1, 3), st.integers(1, 6))
)


@settings(max_examples=60)
@given(made=repeated, samples=st.integers(1, 900), seed=st.integers(0, 99))
def test_repeated_views_meet_neither_on_a_rank_nor_in_a_pair(
    made: tuple[int, int, int, int], samples: int, seed: int
) -> None:
    """The first images of the order, each in every view; in full batches views are apart in ranks and in pairs.

    An epoch ends at a multiple of 256 views, as DeiT's sampler does. Ranks are at least as many as views.
    """
    repeats, world, micro, half = made
    order = epoch_order(np.array([samples], np.int64), seed, 0)
    batching = Batching(2 * half * world * micro, world, micro, repeats)
    views: dict[int, list[int]] = {}
    for step in range(batching.num_steps(samples)):
        parts = [(rank, part) for rank in range(world) for part in batching.parts(order, step, rank)]
        rank_of: dict[int, list[int]] = {}
        for rank, part in ((rank, part) for rank, part in parts if part.weights.any()):
            for image, view in zip(part.ids.tolist(), part.views.tolist(), strict=True):
                views.setdefault(image, []).append(view)
                rank_of.setdefault(image, []).append(rank)
            if len(batching.batch(order, step)) == batching.global_batch >= 2 * repeats:
                pairs = part.ids[: len(part.ids) // 2 * 2].reshape(-1, 2)
                assert (pairs[:, 0] != pairs[:, 1]).all()
        if len(batching.batch(order, step)) == batching.global_batch:
            assert all(len(set(ranks)) == len(ranks) for ranks in rank_of.values())
    assert sum(map(len, views.values())) == (samples if samples < 256 else samples // 256 * 256)
    assert set(views) == set(order[: batching.num_shown(samples)].tolist())
    assert all(sorted(views[image]) == list(range(repeats)) for image in order[: len(views) - 1].tolist())


def test_repeats_of_imagenet_are_those_of_deit() -> None:
    """1,281,167 images in batches of 1,024, three views each, the last dropped: 1,251 steps of 427,008 images."""
    batching = Batching(1024, 8, aug_repeats=3, drop_last=True)
    assert (batching.num_steps(1_281_167), batching.num_shown(1_281_167)) == (1251, 427_008)
    assert batching.num_steps(1_281_167) == (1_281_167 // 256 * 256 // 8) // 128, "floor per process, as theirs"


def test_bad_cuts_are_refused() -> None:
    """A batch that ranks cannot share evenly, or a window of nothing, is refused with the number that would do."""
    with pytest.raises(InputError, match="take a multiple of 6"):
        Batching(32, world=3, micro_batches=2)
    with pytest.raises(InputError, match="at least 1"):
        Batching(32, world=0)
    with pytest.raises(InputError, match="window is at least 1 sample, got 0"):
        epoch_order(np.array([3], np.int64), 0, 0, 0)
