"""Of a batch of stage 1 the images alone go to a device."""

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from dlth.data.loading.shard_reader import ShardBatch

BATCH = ShardBatch(
    3, 8, True, torch.zeros(2, 3, 4, 4, dtype=torch.uint8), None, np.ones((3, 16), np.uint8), np.ones(3, bool), ("bad",)
)


class NoRoom(torch.Tensor):
    """Images that no device has room for."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.to:
            raise torch.OutOfMemoryError
        return super().__torch_function__(func, types, args, kwargs)


def test_the_images_move_and_what_is_known_of_them_stays() -> None:
    """On a device a batch has its images there and its rows here; once they were seen, it has none."""
    sent = BATCH.to("meta")
    assert (sent.images.device.type, sent.hashes is BATCH.hashes, sent.start) == ("meta", True, 8)
    for batch in (BATCH, sent):
        seen = batch.without_images()
        assert (seen.images.shape, seen.images.device, seen.problems) == ((0, 3, 4, 4), batch.images.device, ("bad",))


def test_images_that_a_device_has_no_room_for_stay_where_they_are() -> None:
    """So the thread that sends them does not end for it: who computes on them halves the batch."""
    batch = replace(BATCH, images=BATCH.images.as_subclass(NoRoom))
    assert batch.to("meta") is batch
    assert batch.tensors() == []
