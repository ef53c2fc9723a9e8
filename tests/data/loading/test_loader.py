"""The loader: the same global batches for any workers, ranks and micro-batches, each image with its own ticket."""

import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from makers.pictures import make_image, make_tar

from dlth.data.images.augment import Augmentation
from dlth.data.images.decode import BadImageError
from dlth.data.images.mixing import Mixing
from dlth.data.joining.join import join
from dlth.data.loading.batch import Batch
from dlth.data.loading.evaluation import EvalLoader
from dlth.data.loading.loader import TrainLoader
from dlth.data.loading.order import Batching
from dlth.data.loading.workers import WorkerError
from dlth.data.shards.index import ShardIndex, open_index
from dlth.tickets import Grid, TicketStore, View, ViewSpec, generator, project
from dlth.tickets.errors import DamageError, InputError, MismatchError

GRID = Grid(4, 4)
CROPS = Augmentation(size=(32, 32), rand_augment="rand-m9-mstd0.5-inc1", reprob=0.25)
WHOLE_IMAGES = Augmentation(size=(32, 32), scale=(1.0, 1.0), ratio=(4 / 3, 4 / 3), hflip=0.0)
MIXED = Mixing(mixup_alpha=0.8, cutmix_alpha=1.0)
VIEW = ViewSpec("whole", 32, 32)


@pytest.fixture
def index(make_shards: Callable[..., Any]) -> ShardIndex:
    return open_index(make_shards(3, [7, 5, 9]).spec)


@pytest.fixture
def store(index: ShardIndex, make_tickets: Callable[..., TicketStore]) -> TicketStore:
    return make_tickets(index)


def loader(index: ShardIndex, store: TicketStore | None, **changes: Any) -> TrainLoader:
    """A ticket loader of global batches of 8, with whatever changes."""
    missing = changes.pop("missing", "error")
    settings: dict[str, Any] = {
        "grid": GRID,
        "batching": Batching(8),
        "augmentation": CROPS,
        "seed": 5,
        "k": 6,
        "join": None if store is None else join(index, store, missing),
        "window": 12,
    }
    return TrainLoader(index, **{**settings, **changes})


def columns(batches: list[Batch]) -> dict[str, torch.Tensor]:
    """Batches of one step put together, repeats (weight 0) left out."""
    joined = {}
    for name in ("images", "patches", "labels", "ids"):
        joined[name] = torch.cat([getattr(batch, name)[batch.weights > 0] for batch in batches])
    return joined


def by_step(loaders: list[TrainLoader], epoch: int, start_step: int = 0) -> dict[int, dict[str, torch.Tensor]]:
    """Global batches by step, the ranks' parts in rank order."""
    steps: dict[int, list[Batch]] = {}
    for one in loaders:
        for batch in one.epoch(epoch, start_step):
            steps.setdefault(batch.step, []).append(batch)
    return {step: columns(batches) for step, batches in steps.items()}


def same(left: dict[int, dict[str, torch.Tensor]], right: dict[int, dict[str, torch.Tensor]]) -> bool:
    return left.keys() == right.keys() and all(
        torch.equal(left[step][name], right[step][name]) for step in left for name in left[step]
    )


def test_ranks_workers_and_micro_batches_change_nothing(index: ShardIndex, store: TicketStore) -> None:
    """Pixels, tickets and labels of every global batch are bit-equal under 1 or 2 ranks, workers, and accumulation."""
    alone = by_step([loader(index, store, mixing=MIXED)], 1)
    assert [len(batch["ids"]) for batch in alone.values()] == [8, 6, 7]
    assert sorted(torch.cat([batch["ids"] for batch in alone.values()]).tolist()) == list(range(21))
    two = [loader(index, store, mixing=MIXED, batching=Batching(8, 2, 2), rank=rank) for rank in range(2)]
    assert same(alone, by_step(two, 1))
    assert same(alone, by_step([loader(index, store, mixing=MIXED, workers=2)], 1))


