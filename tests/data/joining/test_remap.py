"""Whose ticket belongs to which image of another packing: real tars, packed in every way that labs do."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from makers.pictures import make_image, make_picture

from dlth.data.joining.join import join
from dlth.data.joining.remap import match, remap
from dlth.data.shards.identity import content_hash
from dlth.data.shards.index import ShardIndex
from dlth.tickets import TicketStore
from dlth.tickets.errors import MismatchError, MissingTicketError

Tickets = Callable[..., TicketStore]
NAMES = [f"n{number % 3:08d}_{number}" for number in range(9)]


@pytest.fixture
def packed(make_index: Callable[..., ShardIndex]) -> Callable[..., ShardIndex]:
    """``packed(folder, keys, pictures, rows_per_shard, quality)`` -> index of tars with these pictures by number."""

    def make(folder: str, keys: Sequence[str], pictures: Sequence[int], rows: int = 4, quality: int = 90) -> ShardIndex:
        images = [make_image(make_picture(number, 24, 32), quality=quality) for number in pictures]
        samples = list(zip(keys, images, strict=True))
        return make_index(folder, [samples[start : start + rows] for start in range(0, len(samples), rows)])

    return make


def tickets_by_picture(store: TicketStore, keys: Sequence[str], pictures: Sequence[int]) -> dict[int, bytes]:
    """Picture -> its ranking."""
    number = dict(zip(keys, pictures, strict=True))
    return {
        number[key]: store.patches(shard)[row].tobytes()
        for shard in range(len(store.shards))
        for row, key in enumerate(store.keys(shard))
    }


def counted(found: object) -> dict[str, int]:
    return {way: count for way, count in found.counts.items() if count}  # type: ignore[attr-defined]


def test_the_same_packing_matches_by_position(packed: Callable[..., ShardIndex], make_tickets: Tickets) -> None:
    """Every image, and its bytes are those the tickets were made from."""
    index = packed("a", NAMES, range(9))
    found = match(index, make_tickets(index))
    assert counted(found) == {"position": 9}
    assert (found.identical, found.re_encoded, found.distrusted, found.num_matched) == (9, 0, 0, 9)


def test_other_shards_and_order_match_by_key_and_remap(
    packed: Callable[..., ShardIndex], make_tickets: Tickets, tmp_path: Path
) -> None:
    """The remapped file has the other packing's shards and order, its own fingerprint, and every image's own ticket;
    training then joins it by position."""
    first = packed("a", NAMES, range(9))
    store = make_tickets(first)
    order = [4, 8, 0, 2, 6, 1, 7, 3, 5]
    other = packed("b", [NAMES[i] for i in order], order, rows=5)
    draft, found = remap(other, store)
    made = draft.write(tmp_path / "made.zarr")
    assert counted(found) == {"key": 9}
    assert made.verify() == []
    assert [(shard.name, shard.rows) for shard in made.shards] == [(shard.name, shard.rows) for shard in other.shards]
    assert made.header.dataset.fingerprint == other.fingerprint
    assert made.content == store.content
    assert tickets_by_picture(made, NAMES, range(9)) == tickets_by_picture(store, NAMES, range(9))
    assert made.header.extensions["derived"]["matched"] == {"key": 9}
    coverage = join(other, made).coverage
    assert (coverage.by_position, coverage.identical) == (9, True)


def test_running_numbers_that_only_look_alike_are_found_by_bytes(
    packed: Callable[..., ShardIndex], make_tickets: Tickets, tmp_path: Path
) -> None:
    """`000000` … of two packings name different images: not one is believed, each is found by its content."""
    keys = [f"{number:06d}" for number in range(9)]
    first = packed("a", keys, range(9))
    store = make_tickets(first)
    order = [1, 2, 3, 4, 5, 6, 7, 8, 0]
    other = packed("a2", keys, order)
    draft, found = remap(other, store)
    assert found.distrusted == 9
    assert counted(found) == {"content": 9}
    made = draft.write(tmp_path / "made.zarr")
    assert tickets_by_picture(made, keys, order) == tickets_by_picture(store, keys, range(9))
    same = match(packed("a3", keys, range(9)), store)
    assert (counted(same), same.distrusted) == ({"position": 9}, 0)


def test_running_numbers_of_other_images_match_nothing(
    packed: Callable[..., ShardIndex], make_tickets: Tickets
) -> None:
    """Look-alike keys over re-encoded bytes are refused, not given another image's ticket."""
    keys = [f"{number:06d}" for number in range(6)]
    store = make_tickets(packed("a", keys, range(6)))
    other = packed("b", keys, range(6), quality=60)
    found = match(other, store)
    assert (found.num_matched, found.distrusted) == (0, 6)
    with pytest.raises(MismatchError, match="no image of b has a ticket"):
        remap(other, store)


def test_re_encoded_copies_match_by_base_name_and_are_counted(
    packed: Callable[..., ShardIndex], make_tickets: Tickets, tmp_path: Path
) -> None:
    """Folders before the name, other JPEG quality: the tickets are the originals', the header says so, the hashes are
    the copies' own."""
    store = make_tickets(packed("a", NAMES, range(9)))
    keys = [f"train/{name[:9]}/{name}" for name in NAMES]
    other = packed("b", keys, range(9), quality=50)
    draft, found = remap(other, store)
    assert counted(found) == {"base name": 9}
    assert (found.re_encoded, found.identical, found.examples[0]) == (9, 0, keys[0])
    made = draft.write(tmp_path / "made.zarr")
    derived = made.header.extensions["derived"]
    assert (derived["re_encoded"], derived["matched"]) == (9, {"base_name": 9})
    assert "originals" in derived["view_of"]
    assert made.image_hashes(0)[0].tobytes() == content_hash(other.read(0))
    assert tickets_by_picture(made, keys, range(9)) == tickets_by_picture(store, NAMES, range(9))


def test_names_that_are_not_alone_are_found_by_bytes_or_not_at_all(
    packed: Callable[..., ShardIndex], make_tickets: Tickets
) -> None:
    """Two images called x in two folders: base names decide nothing, content does."""
    store = make_tickets(packed("a", ["one/x", "two/x", "y"], [0, 1, 2]))
    other = packed("b", ["1/x", "2/x", "z/y"], [1, 0, 2], rows=2)
    found = match(other, store)
    assert counted(found) == {"base name": 1, "content": 2}
    assert found.ambiguous == 2
    copies = match(packed("c", ["1/x", "2/x", "z/y"], [1, 0, 2], quality=40), store)
    assert counted(copies) == {"none": 2, "base name": 1}
    assert (copies.re_encoded, copies.ambiguous) == (1, 2)


def test_images_without_a_ticket_are_named_or_left_out(
    packed: Callable[..., ShardIndex], make_tickets: Tickets, tmp_path: Path
) -> None:
    """Refused by name; with allow_missing the file has rows for the others, and its shards stay."""
    store = make_tickets(packed("a", NAMES[:4], range(4)), bad=NAMES[1:2])
    other = packed("b", [*NAMES[:4], "new_one", "new_two"], range(6), rows=4)
    with pytest.raises(MissingTicketError, match=r"2 of 6 images have no ticket in .*: new_one, new_two"):
        remap(other, store)
    draft, found = remap(other, store, allow_missing=True)
    made = draft.write(tmp_path / "made.zarr")
    assert [shard.rows for shard in made.shards] == [4, 0]
    assert (made.num_skipped, made.header.dataset.count, made.header.dataset.fingerprint) == (1, 4, "")
    assert counted(found) == {"none": 2, "position": 4}
