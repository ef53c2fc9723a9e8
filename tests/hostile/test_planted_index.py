"""An index that someone else put beside the shards: the impossible is refused in every row, the untrue where drawn."""

import logging
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from makers.pictures import make_tar

from dlth.data.shards import index_file
from dlth.data.shards.index import ShardIndex, open_index
from dlth.data.shards.index_trust import contradiction

Change = Callable[[ShardIndex], None]
FIELDS = ("image_offset", "image_size", "label", "key_bytes", "key_start")


def set_at(array: str, place: int, value: int) -> Change:
    return lambda index: getattr(index, array).__setitem__(place, value)


def exchange(array: str) -> Change:
    """Rows 0 and 1 exchange what they have in an array."""

    def change(index: ShardIndex) -> None:
        values = getattr(index, array)
        values[[0, 1]] = values[[1, 0]]

    return change


def both_places(index: ShardIndex) -> None:
    exchange("image_offset")(index)
    exchange("image_size")(index)


def exchanged_keys(index: ShardIndex) -> None:
    first, second, third = index.key_start[:3].tolist()
    assert second - first == third - second
    index.key_bytes[first:third] = np.roll(index.key_bytes[first:third], second - first)


def drop(row: int) -> Change:
    """A row that is in the shard is not in the index."""

    def change(index: ShardIndex) -> None:
        shards = list(index.shards)
        place = index.shard_of(row)
        shards[place] = type(shards[place])(**{**vars(shards[place]), "rows": shards[place].rows - 1})
        start, end = index.key_start[row : row + 2].tolist()
        index.key_bytes = np.delete(index.key_bytes, np.s_[start:end])
        index.key_start = np.delete(index.key_start, row + 1)
        index.key_start[row + 1 :] -= end - start
        for array in FIELDS[:3]:
            setattr(index, array, np.delete(getattr(index, array), row))
        index.shards = tuple(shards)
        index.row_start = np.concatenate([[0], np.cumsum([shard.rows for shard in shards])])

    return change


PLANTED: dict[str, Change] = {
    "exchanged places": both_places,
    "exchanged keys": exchanged_keys,
    "exchanged labels": exchange("label"),
    "zeroed labels": lambda index: index.label.fill(0),
    "another label": set_at("label", 3, 1),
    "a first row dropped": drop(0),
    "a row dropped": drop(2),
    "a last row dropped": drop(5),
    "a label of 2**62": set_at("label", 1, 2**62),
    "a label past every bound": set_at("label", 1, 1_000_000),
    "an offset near 2**63": set_at("image_offset", 2, 2**63 - 512),
    "an offset within a block": set_at("image_offset", 0, 513),
    "a size near 2**63": set_at("image_size", 5, 2**63 - 1),
    "keys that are not UTF-8": set_at("key_bytes", 3, 0xFF),
    "a key cut within a character": lambda index: (
        index.key_bytes.__setitem__(slice(9, 11), [0xC3, 0xA4]) or index.key_start.__setitem__(1, 10)
    ),
    "a key out of its folder": lambda index: index.key_bytes.__setitem__(slice(0, 3), list(b"../")),
    "a key of two gigabytes": set_at("key_start", 1, 2**31),
}


@pytest.fixture
def shards(make_shards: Any) -> Any:
    """Two shards of three images with labels 0 to 3, and no index yet."""
    return make_shards(2, 3)


def plant(folder: Path, index: ShardIndex) -> Path:
    """Put an index where dlth looks for it, with the digest that is right for it."""
    [path] = folder.glob("dlth-index-*.safetensors")
    assert index_file.write_index(path, index)
    return path


@pytest.mark.parametrize("case", PLANTED)
def test_a_planted_index_is_not_used(case: str, shards: Any, caplog: pytest.LogCaptureFixture) -> None:
    """The shards are read anew, and what they hold is the result; that index is named, and why it is not used."""
    lying = open_index(shards.spec)
    lying.key_bytes = lying.key_bytes.copy()
    PLANTED[case](lying)
    path = plant(shards.folder, lying)
    with caplog.at_level(logging.WARNING, "dlth"):
        index = open_index(shards.spec)
    assert [index.key(row) for row in range(6)] == shards.all_keys
    assert index.label.tolist() == [label for labels in shards.labels for label in labels]
    assert len(index.read_many(range(6))) == 6
    assert [f"{path} contradicts the shards" in message for message in caplog.messages] == [True]
    caplog.clear()
    assert open_index(shards.spec).num_samples == 6
    assert caplog.messages == []


@pytest.mark.parametrize(
    "text", ['{"fingerprint":"","num_ignored":0,"shards":[["a"]]}', "[]", '{"shards":3}', '{"shards":[[]]}', "{"]
)
def test_odd_facts_count_as_absent(text: str, shards: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a planted index says of its shards, with a right digest: the tars are read, and nothing is raised."""
    lying = open_index(shards.spec)
    monkeypatch.setattr(index_file, "canonical", lambda facts: text.encode())
    plant(shards.folder, lying)
    monkeypatch.undo()
    assert open_index(shards.spec).num_samples == 6


@pytest.mark.parametrize("rows", [-1, 2**70, 3.0, True, None])
def test_rows_that_cannot_be_count_as_absent(rows: Any, shards: Any) -> None:
    """A shard's number of rows is a whole number that its bytes have room for."""
    lying = open_index(shards.spec)
    shard = lying.shards[0]
    lying.shards = (type(shard)(**{**vars(shard), "rows": rows}), *lying.shards[1:])
    plant(shards.folder, lying)
    assert open_index(shards.spec).num_samples == 6


def test_a_fifo_in_the_indexs_place_is_not_waited_for(shards: Any) -> None:
    """Opening one would hang until somebody writes to it."""
    open_index(shards.spec)
    [path] = shards.folder.glob("dlth-index-*")
    path.unlink()
    os.mkfifo(path)
    assert open_index(shards.spec).num_samples == 6


def test_a_link_in_the_temporary_files_place_is_not_followed(shards: Any, tmp_path: Path) -> None:
    """Whoever can write beside the shards must not choose a file that the index overwrites."""
    open_index(shards.spec)
    [path] = shards.folder.glob("dlth-index-*")
    treasure = tmp_path / "treasure"
    treasure.write_bytes(b"gold")
    (shards.folder / f".{path.name}.{os.getpid()}").symlink_to(treasure)
    open_index(shards.spec, rebuild=True)
    assert treasure.read_bytes() == b"gold"


def test_a_large_index_is_sampled(tmp_path: Path) -> None:
    """Of 40 shards some rows of eight are drawn: labels that are all zero are always found, a single one is often not.

    Which rows those are depends on the draw alone, and a true index is believed by every draw.
    """
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(40):
        keys = [f"k{number:02d}{row:02d}" for row in range(12)]
        members = [
            (f"{k}.{suffix}", b"1" if suffix == "cls" else b"x" * 700) for k in keys for suffix in ("jpg", "cls")
        ]
        make_tar(folder / f"train-{number:02d}.tar", members)
    index = open_index(str(folder))
    assert not any(contradiction(index, random.Random(seed)) for seed in range(20))
    index.label[5] = 0
    found = [bool(contradiction(index, random.Random(seed))) for seed in range(100)]
    assert 0 < sum(found) < 50
    index.label[:] = 0
    assert all(contradiction(index, random.Random(seed)) for seed in range(20))