@pytest.mark.parametrize("arm", ["ticket", "random"])
def test_repeated_views_and_mix_groups_do_not_depend_on_ranks_either(
    index: ShardIndex, store: TicketStore, arm: str
) -> None:
    """Three views of each image, mixed in groups of 4: bit-equal under 1, 2 and 4 ranks, with workers, resumed."""
    mixing = Mixing(mixup_alpha=0.8, cutmix_alpha=1.0, group=4)

    def made(world: int = 1, micro: int = 1, workers: int = 0) -> list[TrainLoader]:
        batching = Batching(8, world, micro, aug_repeats=3)
        return [
            loader(index, store, arm=arm, mixing=mixing, batching=batching, rank=rank, workers=workers)
            for rank in range(world)
        ]

    alone = by_step(made(), 1)
    assert [len(batch["ids"]) for batch in alone.values()] == [8, 6, 7]
    assert len(set(torch.cat([batch["ids"] for batch in alone.values()]).tolist())) == 7
    assert same(alone, by_step(made(2, 2), 1))
    assert same(alone, by_step(made(4), 1))
    assert same({2: alone[2]}, by_step(made(workers=1), 1, start_step=2))
    groups = {len(batch.mix.groups()) for batch in made()[0].epoch(1)}
    assert groups == {2}


def test_each_view_of_an_image_is_drawn_for_itself(index: ShardIndex, store: TicketStore) -> None:
    """The first view is the one that an epoch without repeats shows; the others are other crops, with other tokens."""
    for arm in ("ticket", "random"):
        plain = {
            image: (pixels, patches.tolist())
            for batch in loader(index, store, arm=arm).epoch(0)
            for image, pixels, patches in zip(batch.ids.tolist(), batch.images, batch.patches, strict=True)
        }
        repeated: dict[int, list[Any]] = {}
        for batch in loader(index, store, arm=arm, batching=Batching(6, aug_repeats=3)).epoch(0):
            for image, pixels, patches in zip(batch.ids.tolist(), batch.images, batch.patches, strict=True):
                repeated.setdefault(image, []).append((pixels, patches.tolist()))
        assert len(repeated) == 7
        for image, views in repeated.items():
            assert torch.equal(views[0][0], plain[image][0])
            assert views[0][1] == plain[image][1]
            assert len({pixels.numpy().tobytes() for pixels, _ in views}) == 3
            assert len({tuple(patches) for _, patches in views}) > 1


def shown(one: TrainLoader, epoch: int) -> dict[int, list[bytes]]:
    """The pixels of each image of an epoch, as often as it is shown."""
    found: dict[int, list[bytes]] = {}
    for batch in one.epoch(epoch):
        for image, pixels in zip(batch.ids.tolist(), batch.images, strict=True):
            found.setdefault(image, []).append(pixels.numpy().tobytes())
    return found


def test_frozen_views_are_replayed_one_after_the_other_as_an_image_is_shown(
    index: ShardIndex, store: TicketStore
) -> None:
    """Two frozen views, three times shown in an epoch: views 0, 1, 0 in epoch 0 and 1, 0, 1 in epoch 1."""
    first, second = (shown(loader(index, store), epoch) for epoch in (0, 1))
    frozen = loader(index, store, view_epochs=2, batching=Batching(6, aug_repeats=3))
    for epoch, turns in ((0, (first, second, first)), (1, (second, first, second))):
        for image, views in shown(frozen, epoch).items():
            assert views == [turn[image][0] for turn in turns]


def test_every_rank_takes_every_step(index: ShardIndex, store: TicketStore) -> None:
    """Under 4 ranks a short step has a batch on each, weight 0 where none is left; `last` ends each step."""
    weights = {0: 0.0, 1: 0.0}
    for rank in range(4):
        batches = list(loader(index, store, batching=Batching(16, 4, 2), rank=rank).epoch(0))
        assert [batch.step for batch in batches] == [0, 0, 1, 1]
        assert [batch.last for batch in batches] == [False, True, False, True]
        for batch in batches:
            weights[batch.step] += batch.weights.sum().item()
    assert weights == {0: 10, 1: 11}
    tiny = [list(loader(index, store, batching=Batching(64, 16, 2), rank=rank).epoch(0)) for rank in range(16)]
    assert all([batch.last for batch in batches] == [False, True] for batches in tiny)
    assert {batch.weights.sum().item() for batches in tiny for batch in batches} == {0, 1, 2}


