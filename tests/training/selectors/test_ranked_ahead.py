"""Stage 1 as a GPU computes it, batches queued before the one before them is read; on a CPU, where only copies lack.

What a GPU's memory holds is counted by the ranker of these tests, which raises torch's own error when it is full.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from makers.models import tiny_vit
from torch import Tensor
from torch._dynamo.utils import counters

from dlth.data.loading.shard_reader import ShardBatch
from dlth.training import Selector
from dlth.training.selectors.batch_ranker import BatchRanker, Ranked, one_thread_each, ranked_ahead, ranked_side_by_side
from dlth.training.selectors.patch_ranker import Selection


class SmallDevice(Selector):
    """EViT's selector on a device with `room` for so many images, of which each batch that nobody has read takes one.

    asked: sizes of its batches; fed, read: batches that came, and whose results did
    """

    def __init__(self, room: int = 1_000) -> None:
        super().__init__(tiny_vit(depth=2), 0.7, (0, 1))
        self.room, self.asked, self.fed, self.read = room, [], 0, 0

    @torch.compiler.disable
    def take(self, count: int) -> None:
        self.asked.append(count)
        if count + self.fed - self.read - 1 > self.room:
            raise torch.OutOfMemoryError

    def select(self, images: Tensor, budget: Any = None) -> Selection:
        self.take(len(images))
        return super().select(images, budget)

    def ranked(self, batches: list[ShardBatch], **options: Any) -> Iterator[tuple[ShardBatch, Ranked]]:
        """What is ranked ahead of `batches`, counting them."""

        def fed() -> Iterator[ShardBatch]:
            for self.fed, batch in enumerate(batches, 1):
                yield batch

        for result in ranked_ahead(fed(), BatchRanker(self, **options)):
            self.read += 1
            yield result


def batches_of(*sizes: int) -> list[ShardBatch]:
    """Batches of random images, the rows of one shard."""
    made = []
    for place, size in enumerate(sizes):
        generator = torch.Generator().manual_seed(place)
        images = torch.randint(256, (size, 3, 32, 32), dtype=torch.uint8, generator=generator)
        hashes, good, start = np.zeros((size, 16), np.uint8), np.ones(size, bool), sum(sizes[:place])
        made.append(ShardBatch(0, start, place == len(sizes) - 1, images, None, hashes, good, ()))
    return made


def same(ours: Iterable[tuple[ShardBatch, Ranked]], theirs: Iterable[tuple[ShardBatch, Ranked]], atol: float) -> None:
    """Batches and rankings alike, gaps to within `atol`."""
    for (batch, (patches, gap)), (other, (expected, wanted)) in zip(ours, theirs, strict=True):
        assert batch.start == other.start
        np.testing.assert_array_equal(patches, expected)
        np.testing.assert_allclose(gap, wanted, rtol=0, atol=atol)


def test_batches_queued_ahead_give_what_batches_side_by_side_give() -> None:
    """The same rankings and gaps in the same order, of an empty and a short batch too; no batch keeps its images."""
    batches = batches_of(4, 0, 4, 3)
    with one_thread_each():
        ahead = list(SmallDevice().ranked(batches))
    same(ahead, ranked_side_by_side(batches, BatchRanker(SmallDevice(), batch_size=4), threads=2), atol=0)
    assert all(not len(batch.images) for batch, _ in ahead)


def test_two_batches_are_queued_before_the_one_before_them_is_handed_on() -> None:
    """While a result is checked and written the device has the next two batches, and never more than those."""
    selector = SmallDevice()
    queued = [len(selector.asked) for _ in selector.ranked(batches_of(2, 2, 2, 2, 2))]
    assert queued == [3, 4, 5, 5, 5]


TWICE = [4, 4]
"""A batch that finds no room and is tried once more when those in flight are read."""
CASES = [
    pytest.param(6, [4, 4, 4], [], id="room for three"),
    pytest.param(5, [4, 4, *TWICE], [], id="room for two"),
    pytest.param(4, [4, *TWICE, *TWICE], [], id="room for one"),
    pytest.param(3, [*TWICE, 2, 2, 2, 2, 2, 2, 2], [2], id="for a half and one in flight"),
    pytest.param(2, [*TWICE, 2, 2, 2, 2, 2, 2, 2, 2], [2], id="for a half"),
    pytest.param(1, [*TWICE, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1], [2, 1], id="for one image"),
]


@pytest.mark.parametrize(("room", "asked", "halved"), CASES)
def test_only_what_has_no_room_alone_is_halved(room: int, asked: list[int], halved: list[int]) -> None:
    """Where memory ends, what is in flight is read first and the next tried whole once more; what does not fit alone
    is halved, and said; the tickets are the same."""
    batches, small, said = batches_of(4, 4, 4), SmallDevice(room), []
    with one_thread_each():
        ours = list(small.ranked(batches, batch_size=4, note=said.append))
    same(ours, ranked_side_by_side(batches, BatchRanker(SmallDevice(), batch_size=4), threads=1), atol=1e-6)
    assert small.asked == asked
    assert [int(text.rsplit(" ", 1)[1]) for text in said] == halved


@pytest.mark.parametrize(("room", "halved"), [(4, [4]), (2, [4, 2])])
def test_a_short_batch_without_room_halves_what_was_configured(room: int, halved: list[int]) -> None:
    """A tail of five of eight goes on with four, as whole batches would; what still does not fit is halved again."""
    (batch,), small, said = batches_of(5), SmallDevice(room), []
    ranker = BatchRanker(small, batch_size=8, note=said.append)
    small.fed = 1
    ranker(batch.images)
    assert [int(text.rsplit(" ", 1)[1]) for text in said] == halved
    assert ranker.batch_size == halved[-1]


def test_one_image_that_has_no_room_is_an_error_after_what_was_done_before() -> None:
    """Nothing is left to halve: torch's error comes out, behind the results of the batches before."""
    small = SmallDevice()
    results = small.ranked(batches_of(1, 1))
    small.room = 1
    next(results)
    small.room = 0
    with pytest.raises(torch.OutOfMemoryError):
        next(results)


class Bright(SmallDevice):
    """Ranks by brightness: a graph that is soon compiled."""

    def select(self, images: Tensor, budget: Any = None) -> Selection:
        self.take(len(images))
        best = images.mean(1).unfold(1, 8, 8).unfold(2, 8, 8).mean((3, 4)).flatten(1).sort(descending=True, stable=True)
        return Selection(best.indices, best.values[:, 0] - best.values[:, 1])


def test_a_compiled_selector_meets_one_size_and_after_halving_one_more() -> None:
    """Short and empty batches are filled up to the size of the graph that there is, before and after it was halved."""
    batches, small = batches_of(4, 3, 0, 4, 1), Bright()
    torch.compiler.reset()
    counters.clear()
    results = small.ranked(batches, batch_size=4, torchcompile="eager")
    with one_thread_each():
        ours = [next(results)]
        small.room = 3
        ours += results
    assert small.asked == [4, 4, 4, *TWICE, 2, 2, 2]
    assert counters["stats"]["unique_graphs"] == 2
    same(ours, ranked_side_by_side(batches, BatchRanker(Bright(), batch_size=4), threads=1), atol=1e-6)
