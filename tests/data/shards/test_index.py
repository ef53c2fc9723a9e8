"""The index: exactly the samples that are there, exactly their bytes, found again fast; nothing lost without a word."""

import hashlib
import json
import multiprocessing
import os
import pickle
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from makers.pictures import make_image, make_picture, make_tar
from makers.tampering import flip, flipped

from dlth.data.images.decode import decode
from dlth.data.shards.index import ShardIndex, check_shards, open_index
from dlth.data.shards.scan import split_name
from dlth.tickets.errors import (
    DamageError,
    DlthError,
    InputError,
    LimitError,
    MismatchError,
    MissingFileError,
    UnsafeError,
)

JPEG = b"\xff\xd8\xff" + b"j" * 100


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DLTH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def one(tmp_path: Path) -> Callable[..., ShardIndex]:
    """``one(member, ...)`` -> the index of one shard of those members, made anew."""

    def make(*members: tuple[str, bytes]) -> ShardIndex:
        return open_index(str(make_tar(tmp_path / "s.tar", members)), rebuild=True)

    return make


def index_file(folder: Path) -> Path:
    [path] = folder.glob("dlth-index-*.safetensors")
    return path


def same(first: ShardIndex, second: ShardIndex) -> bool:
    arrays = ("row_start", "image_offset", "image_size", "label", "key_bytes", "key_start")
    equal = all(np.array_equal(getattr(first, name), getattr(second, name)) for name in arrays)
    return equal and first.shards == second.shards and first.fingerprint == second.fingerprint


def test_index_agrees_with_webdataset(make_shards: Any) -> None:
    """Keys, order, labels and image bytes are those that webdataset reads from the same shards."""
    shards = make_shards(3, [4, 1, 5])
    index = open_index(shards.spec)
    dataset = webdataset.WebDataset([str(path) for path in shards.paths], shardshuffle=False)
    samples = list(dataset)
    assert [index.key(i) for i in range(10)] == [sample["__key__"] for sample in samples] == shards.all_keys
    assert index.label.tolist() == [int(sample["cls"]) for sample in samples]
    assert index.read_many(range(10)) == [sample["jpg"] for sample in samples]
    assert index.row_start.tolist() == [0, 4, 5, 10]
    assert [index.shard_of(i) for i in (0, 3, 4, 5, 9)] == [0, 0, 1, 2, 2]
    assert (index.num_samples, index.num_classes, index.name) == (10, 4, "train")
    assert [index.keys(s) for s in range(3)] == [list(keys) for keys in shards.keys]
    assert index.key_width == max(len(key) for key in shards.all_keys)


def test_the_fingerprint_is_pinned(one: Any, tmp_path: Path) -> None:
    """sha256 over the sorted keys, each followed by NUL: if it changes, no ticket file knows its data set any more."""
    expected = hashlib.sha256(b"a\0b\0c\0").hexdigest()
    assert one(("b.jpg", JPEG), ("a.jpg", JPEG), ("c.jpg", JPEG)).fingerprint == expected
    paths = [make_tar(tmp_path / f"{key}.tar", [(f"{key}.png", JPEG)]) for key in "bca"]
    assert open_index(",".join(map(str, paths))).fingerprint == expected


@pytest.mark.parametrize(
    ("name", "key", "suffix"),
    [
        ("n01440764_10026.JPEG", "n01440764_10026", "jpeg"),
        ("train/n01/n01_1.jpg", "train/n01/n01_1", "jpg"),
        ("./a/b.cls", "a/b", "cls"),
        ("././b.cls", "b", "cls"),
        ("IMG.01.jpg", "IMG", "01.jpg"),
        ("v1.2/x.jpg", "v1.2/x", "jpg"),
        ("a//b/./c.jpg", "a//b/./c", "jpg"),
        ("README", "", ""),
        (".hidden.jpg", "", ""),
        ("a.", "a", ""),
    ],
)
def test_keys_follow_webdatasets_rule(name: str, key: str, suffix: str) -> None:
    """The path up to the base name's first dot; only a leading ./ goes (webdataset keeps that)."""
    assert split_name(name) == (key, suffix)
    theirs = webdataset.tariterators.base_plus_ext(name)
    assert (theirs[0] or "").removeprefix("./").removeprefix("./") == key