def test_resume_is_exact_across_an_epoch_edge(index: ShardIndex, store: TicketStore) -> None:
    """A new loader started at (epoch, step) goes on with exactly the batches the first would have given."""
    first = loader(index, store, mixing=MIXED)
    before, after = by_step([first], 0), by_step([first], 1)
    for workers in (0, 1):
        resumed = loader(index, store, mixing=MIXED, workers=workers)
        assert same({2: before[2]}, by_step([resumed], 0, 2))
        assert same(after, by_step([resumed], 1))


def test_an_epoch_broken_off_leaves_no_trace(index: ShardIndex, store: TicketStore) -> None:
    """After leaving an epoch in the middle, the next epoch asked for starts at its own first batch."""
    one = loader(index, store, workers=1)
    next(one.epoch(0))
    assert same(by_step([one], 1), by_step([loader(index, store)], 1))


def test_each_image_has_its_own_ticket(index: ShardIndex, store: TicketStore) -> None:
    """In the whole view, patches are the first k of the row whose key is the image's."""
    for batch in loader(index, store, augmentation=WHOLE_IMAGES).epoch(0):
        assert batch.patches is not None
        for sample, patches in zip(batch.ids.tolist(), batch.patches, strict=True):
            assert patches.tolist() == generator("ticket", index.key(sample)).permutation(16)[:6].tolist()
        assert batch.labels.tolist() == index.label[batch.ids.numpy()].tolist()


def test_tickets_are_projected_to_the_recorded_view(index: ShardIndex, store: TicketStore) -> None:
    """Under crops, patches are the stored ranking projected to the very view that the pixels show."""
    from dlth.data.images.augment import augment
    from dlth.data.images.decode import decode

    crops = Augmentation(size=(32, 32))
    batch = next(loader(index, store, augmentation=crops).epoch(3))
    assert batch.patches is not None
    for sample, image, patches in zip(batch.ids.tolist(), batch.images, batch.patches, strict=True):
        key = index.key(sample)
        shown = augment(decode(index.read(sample), where=key), crops, GRID, 5, 3, key)
        assert torch.equal(shown.image, image)
        ranking = generator("ticket", key).permutation(16)
        assert patches.tolist() == project(ranking, View.whole(GRID), shown.view)[:6].tolist()


def test_join_costs_one_read_per_ticket_shard(index: ShardIndex, store: TicketStore) -> None:
    """Patches and hashes of each ticket shard are read once, although batches mix the shards."""
    one = loader(index, store)
    before = store.chunk_reads
    list(one.epoch(0))
    list(one.epoch(1))
    assert 0 < store.chunk_reads - before <= 2 * len(store.shards)


def test_arms_differ_in_patches_alone(index: ShardIndex, store: TicketStore) -> None:
    """Ticket, random and dense arms give the same images in the same order; random and ticket the same k."""
    arms = {arm: list(loader(index, store, arm=arm).epoch(2)) for arm in ("ticket", "random", "dense")}
    for ticket, random, dense in zip(*arms.values(), strict=True):
        assert torch.equal(ticket.images, random.images)
        assert torch.equal(ticket.images, dense.images)
        assert torch.equal(ticket.ids, random.ids)
        assert ticket.patches.shape == random.patches.shape == (len(ticket.ids), 6)
        assert dense.patches is None
        assert not torch.equal(ticket.patches, random.patches)


def _patches_by_key(one: TrainLoader, epoch: int, index: ShardIndex) -> dict[str, list[int]]:
    found = {}
    for batch in one.epoch(epoch):
        assert batch.patches is not None
        found.update({index.key(i): row for i, row in zip(batch.ids.tolist(), batch.patches.tolist(), strict=True)})
    return found


def test_random_tokens_are_named_by_seed_epoch_and_key(index: ShardIndex) -> None:
    """The random arm needs no ticket file; it draws anew each epoch, or, fixed, keeps the patches of a whole image."""

    def drawn(epoch: int, **changes: Any) -> dict[str, list[int]]:
        one = loader(index, None, arm="random", augmentation=WHOLE_IMAGES, **changes)
        return _patches_by_key(one, epoch, index)

    first = drawn(0)
    assert first == drawn(0, batching=Batching(3), window=1)
    assert first != drawn(1)
    assert first != drawn(0, seed=6)
    assert drawn(0, random_tokens="fixed") == drawn(1, random_tokens="fixed")
    assert all(len(set(patches)) == 6 for patches in first.values())


