"""Files made from files: merge, subset, set algebra and controls keep what they promise, in any packing."""

import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from makers.tickets import make_header, make_store

from dlth.tickets import Grid, ShardSpec, ShardTickets, TicketHeader, TicketStore, TicketWriter, generator
from dlth.tickets.derive.algebra import fused, intersection, inverse, union
from dlth.tickets.derive.controls import KINDS, control, edges_first
from dlth.tickets.derive.draft import Draft, unscored
from dlth.tickets.derive.edit import common_rows, merge, subset_by_classes, subset_by_keys, taken
from dlth.tickets.errors import DlthError, InputError, LockedError, MismatchError, MissingTicketError
from dlth.tickets.format.provenance import describe

P, K = 16, 6
Header = Callable[..., TicketHeader]


def rankings(seed: int, rows: int, num_patches: int = P) -> np.ndarray:
    rng = generator("tests/derive", seed)
    return rng.permuted(np.tile(np.arange(num_patches), (rows, 1)), axis=1)


def repacked(store: TicketStore, path: Path, seed: int, header: TicketHeader | None = None) -> TicketStore:
    """The same images in another order in two shards, with other rankings."""
    parts = [store.read(index) for index in range(len(store.shards))]
    whole = ShardTickets(
        tuple(key for part in parts for key in part.keys),
        np.concatenate([part.images for part in parts]),
        rankings(seed, store.num_rows),
        np.ones(store.num_rows, np.float32),
        np.zeros(store.num_rows, dtype=bool),
    )
    order = generator("order", seed).permutation(store.num_rows)
    halves = [taken(whole, order[:4]), taken(whole, order[4:])]
    specs = tuple(ShardSpec(f"other-{index}.tar", half.num_rows) for index, half in enumerate(halves))
    return Draft(header or store.header, specs, 16, halves.__getitem__).write(path)


def by_key(store: TicketStore) -> dict[str, np.ndarray | None]:
    """Key -> ranking, or None where the image was skipped."""
    parts = [store.read(index) for index in range(len(store.shards))]
    return {
        key: None if part.skipped[row] else part.patches[row] for part in parts for row, key in enumerate(part.keys)
    }


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10_000), st.integers(2, 3), st.integers(1, 12))
def test_prefixes_of_the_fused_rankings_are_the_sets(seed: int, num_files: int, num_patches: int) -> None:
    """For every n, union and intersection of the n best are prefixes of the new ranking; the order of files does not
    matter; fusing a ranking with itself changes nothing."""
    parts = [rankings(seed + file, 1, num_patches) for file in range(num_files)]
    both = {name: fused(parts, num_patches, name)[0] for name in ("union", "intersection")}
    for n in range(1, num_patches + 1):
        best = [set(part[0, :n].tolist()) for part in parts]
        for name, wanted in (("union", set.union(*best)), ("intersection", set.intersection(*best))):
            assert set(both[name][: len(wanted)].tolist()) == wanted
    for name, ranking in both.items():
        assert sorted(ranking.tolist()) == list(range(num_patches))
        assert fused(parts[::-1], num_patches, name)[0].tolist() == ranking.tolist()
        assert fused([parts[0], parts[0]], num_patches, name)[0].tolist() == parts[0][0].tolist()


def test_union_and_intersection_of_files_packed_otherwise(store_path: Path, tmp_path: Path) -> None:
    """Rows are matched by key, stand in the first file's order, and are skipped where any parent skips them."""
    first = TicketStore(store_path)
    second = repacked(first, tmp_path / "second", 1)
    ours, theirs = by_key(first), by_key(second)
    for name, operation in (("union", union), ("intersection", intersection)):
        made = operation([first, second]).write(tmp_path / name)
        assert made.verify() == []
        assert [shard.name for shard in made.shards] == [shard.name for shard in first.shards]
        assert made.content == first.content
        for key, ranking in by_key(made).items():
            if ours[key] is None:
                assert ranking is None
                continue
            assert ranking is not None
            expected = fused([ours[key][None], theirs[key][None]], P, name)[0]  # type: ignore[index]
            assert ranking.tolist() == expected.tolist()


