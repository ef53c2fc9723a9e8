"""The identity of a data set: each of its four digests sees its own kind of difference, and no other."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from makers.pictures import make_image, make_picture, make_tar
from makers.tampering import flipped

from dlth.data.shards import identity
from dlth.data.shards.index import ShardIndex, open_index

Sample = tuple[str, bytes, int]


@pytest.fixture
def pack(tmp_path: Path) -> Callable[..., ShardIndex]:
    """``pack(folder, samples, rows)`` -> the index of shards with `rows` of these samples each."""

    def make(folder: str, samples: Sequence[Sample], rows: int = 4) -> ShardIndex:
        (tmp_path / folder).mkdir()
        for start in range(0, len(samples), rows):
            members: list[tuple[str, bytes]] = []
            for key, encoded, label in samples[start : start + rows]:
                members += [(f"{key}.jpg", encoded), (f"{key}.cls", str(label).encode())]
            make_tar(tmp_path / folder / f"{start:06d}.tar", members)
        return open_index(str(tmp_path / folder))

    return make


def differing(one: ShardIndex, two: ShardIndex) -> set[str]:
    first, second = asdict(one.identity), asdict(two.identity)
    return {name for name in first if first[name] != second[name]}


def test_each_digest_names_its_own_difference(pack: Callable[..., ShardIndex]) -> None:
    """Another packing is another order alone, other labels are other labels alone, other bytes other content alone."""
    samples = [(f"n{i % 3:08d}_{i}", make_image(make_picture(i, 16, 16)), i % 3) for i in range(9)]
    index = pack("first", samples)
    assert index.identity.keys == index.fingerprint
    assert differing(index, pack("copy", samples)) == set()
    assert differing(index, pack("cut", samples, rows=5)) == {"order"}
    assert differing(index, pack("turned", samples[::-1])) == {"order"}
    key, encoded, label = samples[4]
    for name, other, found in (
        ("relabelled", (key, encoded, label + 1), {"labels"}),
        ("re-encoded", (key, make_image(make_picture(4, 16, 16), quality=30), label), {"content"}),
        ("one bit", (key, flipped(encoded, -24), label), {"content"}),
        ("renamed", (f"{key}x", encoded, label), {"keys", "order", "labels", "content"}),
    ):
        assert differing(index, pack(name, [*samples[:4], other, *samples[5:]])) == found, name
    labels = [samples[1][2], samples[0][2]]
    swapped = [
        (*sample[:2], label) for sample, label in zip(samples, [*labels, *[s[2] for s in samples[2:]]], strict=True)
    ]
    assert differing(index, pack("swapped", swapped)) == {"labels"}


def test_of_a_large_set_a_few_shards_are_read(pack: Callable[..., ShardIndex], monkeypatch: pytest.MonkeyPatch) -> None:
    """Above the sample's size, images of four shards are read, so that little of a remote set is fetched."""
    monkeypatch.setattr(identity, "SAMPLE", 8)
    index = pack("large", [(f"n_{i}", b"\xff\xd8\xff" + bytes([i]), 0) for i in range(40)])
    read: list[int] = []
    whole = index.read_many
    monkeypatch.setattr(index, "read_many", lambda ids: read.extend(np.asarray(ids).tolist()) or whole(ids))
    assert index.identity.content
    assert read == [0, 3, 12, 15, 24, 27, 36, 39]
    assert index.identity is index.identity