def test_frozen_views_are_replayed(index: ShardIndex, store: TicketStore) -> None:
    """With view_epochs=2 every image has two seeded views: epochs 0 and 2 show the same pixels, 0 and 1 do not."""
    frozen = loader(index, store, view_epochs=2)
    assert shown(frozen, 0) == shown(frozen, 2)
    assert all(shown(frozen, 0)[i] != image for i, image in shown(frozen, 1).items())
    fresh = loader(index, store)
    assert shown(frozen, 1) == shown(fresh, 1)
    assert shown(fresh, 0) != shown(fresh, 2)


def test_k_may_follow_a_schedule(index: ShardIndex, store: TicketStore) -> None:
    """`k` as a function of epoch and step sets each batch's number of patches."""
    scheduled = loader(index, store, k=lambda epoch, step: 16 - 4 * epoch - step)
    assert [batch.patches.shape[1] for batch in scheduled.epoch(1) if batch.patches is not None] == [12, 11, 10]


def test_missing_as_dense_comes_apart(index: ShardIndex, make_tickets: Callable[..., TicketStore]) -> None:
    """Images without a ticket come in a batch of their own with all patches; weights and steps add up to the whole."""
    lost = {index.key(i) for i in (0, 8, 20)}
    store = make_tickets(index, leave_out=lost)
    batches = list(loader(index, store, missing="dense").epoch(0))
    dense = [batch for batch in batches if batch.patches is None]
    assert sorted(index.key(i) for batch in dense for i in batch.ids.tolist()) == sorted(lost)
    assert sum(batch.last for batch in batches) == 3
    assert sum(batch.weights.sum().item() for batch in batches) == 21
    mixed = list(loader(index, store, missing="dense", mixing=MIXED).epoch(0))
    assert all(len(batch.ids) % 2 == 0 or batch.step == 2 for batch in mixed), "pairs stay together"
    assert sorted(i for batch in mixed for i in batch.ids.tolist()) == list(range(21))