def test_a_derived_file_says_what_it_was_made_of(store_path: Path, tmp_path: Path) -> None:
    """Operation and parents stand in the header; no selector is claimed that did not choose."""
    plain = TicketStore(store_path)
    known = dataclasses.replace(plain.header, extensions={"lab": "x", "mine": 1})
    first = repacked(plain, tmp_path / "first", 2, known)
    second = repacked(plain, tmp_path / "second", 1, dataclasses.replace(known, extensions={"lab": "x", "mine": 2}))
    header = union([first, second], k=4).write(tmp_path / "made").header
    assert header.extensions.keys() == {"lab", "derived"}
    derived = header.extensions["derived"]
    assert derived["operation"] == "union"
    assert [parent["identity"] for parent in derived["parents"]] == [first.identity, second.identity]
    assert (header.k, header.keep, header.selector.model, header.selector.blocks) == (4, "0.25", "union", ())


def test_files_of_form_top_fuse_what_they_hold(tmp_path: Path) -> None:
    """A patch that a file does not hold ranks after all it holds: the n best are exact up to k."""
    first = TicketStore(make_store(tmp_path / "first", form="top"))
    second = repacked(TicketStore(make_store(tmp_path / "full")), tmp_path / "second", 3)
    made = union([first, second], k=4).write(tmp_path / "made")
    assert (made.header.form, made.num_patches_stored) == ("top", 4)
    ours, theirs = by_key(first), by_key(second)
    for key, ranking in by_key(made).items():
        best = {*ours[key][:2].tolist(), *theirs[key][:2].tolist()}  # type: ignore[index]
        assert set(ranking[: len(best)].tolist()) == best  # type: ignore[index]


def test_the_inverse_is_the_complement_and_its_own_inverse(store_path: Path, tmp_path: Path) -> None:
    """Its ticket is exactly what the ticket leaves out; twice inverted the rankings are as they were."""
    store = TicketStore(store_path)
    once = inverse(store).write(tmp_path / "once")
    twice = inverse(once).write(tmp_path / "twice")
    assert (once.header.k, twice.header.k) == (P - K, K)
    assert np.array_equal(once.read(0).gap, store.read(0).gap)
    for key, ranking in by_key(store).items():
        out, back = by_key(once)[key], by_key(twice)[key]
        if ranking is not None:
            assert out is not None
            assert back is not None
            assert set(out[: P - K].tolist()) == set(range(P)) - set(ranking[:K].tolist())
            assert back.tolist() == ranking.tolist()


def test_algebra_refuses_what_has_no_meaning(store_path: Path, tmp_path: Path) -> None:
    """Other frames, other rows, other k unsaid, form top inverted, keep 1 inverted."""
    store = TicketStore(store_path)
    other_keys = TicketStore(make_store(tmp_path / "other", (3, 2, 5)))
    other_k = repacked(store, tmp_path / "k", 2, dataclasses.replace(store.header, k=5))
    with pytest.raises(MismatchError, match=r"keep \[5, 6\] patches; say how many the union keeps"):
        union([store, other_k])
    with pytest.raises(MismatchError, match=r"has no row for 3 keys of shard toy-000001.tar of toy.zarr: n0001_2"):
        union([store, other_keys]).write(tmp_path / "made")
    with pytest.raises(MismatchError, match=r"has 10 rows, few 3"):
        union([store, subset_by_keys(store, ["n0000_0", "n0001_1", "n0002_1"]).write(tmp_path / "few")])
    with pytest.raises(InputError, match="17 patches were asked for, the rows hold 16"):
        union([store, store], k=17)
    with pytest.raises(InputError, match="at least two ticket files"):
        union([store])
    with pytest.raises(InputError, match="the inverse needs all patches ranked; top is of form 'top'"):
        inverse(TicketStore(make_store(tmp_path / "top", form="top")))
    with pytest.raises(InputError, match="keeps all 16 patches"):
        inverse(TicketStore(make_store(tmp_path / "all", k=16)))


