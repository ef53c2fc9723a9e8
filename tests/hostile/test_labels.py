"""Labels that would size a model: refused with shard and key before memory is taken, and no real set with them."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from makers.pictures import make_tar

from dlth.data.shards.classes import UNDECLARED_CLASSES, check_head, require_labels
from dlth.data.shards.index import ShardIndex, open_index
from dlth.tickets.errors import InputError, MismatchError
from dlth.training.runs.loop import train
from dlth.training.settings.train_config import TrainConfig

JPEG = b"\xff\xd8\xff" + b"j" * 100
Labelled = Callable[..., ShardIndex]


@pytest.fixture
def labelled(tmp_path: Path) -> Labelled:
    """``labelled(label, ...)`` -> the index of one shard whose images i0, i1, … have those labels."""

    def make(*labels: int) -> ShardIndex:
        members = [(f"i{i}.{suffix}", JPEG if suffix == "jpg" else b"%d" % label)
                   for i, label in enumerate(labels) for suffix in ("cls", "jpg")]  # fmt: skip
        return open_index(str(make_tar(tmp_path / "train-0.tar", members)), rebuild=True)

    return make


def test_a_head_that_no_one_meant_is_not_made(labelled: Labelled, tmp_path: Path) -> None:
    """Two images whose labels ask for 900,000 classes: train stops at shard and key, unless the head is asked for."""
    index = labelled(3, 899_999)
    message = "shard train-0.tar, key i1: label 899999: a head of 900,000 classes for 2 images is not made unasked"
    config = TrainConfig(data=index.shards[0].url, arm="dense", out=str(tmp_path / "run"), device="cpu")
    with pytest.raises(InputError, match=message):
        train(config)
    (tmp_path / "classes.json").write_text(json.dumps({"names": ["c"] * 900_000}))
    check_head(index)


def test_few_images_of_many_classes_are_ordinary(labelled: Labelled) -> None:
    """An image of ImageNet-21k's last class, and one of a set five times as large, need no asking."""
    for label in (21_842, UNDECLARED_CLASSES - 1):
        check_head(labelled(label))


@pytest.mark.parametrize("names", [["a", "b", "c"], ["a"]])
def test_a_label_past_the_declared_classes_is_named(labelled: Labelled, tmp_path: Path, names: list[str]) -> None:
    """classes.json beside the shards contradicts the label, when the shards are read and when the index is loaded."""
    labelled(0, 3)
    (tmp_path / "classes.json").write_text(json.dumps({"names": names}))
    for rebuild in (False, True):
        with pytest.raises(MismatchError, match=rf"key i1: label 3: classes.json .* names {len(names)} classes"):
            open_index(str(tmp_path / "train-0.tar"), rebuild=rebuild)


@pytest.mark.parametrize("text", ['["a"]', '{"names": 3}', "no JSON", '{"names": []}'])
def test_another_programs_classes_json_declares_nothing(labelled: Labelled, tmp_path: Path, text: str) -> None:
    """Shards lie beside files of that name that dlth did not write: they are passed over."""
    (tmp_path / "classes.json").write_text(text)
    assert labelled(0, 3).num_classes == 4


def test_shards_without_images_are_listed_and_not_used(tmp_path: Path) -> None:
    """An index of none is made; where images are needed, what is there instead is said."""
    index = open_index(str(make_tar(tmp_path / "t.tar", [("README", b"")])))
    assert index.num_samples == 0
    with pytest.raises(InputError, match=r"1 shards hold no image .* and 1 other members"):
        require_labels(index)