def test_a_cut_batch_carries_kept_pixels_alone(index: ShardIndex, make_tickets: Callable[..., TicketStore]) -> None:
    """For a model that embeds kept patches alone, a batch has k of P of its bytes, in the order of its patches, and all
    else as ever; images without a ticket come whole, and all do where some mix.
    """
    store = make_tickets(index, leave_out={index.key(0)})
    options: dict[str, Any] = {"missing": "dense", "augmentation": replace(CROPS, reprob=0.5)}
    whole, cut = (list(loader(index, store, embeds_kept_only=kept, **options).epoch(0)) for kept in (False, True))
    for one, other in zip(whole, cut, strict=True):
        if one.patches is None:
            assert torch.equal(one.images, other.images)
            continue
        assert other.images.nbytes * 16 == one.images.nbytes * 6
        for pixels, image, patches in zip(other.images, one.images, one.patches.tolist(), strict=True):
            cells = [image[:, 8 * (p // 4) :, 8 * (p % 4) :][:, :8, :8] for p in patches]
            assert torch.equal(pixels, torch.stack(cells))
        for name in ("patches", "labels", "ids", "weights", "hidden"):
            assert torch.equal(getattr(one, name), getattr(other, name))
    assert sum(batch.patches is None for batch in cut) == 1
    for mixing in (MIXED, Mixing(tokens=True)):
        mixed = loader(index, store, embeds_kept_only=True, mixing=mixing, **options).epoch(0)
        assert all(batch.images.shape[1:] == (3, 32, 32) for batch in mixed)


def test_missing_as_random_or_skip(index: ShardIndex, make_tickets: Callable[..., TicketStore]) -> None:
    """'random' draws patches for images without a ticket; 'skip' leaves these, no others, out of each arm's order."""
    lost = {index.key(i) for i in (0, 8, 20)}
    store = make_tickets(index, leave_out=lost, bad=[index.key(3)])
    random = _patches_by_key(loader(index, store, missing="random"), 0, index)
    assert len(random) == 21, "the bad image keeps its place"
    expected = _patches_by_key(loader(index, None, arm="random"), 0, index)
    assert all(random[key] == expected[key] for key in lost)
    orders = []
    for arm in ("ticket", "random", "dense"):
        one = loader(index, store, missing="skip", arm=arm)
        assert (one.num_samples, one.num_steps) == (18, 3)
        orders.append([i for batch in one.epoch(0) for i in batch.ids.tolist()])
    assert orders[0] == orders[1] == orders[2]
    assert set(range(21)) - set(orders[0]) == {0, 8, 20}


def _damage(index: ShardIndex, sample: int, content: bytes) -> None:
    """Overwrite the beginning of an image within its shard as a failing disk does: the file's time stays."""
    path = index.shards[index.shard_of(sample)].url
    before = os.stat(path)
    with open(path, "r+b") as file:
        file.seek(int(index.image_offset[sample]))
        file.write(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_bad_image_stops_or_is_named(index: ShardIndex) -> None:
    """An image that does not decode stops training, naming shard and key; with 'skip' it weighs 0 and is listed."""
    _damage(index, 8, b"GIF89a")
    advice = r"To go on without such images: --bad-images skip$"
    with pytest.raises(BadImageError, match=rf"shard {index.shards[1].name}.*{index.key(8)}.*GIF.*[^.]\. {advice}"):
        list(loader(index, None, arm="random").epoch(0))
    one = loader(index, None, arm="random", bad_images="skip", mixing=MIXED)
    two = [
        loader(index, None, arm="random", bad_images="skip", mixing=MIXED, batching=Batching(8, 2), rank=rank)
        for rank in range(2)
    ]
    batches = list(one.epoch(0))
    assert [batch.ids[batch.weights == 0].tolist() for batch in batches if (batch.weights == 0).any()] == [[8]]
    assert list(one.bad_images) == [index.key(8)]
    assert "GIF" in one.bad_images[index.key(8)]
    holder = next(batch for batch in batches if 8 in batch.ids)
    place = holder.ids.tolist().index(8)
    assert torch.equal(holder.images[place], holder.images[min(place ^ 1, len(holder.ids) - 1)])
    assert same(by_step([one], 0), by_step(two, 0))


def test_a_bad_image_changes_nothing_for_the_others_however_it_became_known(
    index: ShardIndex, make_tickets: Callable[..., TicketStore]
) -> None:
    """Listed by stage 1 or met on reading: the same pixels, weights and order, mixed or not; listed, it is not read."""
    store = make_tickets(index, bad=[index.key(8), index.key(3)])
    for sample in (8, 3):
        _damage(index, sample, b"GIF89a")
    for mixing in (Mixing(), MIXED):
        listed = loader(index, store, mixing=mixing)
        met = loader(index, None, arm="dense", bad_images="skip", mixing=mixing)
        for one, other in zip(listed.epoch(1), met.epoch(1), strict=True):
            for name in ("images", "labels", "ids", "weights"):
                assert torch.equal(getattr(one, name), getattr(other, name))
            assert set(one.ids[one.weights == 0].tolist()) <= {3, 8}
        assert (listed.bad_images, met.bad_images.keys()) == ({}, {index.key(8), index.key(3)})


def test_swapped_image_is_damage(index: ShardIndex, store: TicketStore) -> None:
    """An image whose bytes are no longer those of its ticket is refused by shard and key, even if it still decodes."""
    one = loader(index, store)
    at_end = int(index.image_size[4]) - 2
    image = bytearray(index.read(4))
    image[at_end // 2] ^= 1
    _damage(index, 4, bytes(image))
    with pytest.raises(DamageError, match=rf"shard {index.shards[0].name}, key {index.key(4)}: .*content hash differs"):
        list(one.epoch(0))


def test_error_of_a_worker_arrives_as_itself(index: ShardIndex) -> None:
    """What a worker process finds wrong has the same type and message as in the main process."""
    _damage(index, 8, b"GIF89a")
    with pytest.raises(BadImageError, match=rf"^shard {index.shards[1].name}, key {index.key(8)}: GIF"):
        list(loader(index, None, arm="random", workers=1).epoch(0))


class _DyingIndex:
    """An index whose reads end the process, as the system does when memory runs out."""

    def __init__(self, index: ShardIndex) -> None:
        self.index = index

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["index"], name)

    def read_many(self, ids: Any) -> list[bytes]:
        os.kill(os.getpid(), signal.SIGKILL)
        return []


def test_dead_worker_is_told(index: ShardIndex) -> None:
    """A worker that is killed ends training with the likely cause and what to do."""
    dying: Any = _DyingIndex(index)
    with pytest.raises(WorkerError, match=r"reads images died \(DataLoader worker.*fewer --workers"):
        list(loader(dying, None, arm="random", workers=1).epoch(0))


def test_global_random_state_is_untouched(index: ShardIndex, store: TicketStore) -> None:
    """Loading consumes nothing of torch's global generator, with and without workers."""
    before = torch.random.get_rng_state()
    for workers in (0, 1):
        list(loader(index, store, workers=workers).epoch(0))
        assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"k": None}, InputError, "the ticket arm needs k"),
        ({"k": 17}, InputError, "k must be from 1 to 16"),
        ({"join": None}, InputError, "the ticket arm needs a join"),
        ({"rank": 1}, InputError, "rank 1 is not one of 1"),
        ({"batching": Batching(9), "mixing": MIXED}, InputError, "mixing works on pairs: .* got 9 images"),
        ({"arm": "best"}, InputError, "the arm is one of ticket, random, dense, got 'best'"),
        ({"bad_images": "hide"}, InputError, "bad_images is 'error' or 'skip', got 'hide'"),
        ({"view_epochs": 0}, InputError, "view_epochs must be at least 1"),
        ({"hidden": "drop"}, InputError, "hidden is 'demote' or 'keep', got 'drop'"),
        ({"drawn_in": "crop"}, InputError, "drawn in the 'image' or the 'view', got 'crop'"),
    ],
    ids=lambda value: ", ".join(value) if isinstance(value, dict) else "",
)
def test_wrong_settings_are_refused(
    changes: dict[str, Any], error: type[Exception], message: str, index: ShardIndex, store: TicketStore
) -> None:
    """Settings that do not fit are refused before an image is read."""
    with pytest.raises(error, match=message):
        loader(index, store, **changes)