def test_foreign_shards_work_as_they_are(one: Any) -> None:
    """Any case, folders, members apart, captions, a PNG named .JPEG, grey and CMYK: all images, nothing else read."""
    picture = make_picture(1)
    images = {
        "t/a": make_image(picture, "PNG"),
        "t/b": make_image(picture, mode="L"),
        "t/c": make_image(picture, mode="CMYK"),
        "d": make_image(picture, "WEBP"),
    }
    index = one(
        ("./t/a.JPEG", images["t/a"]),
        ("t/a.json", b"{}"),
        ("t/b.CLS", b"1\n"),
        ("t/b.txt", b"caption"),
        ("t/b.pkl", b"cos\nsystem\n(S'false'\ntR."),
        ("t/b.Jpg", images["t/b"]),
        ("t/c.cls", b" 2 "),
        ("t/a.cls", b"0"),
        ("t/c.jpg", images["t/c"]),
        ("d.WebP", images["d"]),
        ("d.mask.png", b"no image of its own"),
        ("README", b"hello"),
    )
    assert index.keys(0) == ["t/a", "t/b", "t/c", "d"]
    assert index.label.tolist() == [0, 1, 2, -1]
    assert index.num_ignored == 5
    assert index.read_many(range(4)) == list(images.values())
    assert {tuple(decode(index.read(i), where="k").shape) for i in range(4)} == {(3, 48, 64)}