def test_halves_merge_to_the_whole(store_path: Path, tmp_path: Path) -> None:
    """Two labs' shards give the rows of one run, in the order of shard names."""
    whole = TicketStore(store_path)
    labels = np.repeat([0, 1, 2], [3, 5, 2])
    late = subset_by_classes(whole, [1, 2], labels).write(tmp_path / "late")
    early = subset_by_classes(whole, [0], labels).write(tmp_path / "early")
    made = merge([late, early]).write(tmp_path / "made")
    assert made.verify() == []
    assert [(s.name, s.rows, s.skipped) for s in made.shards] == [(s.name, s.rows, s.skipped) for s in whole.shards]
    assert made.content == whole.content
    keys = sorted(key for index in range(3) for key in whole.keys(index))
    assert made.header.dataset.count == 10
    assert made.header.dataset.fingerprint == hashlib.sha256("".join(f"{key}\0" for key in keys).encode()).hexdigest()
    for index in range(3):
        assert np.array_equal(made.patches(index), whole.patches(index))
        assert np.array_equal(made.gap(index), whole.gap(index), equal_nan=True)


def test_a_merge_refuses_shards_keys_or_settings_that_clash(store_path: Path, tmp_path: Path) -> None:
    """Nobody's rows win over another's: every clash is named."""
    store = TicketStore(store_path)
    with pytest.raises(MismatchError, match=r"the shard toy-000000.tar stands in toy.zarr and in toy.zarr"):
        merge([store, store])
    other = TicketStore(make_store(tmp_path / "other", k=5))
    with pytest.raises(MismatchError, match=r"made in another way(.|\n)*k: file has 6, asked 5"):
        merge([store, other])
    rollout = TicketStore(make_store(tmp_path / "rollout", extensions={"ranker": "rollout"}))
    with pytest.raises(MismatchError, match=r"extensions\.ranker: file has nothing, asked rollout"):
        merge([store, rollout])
    with pytest.raises(InputError, match="at least two ticket files, got 1"):
        merge([store])
    rows = store.read(0)
    renamed = Draft(make_header(), (ShardSpec("late.tar", rows.num_rows),), 12, lambda _: rows).write(tmp_path / "late")
    with pytest.raises(MismatchError, match="the key 'n0000_0' stands in two places"):
        merge([store, renamed])


def test_subsets_keep_order_tickets_and_skipped_rows(store_path: Path, tmp_path: Path) -> None:
    """By keys in any order, by class, by another file's keys; empty shards vanish."""
    store = TicketStore(store_path)
    made = subset_by_keys(store, ["n0001_4", "n0000_2", "n0001_0"]).write(tmp_path / "keys")
    assert [made.keys(index) for index in range(2)] == [("n0000_2",), ("n0001_0", "n0001_4")]
    assert (made.num_skipped, made.header.dataset.count) == (1, 3)
    assert np.array_equal(made.patches(0)[0], store.patches(0)[2])
    again = common_rows(store, made).write(tmp_path / "common")
    assert by_key(again).keys() == by_key(made).keys()
    chosen = subset_by_classes(store, [4], lambda shard: np.full(store.shards[shard].rows, shard + 3)).write(
        tmp_path / "class"
    )
    assert [shard.name for shard in chosen.shards] == ["toy-000001.tar"]
    with pytest.raises(MissingTicketError, match="lacks 1 of 2 keys: nowhere"):
        subset_by_keys(store, ["n0000_0", "nowhere"])
    with pytest.raises(InputError, match=r"no row of toy\.zarr is chosen"):
        subset_by_classes(store, [9], np.zeros(10, dtype=np.int64))
    with pytest.raises(InputError, match="no key was given"):
        subset_by_keys(store, [])