def evaluation(index: ShardIndex, store: TicketStore | None, **changes: Any) -> EvalLoader:
    missing = changes.pop("missing", "error")
    settings: dict[str, Any] = {
        "view": VIEW,
        "grid": GRID,
        "seed": 0,
        "batch_size": 4,
        "k": 6,
        "join": None if store is None else join(index, store, missing),
    }
    return EvalLoader(index, **{**settings, **changes})


@pytest.mark.parametrize("world", [1, 2, 3, 25])
def test_evaluation_sees_every_image_once(world: int, index: ShardIndex, store: TicketStore) -> None:
    """Over any number of ranks each image is evaluated once, none padded; a rank may have none."""
    seen = []
    for rank in range(world):
        one = evaluation(index, store, rank=rank, world=world)
        assert one.num_images == 21
        for batch in one:
            assert len(batch.images) == len(batch.labels) == len(batch.ids) <= 4
            seen += batch.ids.tolist()
    assert seen == list(range(21))


def test_evaluation_serves_all_arms_at_once(index: ShardIndex, store: TicketStore) -> None:
    """One pass gives dense, ticket and random tokens; tickets of the same view are the stored ones."""
    first, again = list(evaluation(index, store)), list(evaluation(index, store, workers=1))
    for batch, repeat in zip(first, again, strict=True):
        assert set(batch.patches) == {"ticket", "random", "dense"}
        assert batch.patches["dense"] is None
        for arm in ("ticket", "random"):
            assert batch.patches[arm].shape == (len(batch.ids), 6)
            assert torch.equal(batch.patches[arm], repeat.patches[arm])
        for sample, row in zip(batch.ids.tolist(), batch.patches["ticket"].tolist(), strict=True):
            assert row == generator("ticket", index.key(sample)).permutation(16)[:6].tolist()


