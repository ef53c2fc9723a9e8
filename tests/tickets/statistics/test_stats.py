"""Statistics and comparison of ticket files against figures worked out by hand or by plain loops."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from makers.tickets import make_header

from dlth.tickets import Grid, ShardSpec, ShardTickets, TicketHeader, TicketStore, generator
from dlth.tickets.derive.draft import Draft
from dlth.tickets.errors import InputError, MismatchError
from dlth.tickets.statistics.compare import compare
from dlth.tickets.statistics.stats import central_area, ticket_stats

P, K = 16, 6


def rows_of(name: str, count: int, *, prefix: str = "n", skipped: tuple[int, ...] = ()) -> ShardTickets:
    rng = generator("tests/stats", name)
    order = rng.permuted(np.tile(np.arange(P), (count, 1)), axis=1)
    keys = tuple(f"{prefix}{name}_{row}" for row in range(count))
    images = np.frombuffer(b"".join(key.encode().ljust(16, b"#") for key in keys), dtype=np.uint8).reshape(-1, 16)
    return ShardTickets(keys, images, order, rng.random(count, np.float32), np.isin(np.arange(count), skipped))


def write(path: Path, header: TicketHeader, shards: list[ShardTickets]) -> TicketStore:
    specs = tuple(ShardSpec(f"shard-{index}.tar", shard.num_rows) for index, shard in enumerate(shards))
    return Draft(header, specs, 16, shards.__getitem__).write(path)


def test_one_patch_in_every_ticket_gives_known_figures(tmp_path: Path) -> None:
    """All tickets alike and central: bias 16/4 over 16/4, entropy log2(4) bits, every figure exact."""
    order = np.array([5, 6, 9, 10, *(p for p in range(P) if p not in (5, 6, 9, 10))])
    shard = rows_of("a", 4)
    alike = dataclasses.replace(
        shard, patches=np.tile(order, (4, 1)), gap=np.array([0.0, 5e-5, 0.5, np.inf], np.float32)
    )
    found = ticket_stats(write(tmp_path / "t", make_header(), [alike]), k=4)
    assert found.overall.centre_bias == pytest.approx(4.0)
    assert found.overall.entropy_bits == pytest.approx(2.0)
    assert found.overall.entropy_share == pytest.approx(0.5)
    assert found.overall.fragile == {1e-6: 0.25, 1e-5: 0.25, 1e-4: 0.5, 1e-3: 0.5}
    assert (found.unscored, found.positions_used) == (0.25, 4)
    assert found.frequency.tolist() == [1.0 if p in order[:4] else 0.0 for p in range(P)]


def test_every_position_alike_is_bias_and_entropy_of_one(tmp_path: Path) -> None:
    """Sixteen tickets, each starting one patch further: no position is preferred."""
    shifted = np.stack([np.roll(np.arange(P), -row) for row in range(P)])
    shard = dataclasses.replace(rows_of("a", P), patches=shifted)
    found = ticket_stats(write(tmp_path / "t", make_header(), [shard]))
    assert found.overall.centre_bias == pytest.approx(1.0)
    assert found.overall.entropy_share == pytest.approx(1.0)


@pytest.mark.parametrize(("rows", "cols"), [(14, 14), (4, 4), (1, 5), (7, 3)])
def test_the_central_quarter_is_a_quarter_of_any_grid(rows: int, cols: int) -> None:
    """Patches on its edge count by their area, so the area is exactly P / 4."""
    assert central_area(Grid(rows, cols)).sum() == pytest.approx(rows * cols / 4)


def test_classes_are_counted_apart_and_skipped_rows_nowhere(tmp_path: Path) -> None:
    """By class equals the statistics of a file of that class alone; labels may be an array or a function."""
    shards = [rows_of("a", 5, skipped=(1,)), rows_of("b", 3)]
    store = write(tmp_path / "t", make_header(), shards)
    labels = np.array([7, 7, 2, 2, -1, 7, 2, 2])
    found = ticket_stats(store, labels)
    again = ticket_stats(store, lambda shard: labels[:5] if shard == 0 else labels[5:])
    assert {label: part.num_tickets for label, part in found.classes.items()} == {2: 4, 7: 2}
    assert found.overall.num_tickets == 7 == found.num_rows - found.num_skipped
    assert again.classes == found.classes
    rows = np.concatenate([shards[0].patches[[0]], shards[1].patches[[0]]])[:, :K]
    frequency = np.bincount(rows.ravel(), minlength=P) / 2
    share = frequency[frequency > 0] / K
    assert found.classes[7].entropy_bits == pytest.approx(-(share * np.log2(share)).sum())


def test_wrong_labels_and_counts_are_refused(store_path: Path) -> None:
    """A label a row, whole and in range; k within what is stored."""
    store = TicketStore(store_path)
    with pytest.raises(InputError, match=r"one label a row is needed, 10 in all, got \[4\]"):
        ticket_stats(store, np.zeros(4, dtype=np.int64))
    with pytest.raises(InputError, match=r"needs 3 whole numbers as labels, got float64"):
        ticket_stats(store, np.zeros(10))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="from -1"):
        ticket_stats(store, np.full(10, -2))
    with pytest.raises(InputError, match="k must be from 1 to 16"):
        ticket_stats(store, k=17)


def test_a_file_agrees_with_itself(store_path: Path) -> None:
    """Overlap, rank correlation and their spread are perfect, and nothing is one-sided."""
    store = TicketStore(store_path)
    found = compare(store, store)
    assert (found.num_matched, found.num_compared, found.num_other_bytes) == (10, 9, 0)
    assert (found.only_first, found.only_second) == (0, 0)
    for overlap in found.overlaps:
        assert (overlap.iou.mean, overlap.iou.std, overlap.share.least) == (1.0, 0.0, 1.0)
    assert found.rank_correlation is not None
    assert found.rank_correlation.mean == 1.0
    assert [overlap.k for overlap in found.overlaps] == [2, 4, 6, 8, 12, 15]


def naive(a: np.ndarray, b: np.ndarray, k: int) -> float:
    common = len(set(a[:k].tolist()) & set(b[:k].tolist()))
    return common / (2 * k - common)


def test_figures_equal_plain_loops_in_any_packing(tmp_path: Path) -> None:
    """Overlap, quantiles, Spearman, worst rows and classes equal sets and numpy, also when the second file is packed
    otherwise."""
    first_shards = [rows_of("a", 6, skipped=(2,)), rows_of("b", 5), rows_of("c", 1)]
    first = write(tmp_path / "first", make_header(), first_shards)
    flat_keys = [key for shard in first_shards for key in shard.keys]
    images = np.concatenate([shard.images for shard in first_shards])
    other = rows_of("other", 12)
    order = generator("packing").permutation(12)
    repacked = ShardTickets(
        tuple(flat_keys[i] for i in order),
        images[order],
        other.patches[order],
        other.gap[order],
        np.zeros(12, dtype=bool),
    )
    halves = [
        ShardTickets(
            repacked.keys[part],
            repacked.images[part],
            repacked.patches[part],
            repacked.gap[part],
            repacked.skipped[part],
        )
        for part in (slice(0, 7), slice(7, 12))
    ]
    second = write(tmp_path / "second", make_header(), halves)
    labels = np.arange(12) % 2
    found = compare(first, second, ks=(4, K), labels=labels, num_worst=3)
    rows = [i for i in range(12) if i != 2]
    ours = np.concatenate([shard.patches for shard in first_shards])
    ious = np.array([naive(ours[i], other.patches[i], K) for i in rows])
    main = found.overlaps[1]
    assert (found.num_compared, main.k, found.main_k) == (11, K, K)
    assert main.iou.mean == pytest.approx(ious.mean())
    assert main.iou.std == pytest.approx(ious.std())
    assert main.iou.least == pytest.approx(ious.min())
    assert main.iou.median == pytest.approx(np.quantile(ious, 0.5, method="inverted_cdf"))
    ranks = [np.argsort(ours[i]) for i in rows], [np.argsort(other.patches[i]) for i in rows]
    rho = np.array([np.corrcoef(a, b)[0, 1] for a, b in zip(*ranks, strict=True)])
    assert found.rank_correlation is not None
    assert found.rank_correlation.mean == pytest.approx(rho.mean(), abs=1e-4)
    assert found.classes[0].iou.mean == pytest.approx(ious[[rows.index(i) for i in rows if i % 2 == 0]].mean())
    assert [row.iou for row in found.worst] == pytest.approx(sorted(ious)[:3])
    assert found.worst[0].key == flat_keys[rows[int(np.argmin(ious))]]


def test_running_numbers_count_only_with_equal_bytes(tmp_path: Path) -> None:
    """`000001` of another packing is another image unless content hashes say otherwise; with none known it counts."""
    shard = rows_of("a", 4)
    shard = dataclasses.replace(shard, keys=("000001", "000002", "000003", "real_name"), images=shard.images.copy())
    shard.images[2] = 0
    images = shard.images + np.array([[1], [0], [0], [1]], np.uint8)
    first = write(tmp_path / "first", make_header(), [shard])
    second = write(tmp_path / "second", make_header(), [dataclasses.replace(shard, images=images)])
    found = compare(first, second)
    assert (found.num_matched, found.only_first, found.num_other_bytes) == (3, 1, 1)


def test_other_frames_are_refused_with_both_sides(tmp_path: Path) -> None:
    """Patch 3 of another grid is another place."""
    first = write(tmp_path / "first", make_header(), [rows_of("a", 2)])
    second = write(tmp_path / "second", make_header(grid=Grid(2, 8)), [rows_of("a", 2)])
    with pytest.raises(MismatchError, match=r"different frames(.|\n)*grid.rows: file has 4, asked 2"):
        compare(first, second)
    with pytest.raises(InputError, match="k must be from 1 to 16"):
        compare(first, first, ks=(17,))