@pytest.mark.parametrize("kind", KINDS)
def test_controls_are_ordinary_files_about_the_same_images(kind: str, store_path: Path, tmp_path: Path) -> None:
    """Same keys, hashes, skipped rows, k and form; another choice of patches; the header says which control."""
    store = TicketStore(store_path)
    made = control(store, kind, seed=3).write(tmp_path / "made")  # type: ignore[arg-type]
    assert made.verify() == []
    assert (made.content, made.header.k, made.header.form) == (store.content, K, "full")
    assert made.header.extensions["derived"]["kind"] == kind
    assert made.header.selector.model == f"control: {kind}"
    assert [made.keys(index) for index in range(3)] == [store.keys(index) for index in range(3)]
    assert any(not np.array_equal(made.patches(index), store.patches(index)) for index in range(3))
    assert made.skipped(1).tolist() == store.skipped(1).tolist()


def test_another_images_tickets_are_all_used_once_and_never_ones_own(store_path: Path, tmp_path: Path) -> None:
    """The cycle is a permutation without fixed points; gaps go along; the seed names it."""
    store = TicketStore(store_path)
    before = {key: row for key, row in by_key(store).items() if row is not None}
    for seed in range(4):
        made = control(store, "other-image", seed).write(tmp_path / f"made-{seed}")
        after = {key: row for key, row in by_key(made).items() if row is not None}
        assert sorted(map(bytes, before.values())) == sorted(map(bytes, after.values()))
        assert all(not np.array_equal(before[key], after[key]) for key in before)
        gap = {
            bytes(row): g for index in range(3) for row, g in zip(store.patches(index), store.gap(index), strict=True)
        }
        assert all(
            gap[bytes(row)] == g
            for index in range(3)
            for row, g, bad in zip(made.patches(index), made.gap(index), made.skipped(index), strict=True)
            if not bad
        )


def test_random_controls_depend_on_seed_and_key_alone(store_path: Path, tmp_path: Path) -> None:
    """Another packing of the same keys has the same random tickets; another seed has others."""
    store = TicketStore(store_path)
    other = repacked(store, tmp_path / "other", 5)
    here = by_key(control(store, "random", 1).write(tmp_path / "a"))
    there = by_key(control(other, "random", 1).write(tmp_path / "b"))
    more = by_key(control(other, "random", 2).write(tmp_path / "c"))
    kept = [key for key, row in here.items() if row is not None]
    assert all(np.array_equal(here[key], there[key]) for key in kept)
    assert not all(np.array_equal(there[key], more[key]) for key in kept)


def test_centre_edges_and_inverse_are_what_they_say(store_path: Path, tmp_path: Path) -> None:
    """On 4x4: the middle four first, the corners first, the worst first."""
    store = TicketStore(store_path)
    kinds = ("centre", "edges", "inverse")
    made = {kind: control(store, kind).write(tmp_path / kind).patches(0)[0] for kind in kinds}  # type: ignore[arg-type]
    assert made["centre"][:4].tolist() == [5, 6, 9, 10]
    assert made["centre"][-4:].tolist() == [0, 3, 12, 15]
    assert made["edges"][:4].tolist() == [0, 3, 12, 15]
    assert set(made["edges"][-4:].tolist()) == {5, 6, 9, 10}
    assert made["inverse"].tolist() == store.patches(0)[0][::-1].tolist()
    assert edges_first(make_header(grid=Grid(1, 5), k=2, stage_tokens=(3, 3, 2))).tolist() == [0, 4, 1, 3, 2]


def test_controls_refuse_what_they_cannot_make(store_path: Path, tmp_path: Path) -> None:
    """An unknown kind, an inverse without a full ranking, another image where there is none."""
    store = TicketStore(store_path)
    with pytest.raises(InputError, match="a control is one of random, centre, edges, inverse, other-image, got 'best'"):
        control(store, "best")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="an inverse control needs all patches ranked"):
        control(TicketStore(make_store(tmp_path / "top", form="top")), "inverse")
    with pytest.raises(InputError, match="fewer than two tickets"):
        control(TicketStore(make_store(tmp_path / "one", (1,))), "other-image")