def test_evaluation_projects_to_its_crop(index: ShardIndex, store: TicketStore) -> None:
    """Tickets of whole images are projected to the evaluation crop of each image's own size."""
    center = ViewSpec("center", 32, 32, "0.875")
    target = center.view_of(48, 64, GRID)
    batch = next(iter(evaluation(index, store, view=center)))
    ranking = generator("ticket", index.key(0)).permutation(16)
    assert batch.patches["ticket"][0].tolist() == project(ranking, View.whole(GRID), target)[:6].tolist()


def test_evaluation_of_best_patches_alone(index: ShardIndex, make_tickets: Callable[..., TicketStore]) -> None:
    """A file of form 'top' serves evaluation in its own view, and is refused for another."""
    store = make_tickets(index, form="top")
    batch = next(iter(evaluation(index, store)))
    assert batch.patches["ticket"][1].tolist() == generator("ticket", index.key(1)).permutation(16)[:6].tolist()
    with pytest.raises(MismatchError, match="needs 'full'"):
        evaluation(index, store, view=ViewSpec("center", 32, 32, "0.875"))


def test_evaluation_leaves_out_bad_images(index: ShardIndex, make_tickets: Callable[..., TicketStore]) -> None:
    """Bad images, known or newly found, are left out and named; images without a ticket come apart as dense."""
    store = make_tickets(index, bad=[index.key(3)], leave_out=[index.key(6)])
    found = join(index, store, "dense")
    reencoded = replace(found, identical=np.zeros_like(found.identical))  # so that decoding finds the damage
    _damage(index, 8, b"GIF89a")
    one = evaluation(index, None, join=reencoded, bad_images="skip")
    batches = list(one)
    assert one.num_images == 20
    assert [i for batch in batches for i in batch.ids.tolist() if batch.patches["ticket"] is None] == [6]
    assert sorted(i for batch in batches for i in batch.ids.tolist()) == [i for i in range(21) if i not in (3, 8)]
    assert list(one.bad_images) == [index.key(8)]


def test_evaluation_refuses_wrong_settings(index: ShardIndex, store: TicketStore) -> None:
    """No batch, a rank outside the world, or arms without k are refused."""
    for changes, message in (
        ({"batch_size": 0}, "at least 1 image"),
        ({"rank": 2, "world": 2}, "rank < world"),
        ({"k": None}, "need k"),
        ({"k": 99}, "k must be from 1 to 16"),
    ):
        with pytest.raises(InputError, match=message):
            evaluation(index, store, **changes)


def test_images_without_labels_are_refused(tmp_path: Path) -> None:
    """Training and evaluation need labels: the first image without one is named."""
    image = make_image(np.zeros((16, 16, 3), np.uint8))
    make_tar(tmp_path / "plain-000.tar", [("a.jpg", image), ("b.jpg", image)])
    index = open_index(str(tmp_path / "plain-000.tar"))
    for build in (lambda: loader(index, None, arm="random"), lambda: evaluation(index, None, arms=("dense",))):
        with pytest.raises(InputError, match=r"2 images have no label .*; the first is a"):
            build()


def test_batches_move_as_a_whole(index: ShardIndex, store: TicketStore) -> None:
    """`to` moves every tensor of a training or evaluation batch, those of the arms among them, and nothing else.

    What is known of each patch besides goes with its image, and is cut with the patches that are kept.
    """
    trained = next(loader(index, store, mixing=MIXED).epoch(0))
    moved = trained.to("meta")
    assert {moved.images.device.type, moved.patches.device.type, moved.weights.device.type} == {"meta"}
    assert (moved.mix, moved.step, moved.last) == (trained.mix, trained.step, trained.last)
    extras = {"labels": torch.rand(8, 16, 3), "scores": torch.rand(8, 16)}
    seen = replace(trained, patches=None, extras=extras).of(np.arange(8) < 4).keeping(trained.patches[:4])
    assert seen.mix == trained.mix.of(np.arange(4))
    for name, values in extras.items():
        rows = [values[row, patches] for row, patches in enumerate(trained.patches[:4].tolist())]
        assert torch.equal(seen.extras[name], torch.stack(rows))
        assert seen.to("meta").extras[name].device.type == "meta"
    evaluated = next(iter(evaluation(index, store))).to("meta")
    assert evaluated.patches["ticket"].device.type == "meta"
    assert evaluated.patches["dense"] is None
