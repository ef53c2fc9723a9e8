"""The join: every image finds its own ticket or is counted as missing, and what does not belong together is refused."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dlth.data.joining.join import BAD_IMAGE, NO_TICKET, Join, check_compatible, join
from dlth.data.loading.reader import Reader
from dlth.data.shards.identity import content_hash
from dlth.data.shards.index import ShardIndex, open_index
from dlth.tickets import Grid, TicketStore
from dlth.tickets.errors import DamageError, InputError, MismatchError, MissingTicketError

Make = Callable[..., TicketStore]


def stored_keys(found: Join, index: ShardIndex) -> list[str | None]:
    """The key that each image's ticket row bears in the file, by sample id; None without a ticket."""
    store = found.store
    places = [store.shard_and_row(int(row)) if row >= 0 else None for row in found.ticket_row]
    return [store.keys(place[0])[place[1]] if place else None for place in places]


def keys_of(index: ShardIndex) -> list[str]:
    return [index.key(i) for i in range(index.num_samples)]


def test_same_packing_joins_by_position(make_shards: Callable[..., Any], make_tickets: Make) -> None:
    """On the shards that the tickets were made from every image is matched by position, reading each key chunk once."""
    index = open_index(make_shards(3, [4, 2, 5]).spec)
    store = make_tickets(index)
    found = join(index, store)
    assert stored_keys(found, index) == keys_of(index)
    assert (found.coverage.by_position, found.coverage.by_key, found.coverage.missing) == (11, 0, 0)
    assert found.coverage.identical
    assert not found.removed.any()
    assert "tickets for 11 of 11 images (11 by position)" in str(found.coverage)
    assert store.chunk_reads <= 2 * 3, "keys of each shard, and hashes of the few that are compared"


def test_other_packing_joins_by_key(
    make_shards: Callable[..., Any], make_index: Callable[..., ShardIndex], make_tickets: Make
) -> None:
    """The same images in other shards and another order find their tickets by key."""
    index = open_index(make_shards(2, 6).spec)
    store = make_tickets(index)
    order = np.random.default_rng(1).permutation(12)
    other = make_index("other", [[(index.key(i), index.read(i)) for i in part] for part in np.array_split(order, 3)])
    found = join(other, store)
    assert stored_keys(found, other) == keys_of(other)
    assert found.coverage.by_position + found.coverage.by_key == 12
    assert found.coverage.by_key > 6
    assert found.coverage.identical


def numbered(images: list[bytes], rows: int = 6) -> list[list[tuple[str, bytes]]]:
    """Images under running numbers, `rows` a shard."""
    samples = [(f"{number:06d}", image) for number, image in enumerate(images)]
    return [samples[start : start + rows] for start in range(0, len(samples), rows)]


def test_other_names_join_by_content(
    make_shards: Callable[..., Any], make_index: Callable[..., ShardIndex], make_tickets: Make
) -> None:
    """Images under other keys find the tickets of the same bytes; the progress of reading them is reported."""
    index = open_index(make_shards(2, 6).spec)
    store = make_tickets(index)
    order = np.random.default_rng(2).permutation(12)
    other = make_index("numbers", numbered(index.read_many(order)))
    seen = []
    found = join(other, store, progress=lambda done, total: seen.append((done, total)))
    assert stored_keys(found, other) == [index.key(int(i)) for i in order]
    assert found.coverage.by_content == 12
    assert found.coverage.identical
    assert seen == [(12, 12)]


def test_running_numbers_are_not_believed(
    make_shards: Callable[..., Any], make_index: Callable[..., ShardIndex], make_tickets: Make
) -> None:
    """Two packings both numbered 000000 … match by key yet show other images: joined by content instead."""
    images = open_index(make_shards(2, 6).spec).read_many(range(12))
    first = make_index("first", numbered(images, rows=12))
    second = make_index("second", numbered([images[i] for i in np.random.default_rng(3).permutation(12)], rows=12))
    store = make_tickets(first)
    assert join(first, store).coverage.by_position == 12
    found = join(second, store)
    assert (found.coverage.by_position, found.coverage.by_key, found.coverage.by_content) == (0, 0, 12)
    for i, row in enumerate(found.ticket_row):
        assert first.read(int(row)) == second.read(i)