def test_an_interrupted_operation_goes_on_where_it_was(store_path: Path, tmp_path: Path) -> None:
    """Shards that were written stay; the finished file is the one an uninterrupted run gives."""
    store = TicketStore(store_path)
    draft = control(store, "random", 1)
    asked: list[int] = []

    def failing(shard_index: int) -> ShardTickets:
        asked.append(shard_index)
        if asked == [0, 1]:
            raise KeyboardInterrupt
        return draft.rows(shard_index)

    with pytest.raises(KeyboardInterrupt):
        dataclasses.replace(draft, rows=failing).write(tmp_path / "made")
    assert not (tmp_path / "made").exists()
    made = dataclasses.replace(draft, rows=failing).write(tmp_path / "made")
    assert asked == [0, 1, 1, 2]
    assert made.identity == draft.write(tmp_path / "straight").identity


def test_a_file_that_another_process_writes_is_left_to_it(store_path: Path, tmp_path: Path) -> None:
    """The command says so instead of waiting or writing over it."""
    store = TicketStore(store_path)
    draft = control(store, "random", 1)
    writer = TicketWriter(tmp_path / "made", draft.header, draft.shards, draft.key_width)
    with writer.claim(1) as mine:
        assert mine
        with pytest.raises(LockedError, match="another process is writing the same file"):
            draft.write(tmp_path / "made")


def test_nothing_is_overwritten_and_a_second_run_changes_nothing(store_path: Path, tmp_path: Path) -> None:
    """The same draft finds its file done; another draft is refused and the file stays as it was."""
    store = TicketStore(store_path)
    first = control(store, "random", 1).write(tmp_path / "made")
    assert control(store, "random", 1).write(tmp_path / "made").identity == first.identity
    with pytest.raises(MismatchError, match=r"extensions.derived.seed: file has 1, asked 2"):
        control(store, "random", 2).write(tmp_path / "made")
    (tmp_path / "text").write_text("mine")
    with pytest.raises(DlthError, match="exists and is not a finished ticket file"):
        control(store, "random", 1).write(tmp_path / "text")
    assert TicketStore(tmp_path / "made").identity == first.identity
    assert (tmp_path / "text").read_text() == "mine"


def test_a_file_says_what_its_tickets_are(tmp_path: Path) -> None:
    """Selector with weights and blocks, control and its kind, set operations, what was done since; texts stay text."""
    one, two = (TicketStore(make_store(tmp_path / f"{name}.zarr")) for name in "ab")
    assert describe(one.header) == f"selector vit_tiny (weights {'ab' * 6}…, random), blocks 0,1,2"
    centre = control(one, "centre").write(tmp_path / "centre.zarr")
    made = f"made from tickets of vit_tiny (identity {one.identity[:12]}…)"
    assert describe(centre.header) == f"control: centre; {made}"
    assert describe(union([one, two]).header) == f"union; {made}, vit_tiny (identity {two.identity[:12]}…)"
    some = subset_by_keys(centre, one.keys(0)[:2]).header
    assert (
        describe(some)
        == f"control: centre; subset; made from tickets of control: centre (identity {centre.identity[:12]}…)"
    )
    part = subset_by_keys(one, one.keys(0)[:2]).header
    assert describe(part) == f"selector vit_tiny (weights {'ab' * 6}…, random), blocks 0,1,2; subset; {made}"
    rollout = TicketStore(make_store(tmp_path / "rollout.zarr", extensions={"ranker": "roll\x1bout"}))
    assert describe(rollout.header) == describe(one.header) + ", ranked by roll\\x1bout"
    both = union([one, rollout]).header
    assert f"vit_tiny (ranked by roll\\x1bout, identity {rollout.identity[:12]}…)" in describe(both)
    assert "ranked by roll" not in describe(control(rollout, "centre").header).partition(";")[0]
    foreign = make_header(
        selector=unscored("their\x1b[2J code", "imported"),
        stage_tokens=(),
        extensions={"derived": {"operation": "import", "file_sha256": "cd" * 32}},
    )
    assert describe(foreign) == f"imported, ranked by their\\x1b[2J code (file sha256 {'cd' * 6}…)"
    for odd in ("text", {"operation": 7, "parents": "x"}, {"parents": [1, {"identity": None}]}):
        assert "vit_tiny" in describe(make_header(extensions={"derived": odd}))
