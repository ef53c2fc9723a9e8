"""An image that ends the process that decodes it is a bad image, whichever loader meets it.

The bug of a decoder is put in its place: workers are forked from this process and inherit a `decode_image` that ends
its process on images with a mark, in the way that a segmentation fault or a lack of memory does.
"""

import faulthandler
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from makers.pictures import make_tar

from dlth.data.images import decode
from dlth.data.images.augment import Augmentation
from dlth.data.images.decode import BadImageError
from dlth.data.images.mixing import Mixing
from dlth.data.loading.batch import Batch, EvalBatch
from dlth.data.loading.crashes import crashing
from dlth.data.loading.evaluation import EvalLoader
from dlth.data.loading.loader import TrainLoader
from dlth.data.loading.order import Batching
from dlth.data.loading.shard_reader import read_shards
from dlth.data.shards.index import ShardIndex, open_index
from dlth.tickets import Grid, ViewSpec

MARK = b"this image crashes a decoder"
MARKED = (4, 5, 9)
VIEW = ViewSpec("center", 32, 32, "0.9")


@pytest.fixture
def index(make_shards: Callable[..., Any]) -> ShardIndex:
    """Two shards of seven images, three of them marked in a comment."""
    shards = make_shards(2, 7)
    sound, number = open_index(shards.spec), 0
    for path, keys, labels in zip(shards.paths, shards.keys, shards.labels, strict=True):
        members = []
        for key, label in zip(keys, labels, strict=True):
            image = sound.read(number)
            comment = b"\xff\xfe" + (len(MARK) + 2).to_bytes(2, "big") + MARK
            image = image[:2] + comment + image[2:] if number in MARKED else image
            members += [(f"{key}.jpg", image), (f"{key}.cls", str(label).encode())]
            number += 1
        make_tar(path, members)
    return open_index(shards.spec)


def decoder_that(on_mark: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    whole = decode.decode_image

    def decode_image(buffer: torch.Tensor, mode: Any) -> torch.Tensor:
        if MARK in buffer.numpy().tobytes():
            on_mark()
        return whole(buffer, mode)

    monkeypatch.setattr(decode, "decode_image", decode_image)


def crash(number: signal.Signals = signal.SIGSEGV) -> Callable[[], None]:
    here = os.getpid()

    def die() -> None:
        assert os.getpid() != here, "decoded in the main process"
        faulthandler.disable()  # pytest's, which would print every stack
        os.kill(os.getpid(), number)

    return die


def damage() -> None:
    raise RuntimeError("decode.cpp:1, damaged")


def train(index: ShardIndex, workers: int, **changes: Any) -> Any:
    settings = {
        "grid": Grid(4, 4),
        "batching": Batching(4),
        "augmentation": Augmentation(size=(32, 32), rand_augment="rand-m9-mstd0.5-inc1"),
        "arm": "dense",
        "mixing": Mixing(mixup_alpha=0.8, cutmix_alpha=1.0),
        "bad_images": "skip",
        "seed": 3,
    }
    loader = TrainLoader(index, workers=workers, **settings | changes)
    return [batch for epoch in range(2) for batch in loader.epoch(epoch)], loader.bad_images


def train_on_repeats(index: ShardIndex, workers: int) -> Any:
    """Three views of an image in an epoch: two workers have the same image in hand, one is told of it too late."""
    return train(index, workers, batching=Batching(4, aug_repeats=3), mixing=Mixing())


def evaluation(index: ShardIndex, workers: int, bad_images: Any = "skip") -> Any:
    loader = EvalLoader(
        index, view=VIEW, grid=Grid(4, 4), seed=0, batch_size=4, arms=("dense",), workers=workers, bad_images=bad_images
    )
    return list(loader), loader.bad_images


def stage_1(index: ShardIndex, workers: int) -> Any:
    batches = list(read_shards(range(2), index, VIEW, 3, workers))
    problems = [problem for batch in batches for problem in batch.problems]
    return batches, {index.key(number): text for number, text in zip(MARKED, problems, strict=True)}


def plain(value: Any) -> Iterator[bytes]:
    """Every number of a batch, but not the words about its bad images."""
    if isinstance(value, torch.Tensor | np.ndarray):
        yield np.ascontiguousarray(value).tobytes()
    elif hasattr(value, "__dataclass_fields__"):
        for item in fields(value):
            if item.name not in ("bad", "problems"):
                yield from plain(getattr(value, item.name))
    else:
        yield repr(value).encode()


@pytest.mark.parametrize("read", [train, train_on_repeats, evaluation, stage_1])
def test_a_crash_is_a_bad_image_bit_for_bit(
    read: Callable[..., Any], index: ShardIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same batches in the same order as if the images were merely damaged; each is named, with its end."""
    with monkeypatch.context() as patch:
        decoder_that(damage, patch)
        damaged, causes = read(index, 0)
    met = [number for number in MARKED if index.key(number) in causes]
    assert met
    decoder_that(crash(), monkeypatch)
    crashed, ends = read(index, 2)
    assert [list(plain(batch)) for batch in crashed] == [list(plain(batch)) for batch in damaged]
    assert all(isinstance(batch, Batch | EvalBatch) or not batch.good.all() or not batch.problems for batch in crashed)
    assert ends == {
        index.key(number): f"{index.where(number)}: decoding it ends the process that does so "
        "(killed by signal: Segmentation fault)"
        for number in met
    }


@pytest.mark.parametrize("number", [signal.SIGABRT, signal.SIGBUS, signal.SIGKILL], ids=lambda number: number.name)
def test_a_crash_ends_the_run_by_the_images_name(
    number: signal.Signals, index: ShardIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless bad images are skipped the error names shard and key, how the process ended, and what to do."""
    decoder_that(crash(number), monkeypatch)
    expected = rf"key {index.key(4)}: decoding it ends .*{signal.strsignal(number)}.*--bad-images skip"
    with pytest.raises(BadImageError, match=expected):
        evaluation(index, 1, "error")


def test_an_image_is_not_blamed_for_another_death(
    index: ShardIndex, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A process that dies once on an image and not again, because somebody killed it, says nothing about the image."""
    already = tmp_path / "died"

    def die_once() -> None:
        if not already.exists():
            already.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    decoder_that(die_once, monkeypatch)
    assert crashing(index, range(14)) == {}
    assert already.exists()