@pytest.mark.parametrize("lettered", [0, 1, 12])
def test_lettered_keys_change_nothing_for_running_numbers(
    lettered: int, make_shards: Callable[..., Any], make_index: Callable[..., ShardIndex], make_tickets: Make
) -> None:
    """Numbers that another packing gave to other images are found by content, whatever stands beside them."""
    index = open_index(make_shards(1, 24).spec)
    images = index.read_many(range(24))
    named = [(f"name_{number}", image) for number, image in enumerate(images[12 : 12 + lettered])]
    store = make_tickets(make_index("first", [*numbered(images[:12]), named] if named else numbered(images[:12])))
    turned = numbered(images[1:12] + images[:1])
    other = make_index("second", [*turned, named] if named else turned)
    found = join(other, store)
    assert (found.coverage.by_content, found.coverage.by_position) == (12, lettered)
    assert found.identical.all()
    for i, row in enumerate(found.ticket_row):
        shard, at = store.shard_and_row(int(row))
        assert store.image_hashes(shard)[at].tobytes() == content_hash(other.read(i))


def test_a_shard_whose_numbers_mean_other_images_is_not_believed(
    make_shards: Callable[..., Any], make_index: Callable[..., ShardIndex], make_tickets: Make
) -> None:
    """Of six numbered shards one was packed anew: its images alone are read, and get their own tickets."""
    images = open_index(make_shards(1, 36).spec).read_many(range(36))
    store = make_tickets(make_index("first", numbered(images)))
    other = make_index("second", numbered(images[:12] + images[12:18][::-1] + images[18:]))
    seen: list[tuple[int, int]] = []
    found = join(other, store, progress=lambda done, total: seen.append((done, total)))
    assert (found.coverage.by_position, found.coverage.by_content, found.coverage.identical) == (30, 6, True)
    assert found.ticket_row.tolist() == [*range(12), *range(17, 11, -1), *range(18, 36)]
    assert seen == [(6, 6)]


def test_numbers_are_compared_when_read_beside_re_encoded_names(
    make_shards: Callable[..., Any], make_index: Callable[..., ShardIndex], make_tickets: Make, tmp_path: Path
) -> None:
    """Names are believed with other bytes; a number outside the sample whose image was replaced stops the reader."""
    images = open_index(make_shards(1, 24).spec).read_many(range(24))
    again = open_index(make_shards(1, 24, quality=50, folder=tmp_path / "again").spec).read_many(range(24))

    def shards(names: list[bytes], numbers: list[bytes]) -> list[list[tuple[str, bytes]]]:
        return [[(f"name_{i}", image) for i, image in enumerate(names)], *numbered(numbers, rows=12)]

    store = make_tickets(make_index("first", shards(images[:12], images[12:])))
    replaced = [*images[12:14], images[0], *images[15:]]
    other = make_index("second", shards(again[:12], replaced))
    found = join(other, store)
    assert (found.coverage.by_position, found.coverage.identical) == (24, False)
    reader = Reader(other, found)
    assert all(image is not None for image in reader.read(np.r_[0:14, 15:24])[0])
    with pytest.raises(DamageError, match=r"key 000002: the image is not the one its ticket was made from"):
        reader.read(np.array([14]))


def test_missing_tickets_follow_the_policy(make_shards: Callable[..., Any], make_tickets: Make) -> None:
    """Images without a row: an error that counts and names them, or marked, and with 'skip' removed from the order."""
    index = open_index(make_shards(2, 6).spec)
    lost = [index.key(2), index.key(9)]
    store = make_tickets(index, leave_out=lost)
    with pytest.raises(MissingTicketError, match=rf"(?s)tickets for 10 of 12.*2 images without.*{lost[0]}, {lost[1]}"):
        join(index, store)
    for policy, removed in (("dense", 0), ("random", 0), ("skip", 2)):
        found = join(index, store, missing=policy)
        assert np.flatnonzero(found.ticket_row == NO_TICKET).tolist() == [2, 9]
        assert found.removed.sum() == removed
        assert found.coverage.examples == tuple(lost)
    with pytest.raises(InputError, match="missing must be one of error, dense, random, skip, got 'pad'"):
        join(index, store, missing="pad")  # type: ignore[arg-type]


def test_only_the_first_ten_missing_are_listed(make_shards: Callable[..., Any], make_tickets: Make) -> None:
    """A long list of missing images is cut to ten with the number of the rest."""
    index = open_index(make_shards(2, 8).spec)
    store = make_tickets(index, leave_out=keys_of(index)[:14])
    text = str(join(index, store, missing="skip").coverage)
    assert "14 images without a ticket (left out)" in text
    assert "and 4 more" in text