REFUSED: dict[str, tuple[list[tuple[str, bytes]], type[DlthError], str]] = {
    "two images of one key": (
        [("a.jpg", JPEG), ("b.jpg", JPEG), ("a.PNG", JPEG)],
        InputError,
        r"key 'a' has two members of one kind: a.jpg at byte 512 and a.PNG at byte 2560",
    ),
    "two labels": ([("a.jpg", JPEG), ("a.cls", b"1"), ("a.cls", b"2")], InputError, "'a' has two members of one"),
    "a folder that webdataset skips": (
        [("b.jpg", JPEG), ("__a__/a.jpg", JPEG)],
        DamageError,
        "__a__/a.jpg: the folder is one that webdataset's readers skip",
    ),
    "a label alone": ([("a.jpg", JPEG), ("b.cls", b"1")], DamageError, "b.cls: the label of 'b' has no image"),
    "a dot in the name": (
        [("a.jpg", JPEG), ("b.1.jpg", JPEG)],
        DamageError,
        r"'b' \(a key ends at the first dot\) has",
    ),
    "an image not read": ([("a.jpg", JPEG), ("b.tiff", JPEG)], DamageError, "b.tiff: the sample 'b' .* has no jpg"),
    "a label of letters": ([("a.jpg", JPEG), ("a.cls", b"cat")], DamageError, "in digits, found 'cat' .3 bytes"),
    "an empty label": ([("a.jpg", JPEG), ("a.cls", b"")], DamageError, r"found '' \(0 bytes\)"),
    "a pickled label": ([("a.jpg", JPEG), ("a.cls", b"\x80\x04K\x01.")], DamageError, r"found '\\x80"),
    "a long label": ([("a.jpg", JPEG), ("a.cls", b"1" * 33)], DamageError, r"\(33 bytes\)"),
    "a huge label": ([("a.jpg", JPEG), ("a.cls", b"2147483648")], DamageError, "found '2147483648'"),
    "a label for gigabytes": ([("a.jpg", JPEG), ("a.cls", b"1000000")], DamageError, "'a' must be .* 0 to 999999"),
    "a label below 0": (
        [("a.jpg", JPEG), ("a.cls", b"-1")],
        DamageError,
        "'a' must be .* image of no class has no .cls",
    ),
    "digits of another script": ([("a.jpg", JPEG), ("a.cls", "１".encode())], DamageError, "class number in digits"),
    "a path out": ([("../a.jpg", JPEG)], UnsafeError, "the key '../a' points out of its folder"),
    "an absolute path": ([("/etc/a.jpg", JPEG)], UnsafeError, "the key '/etc/a' points out of its folder"),
    "an escape in a key": ([("\x1b[2Ja.cls", b"1")], DamageError, r"label of '\\\\x1b\[2Ja' has no image"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_would_lose_or_mix_up_a_sample_is_refused_by_name(case: str, one: Any) -> None:
    """Shard, byte, key and members are named; no sample is dropped and none gets another's label."""
    members, error, message = REFUSED[case]
    with pytest.raises(error, match=rf"s.tar: .*{message}"):
        one(*members)


def test_a_key_of_a_thousand_bytes_is_refused(tmp_path: Path) -> None:
    """Keys stand in a fixed width in ticket files."""
    path = make_tar(tmp_path / "s.tar", [("k" * 1025 + ".jpg", JPEG)], 2)
    with pytest.raises(LimitError, match="a key of 1025 bytes; at most 1024"):
        open_index(str(path))


def test_duplicate_keys_across_shards_name_both_places(tmp_path: Path) -> None:
    """The same key in two shards would give one image the other's ticket."""
    make_tar(tmp_path / "a.tar", [("x.jpg", JPEG), ("y.jpg", JPEG)])
    make_tar(tmp_path / "b.tar", [("z.jpg", JPEG), ("y.png", JPEG)])
    with pytest.raises(InputError, match=r"'y' names two samples: shard a.tar, byte 1536, and shard b.tar, byte 1536"):
        open_index(str(tmp_path))


def test_every_cut_of_a_shard_is_noticed(tmp_path: Path, make_shards: Any) -> None:
    """Cut at each 64-byte step, a shard is an error or (cut in its padding) has every sample: never fewer."""
    shards = make_shards(1, 3, size=(8, 8), quality=30)
    whole, path = shards.paths[0].read_bytes(), tmp_path / "cut.tar"
    complete = nameless = 0
    for length in range(0, len(whole), 64):
        path.write_bytes(whole[:length])
        try:
            index = open_index(str(path), rebuild=True)
        except DamageError as error:
            nameless += error.shard != str(path)
        else:
            assert index.keys(0) == list(shards.keys[0])
            complete += 1
    assert nameless == 0
    assert 0 < complete < 16


def test_flips_anywhere_in_a_shard_never_lose_a_sample(tmp_path: Path, make_shards: Any) -> None:
    """400 seeded flips: an error, or all samples under their keys, in which an image's change shows in its bytes.

    What is left to the digests is a digit of a label turned into another digit.
    """
    shards = make_shards(1, 3, size=(8, 8), quality=30)
    whole, path = shards.paths[0].read_bytes(), tmp_path / "flip.tar"
    path.write_bytes(whole)
    rng = np.random.default_rng(0)
    images = open_index(shards.spec).read_many(range(3))
    counts = {"refused": 0, "image": 0, "label": 0, "unused": 0}
    for place, bit in zip(rng.integers(0, len(whole), 400).tolist(), rng.integers(0, 8, 400).tolist(), strict=True):
        with open(path, "r+b") as file:
            file.seek(place)
            file.write(bytes([whole[place] ^ 1 << bit]))
        try:
            index = open_index(str(path), rebuild=True)
        except DlthError:
            counts["refused"] += 1
        else:
            assert index.keys(0) == list(shards.keys[0])
            changed = sum(a != b for a, b in zip(index.read_many(range(3)), images, strict=True))
            relabelled = tuple(index.label.tolist()) != shards.labels[0]
            assert changed + relabelled <= 1
            counts["image" if changed else "label" if relabelled else "unused"] += 1
        with open(path, "r+b") as file:
            file.seek(place)
            file.write(whole[place : place + 1])
    assert counts["refused"] > 80
    assert counts["image"] > 20
    assert counts["label"] <= 3


def test_a_made_index_is_found_again(make_shards: Any, cache: Path) -> None:
    """The second time no tar is read: the index beside the shards is equal to the first, shard by shard."""
    shards = make_shards(2, 3)
    calls: list[tuple[int, int]] = []
    first = open_index(shards.spec, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(1, 2), (2, 2)]
    second = open_index(shards.spec, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(1, 2), (2, 2)]
    assert same(first, second)
    assert same(first, open_index(shards.spec, rebuild=True))
    assert index_file(shards.folder).stat().st_mode & 0o777 == 0o644


def test_a_changed_shard_makes_the_index_stale(make_shards: Any, tmp_path: Path) -> None:
    """Another size, another time, a shard more or less: the index is made anew; an open one refuses to read on."""
    shards, other = make_shards(2, 3), make_shards(2, 3, seed=7, folder=tmp_path / "other")
    before = open_index(shards.spec)
    shutil.copy(other.paths[1], shards.paths[1])
    assert open_index(shards.spec).keys(1) == list(other.keys[1])
    with pytest.raises(DamageError, match=r"train-000001.tar changed after its index was made: it had \d+ bytes"):
        before.read(3)
    assert len(before.read(0)) > 0
    shards.paths[1].unlink()
    assert open_index(shards.spec).num_samples == 3
    with pytest.raises(MissingFileError, match=r"train-000001.tar is missing"):
        before.read_many([0, 5])


def test_where_the_index_cannot_lie_beside_the_shards(make_shards: Any, cache: Path) -> None:
    """A folder that takes no file (a read-only mount; here a folder in its place) is passed over for the cache."""
    shards = make_shards(1, 3)
    first = open_index(shards.spec)
    beside = index_file(shards.folder)
    beside.unlink()
    (beside / "x").mkdir(parents=True)
    assert same(first, open_index(shards.spec))
    assert [path.suffix for path in (cache / "indexes").iterdir()] == [".safetensors"]
    read: list[int] = []
    assert same(first, open_index(shards.spec, progress=lambda done, total: read.append(done)))
    assert read == []
    assert not list(shards.folder.glob(".dlth-index*"))


def test_a_damaged_index_is_made_anew(make_shards: Any) -> None:
    """Flipped, cut, empty or foreign: the index file counts as absent, and the result is the sound one."""
    shards = make_shards(2, 3)
    sound = open_index(shards.spec)
    path = index_file(shards.folder)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    mutants = [whole[:length] for length in range(0, len(whole), 97)] + [b"", b"\0" * 50, whole + b"x", b"{}" * 40]
    for place, bit in zip(rng.integers(0, len(whole), 100), rng.integers(0, 8, 100), strict=True):
        mutants.append(flipped(whole, 8 * int(place) + int(bit)))
    for mutant in mutants:
        path.write_bytes(mutant)
        assert same(open_index(shards.spec), sound)
        path.unlink(missing_ok=True)


@pytest.mark.parametrize(
    ("array", "place", "value"),
    [
        ("image_offset", 0, 0),
        ("image_offset", 2, 10**15),
        ("image_offset", 1, -512),
        ("image_size", 0, -1),
        ("image_size", 2, 2**62),
        ("label", 1, -7),
        ("key_start", 0, 5),
        ("key_start", 2, 10**9),
        ("key_start", 3, 1),
    ],
)
def test_an_index_with_a_right_digest_and_wrong_numbers(array: str, place: int, value: int, make_shards: Any) -> None:
    """Whoever rewrites the digest still cannot point outside the shards or the key buffer."""
    shards = make_shards(1, 4)
    lying = open_index(shards.spec)
    getattr(lying, array).setflags(write=True)
    getattr(lying, array)[place] = value
    from dlth.data.shards.index_file import write_index

    assert write_index(index_file(shards.folder), lying)
    assert not same(open_index(shards.spec), lying)
    assert open_index(shards.spec).keys(0) == list(shards.keys[0])


def test_reading_notices_what_the_index_does_not_know(make_shards: Any) -> None:
    """Time and size kept, content moved: the header before each image must fit, or shard, key and byte are named."""
    shards = make_shards(1, 3)
    index = open_index(shards.spec)
    path, before = shards.paths[0], shards.paths[0].stat()
    flip(path, 8 * (int(index.image_offset[1]) - 500))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    place = f"shard train-000000.tar, key {index.key(1)}: byte {index.image_offset[1]}"
    what = f"an image of {index.image_size[1]} bytes is expected, the header before them is damaged"
    with pytest.raises(DamageError, match=f"{place}: {what}"):
        index.read_many([0, 1, 2])
    assert len(index.read_many([0, 2])) == 2


def test_a_shard_cut_while_it_is_open(make_shards: Any) -> None:
    """A short read is never handed out as an image."""
    shards = make_shards(1, 3)
    index = open_index(shards.spec)
    index.read(0)
    os.truncate(shards.paths[0], int(index.image_offset[2]) + 10)
    with pytest.raises(DamageError, match=f"key {index.key(2)}: byte {index.image_offset[2]}: .* only 10 are there"):
        index.read(2)


def test_samples_outside_the_data_set(make_shards: Any) -> None:
    """A negative or too large number is an error and does not wrap around."""
    index = open_index(make_shards(1, 3).spec)
    for call in (index.read, index.key, lambda i: index.read_many([0, i])):
        for sample in (-1, 3):
            with pytest.raises(IndexError, match=f"{sample}"):
                call(sample)
    assert index.read_many([]) == []


def test_declared_counts_and_digests(make_shards: Any) -> None:
    """Fewer samples or bytes than `_info.json` declares are refused at once; another digest is found by the check."""
    shards = make_shards(2, 3)
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in shards.paths]
    sizes = [path.stat().st_size for path in shards.paths]

    def declare(rows: list[int], sizes: list[int], digests: list[str]) -> None:
        entry = {
            "filenames": [path.name for path in shards.paths],
            "shard_lengths": rows,
            "shard_sizes": sizes,
            "shard_sha256": digests,
        }
        (shards.folder / "_info.json").write_text(json.dumps({"splits": {"train": entry}}))

    declare([3, 3], sizes, digests)
    assert open_index(shards.spec, rebuild=True).num_samples == 6
    assert check_shards(shards.spec) == []
    declare([3, 4], sizes, digests)
    with pytest.raises(MismatchError, match=r"train-000001.tar: declared are 4 samples, found 3"):
        open_index(shards.spec, rebuild=True)
    with pytest.raises(MismatchError, match=r"train-000001.tar: declared are 4 samples, found 3"):
        open_index(shards.spec)
    declare([3, 3], [sizes[0] + 1, sizes[1]], digests)
    with pytest.raises(MismatchError, match=rf"train-000000.tar: declared are {sizes[0] + 1} bytes, found {sizes[0]}"):
        open_index(shards.spec)
    declare([3, 3], sizes, ["0" * 64, digests[1]])
    [error] = check_shards(shards.spec)
    assert isinstance(error, DamageError)
    assert f"sha256 is {digests[0]}, declared is 0000" in str(error)
    shards.paths[1].write_bytes(shards.paths[1].read_bytes()[:-1] + b"x")
    assert len(check_shards(shards.spec)) == 2


def test_few_files_stay_open(make_shards: Any) -> None:
    """Reading over many shards holds a bounded number of descriptors."""
    shards = make_shards(40, 1)
    index = open_index(shards.spec)
    before = len(os.listdir("/proc/self/fd"))
    images = index.read_many(np.arange(40)[::-1])
    assert len(os.listdir("/proc/self/fd")) <= before + 16
    assert images == [index.read(i) for i in range(39, -1, -1)]
    del index
    assert len(os.listdir("/proc/self/fd")) <= before


def test_threads_share_an_index(make_shards: Any) -> None:
    """Closing the least recently used shard never takes a file from a thread that reads it."""
    index = open_index(make_shards(40, 2).spec)
    expected = index.read_many(range(80))
    orders = [np.random.default_rng(seed).permutation(80) for seed in range(16)]
    with ThreadPoolExecutor(8) as pool:
        for order, images in zip(orders, pool.map(index.read_many, orders), strict=True):
            assert images == [expected[i] for i in order]


def _read_in_child(index: ShardIndex, expected: list[bytes], results: Any) -> None:
    results.put(index.read_many(range(len(expected))) == expected)


def test_an_index_goes_to_other_processes(make_shards: Any) -> None:
    """Pickled or forked, with files open, it reads the same there."""
    index = open_index(make_shards(2, 3).spec)
    expected = index.read_many(range(6))
    copy = pickle.loads(pickle.dumps(index))
    assert same(index, copy)
    assert copy.read_many(range(6)) == expected
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    child = context.Process(target=_read_in_child, args=(index, expected, results))
    child.start()
    assert results.get(timeout=60)
    child.join(60)
    assert index.read_many(range(6)) == expected