def test_bad_images_count_nothing_and_stay_in_the_order_under_every_policy(
    make_shards: Callable[..., Any], make_tickets: Make
) -> None:
    """What stage 1 could not read is left out in stage 2, counted, keeps its place, and is no missing ticket."""
    index = open_index(make_shards(2, 6).spec)
    store = make_tickets(index, bad=[index.key(7)])
    for policy in ("error", "dense", "random", "skip"):
        found = join(index, store, missing=policy)
        assert found.ticket_row[7] == BAD_IMAGE
        assert np.flatnonzero(found.bad).tolist() == [7]
        assert not found.removed.any()
        assert "1 bad images were skipped" in str(found.coverage)
        assert found.coverage.missing == 0


def test_other_images_are_refused_with_both_sides(make_shards: Callable[..., Any], make_tickets: Make) -> None:
    """Tickets of another data set match nothing: refused under every policy, showing keys of both."""
    index = open_index(make_shards(1, 4).spec)
    other = open_index(make_shards(1, 4, split="val", seed=7).spec)
    store = make_tickets(index)
    with pytest.raises(MismatchError, match=rf"(?s)made for other images.*{index.key(0)}.*{other.key(0)}"):
        join(other, store, missing="random")


def test_reencoded_images_are_told(make_shards: Callable[..., Any], make_tickets: Make, tmp_path: Path) -> None:
    """The same keys with other bytes: matched by key, and the report says that bytes differ."""
    shards = make_shards(1, 6)
    index = open_index(shards.spec)
    store = make_tickets(index)
    again = open_index(make_shards(1, 6, quality=50, folder=tmp_path / "again").spec)
    found = join(again, store)
    assert found.coverage.by_position == 6
    assert not found.coverage.identical
    assert "re-encoded" in str(found.coverage)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"k": 17}, r"keep: the file holds the 16 best patches \(keep 0.5\), asked for 17"),
        ({"split": "validation"}, "split: the file is for 'train', the images are 'validation'"),
        ({"dataset": "imagenet"}, "dataset: the file is for 'pictures', the images are 'imagenet'"),
    ],
    ids=["keep", "split", "dataset"],
)
def test_what_does_not_fit_is_refused(
    asked: dict[str, object], message: str, make_shards: Callable[..., Any], make_tickets: Make
) -> None:
    """A wrong keep, split or data set is refused before an image is read, both sides shown."""
    header = make_tickets(open_index(make_shards(1, 2).spec)).header
    check_compatible(header, grid=Grid(4, 4), k=16, split="train", dataset="pictures")
    with pytest.raises(MismatchError, match=message):
        check_compatible(header, **{"grid": Grid(4, 4), **asked})  # type: ignore[arg-type]


def test_best_patches_alone_cannot_move(make_shards: Callable[..., Any], make_tickets: Make) -> None:
    """A file of form 'top' serves its own view up to its k, and is refused for crops and for another grid, which a full
    one serves; all reasons come at once."""
    header = make_tickets(open_index(make_shards(1, 2).spec), form="top").header
    check_compatible(header, grid=Grid(4, 4), k=8, moved=False)
    with pytest.raises(MismatchError, match=r"(?s)holds the 8 best patches.*form: the file is 'top'"):
        check_compatible(header, grid=Grid(4, 4), k=9)
    with pytest.raises(MismatchError, match=r"(?s)grid: the file has 4x4 patches, the model 8x8.*needs 'full'"):
        check_compatible(header, grid=Grid(8, 8), k=9, moved=False)
    check_compatible(replace(header, form="full"), grid=Grid(8, 8), k=33)


def test_a_lost_shard_is_counted(make_shards: Callable[..., Any], make_tickets: Make, tmp_path: Path) -> None:
    """Images of fewer shards than the file has find their tickets, matched by the shard's name."""
    shards = make_shards(3, 4)
    store = make_tickets(open_index(shards.spec))
    folder = tmp_path / "fewer"
    folder.mkdir()
    shutil.copy(shards.paths[2], folder)
    index = open_index(str(folder))
    found = join(index, store)
    assert found.coverage.by_position == 4
    assert stored_keys(found, index) == list(shards.keys[2])
