"""`pack` on image folders: exact bytes, the same shards whatever happens on the way, and nothing left out unsaid."""

import fcntl
import gzip
import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import webdataset
from makers.pictures import make_image, make_picture
from makers.tampering import flip
from timm.data.readers.reader_wds import _load_info, _parse_split_info

from dlth.data.packing.imagenet import validation_labels
from dlth.data.packing.pack import PackReport, pack
from dlth.tickets.errors import (
    DamageError,
    DlthError,
    InputError,
    LockedError,
    MismatchError,
    SchemaError,
    SpaceError,
    UnsafeError,
)

MakeFolder = Callable[..., Path]


@pytest.fixture
def make_folder(tmp_path: Path) -> MakeFolder:
    """``make_folder(name, classes, per_class)`` -> folder of class folders with real JPEGs named CLASS_NUMBER.jpg."""

    def make(name: str = "images", classes: tuple[str, ...] = ("cat", "dog", "owl"), per_class: int = 4) -> Path:
        for label, class_name in enumerate(classes):
            folder = tmp_path / name / class_name
            folder.mkdir(parents=True)
            for number in range(per_class):
                jpeg = make_image(make_picture(label * 100 + number, 16 + number, 24))
                (folder / f"{class_name}_{number}.jpg").write_bytes(jpeg)
        return tmp_path / name

    return make


def members(folder: Path, split: str) -> list[tuple[str, bytes]]:
    """Names and contents of all members, in the order of the shards."""
    found = []
    for path in sorted(folder.glob(f"{split}-*.tar")):
        with tarfile.open(path) as tar:
            found += [(member.name, tar.extractfile(member).read()) for member in tar]
    return found


def digests(folder: Path) -> dict[str, str]:
    """sha256 of every visible file."""
    paths = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def test_image_bytes_are_exact_and_labels_are_sorted_classes(make_folder: MakeFolder, tmp_path: Path) -> None:
    """Every image stands in the shards once, byte for byte, under its base name, with the index of its sorted class."""
    source = make_folder()
    report = pack(source, tmp_path / "out", samples_per_shard=5)
    assert report.classes == ("cat", "dog", "owl")
    assert [(shard.name, shard.rows) for shard in report.shards] == [(f"train-{n:06d}.tar", 4) for n in range(3)]
    packed = dict(members(tmp_path / "out", "train"))
    for path in source.rglob("*.jpg"):
        assert packed.pop(f"{path.stem}.jpg") == path.read_bytes()
        assert packed.pop(f"{path.stem}.cls") == str(report.classes.index(path.parent.name)).encode()
    assert packed == {}
    assert (report.num_samples, report.kept, report.ignored, report.renamed) == (12, 0, (), ())
    assert report.num_bytes == sum(path.stat().st_size for path in (tmp_path / "out").glob("*.tar"))


def test_order_is_a_shuffle_of_the_seed(make_folder: MakeFolder, tmp_path: Path) -> None:
    """Another seed is another order of the same images, and no order is that of the classes."""
    source = make_folder(per_class=8)
    orders = []
    for seed in (0, 1):
        pack(source, tmp_path / str(seed), seed=seed)
        orders.append([name for name, _ in members(tmp_path / str(seed), "train") if name.endswith(".jpg")])
    assert sorted(orders[0]) == sorted(orders[1])
    assert orders[0] != orders[1]
    assert all(order != sorted(order) for order in orders)


def test_numbers_of_workers_that_cannot_be_are_refused(make_folder: MakeFolder, tmp_path: Path) -> None:
    """None, fewer, or more than the machine can bear: one error each, before anything is made."""
    source = make_folder()
    for workers, text in ((0, "0 workers write no shard"), (-1, "-1 workers"), (10**20, "workers are too many")):
        with pytest.raises(InputError, match=text):
            pack(source, tmp_path / "out", workers=workers)
    assert not (tmp_path / "out").exists()


def test_the_same_bytes_for_any_number_of_workers(make_folder: MakeFolder, tmp_path: Path) -> None:
    """Shards, _info.json and classes.json do not tell how many threads wrote them, nor where or when."""
    source = make_folder()
    outs = [tmp_path / f"workers-{workers}" for workers in (1, 5)]
    for out, workers in zip(outs, (1, 5), strict=True):
        pack(source, out, samples_per_shard=2, workers=workers)
    assert digests(outs[0]) == digests(outs[1])
    moved = source.rename(tmp_path / "moved")
    pack(moved, tmp_path / "again", samples_per_shard=2)
    assert digests(tmp_path / "again") == digests(outs[0])
    header = (outs[0] / "train-000000.tar").read_bytes()[:512]
    assert (header[100:107], header[136:147], header[265:329]) == (b"0000644", b"0" * 11, bytes(64))


def test_timm_and_webdataset_read_what_was_packed(make_folder: MakeFolder, tmp_path: Path) -> None:
    """`_info.json` is timm's, for both splits in one folder, and webdataset finds a key with image and label."""
    out = tmp_path / "out"
    pack(make_folder("train", per_class=4), out, split="train", samples_per_shard=5)
    pack(make_folder("val", per_class=1), out, split="val")
    info = _load_info(str(out))
    for split, count in (("train", 12), ("val", 3)):
        found = _parse_split_info(split, info)
        assert (found.name, found.num_samples, sum(found.shard_lengths)) == (split, count, count)
        samples = list(webdataset.WebDataset([str(out / name) for name in found.filenames], shardshuffle=False))
        assert len(samples) == count
        assert all({"__key__", "jpg", "cls"} <= sample.keys() for sample in samples)
    train = info["splits"]["train"]
    for name, size, digest in zip(train["filenames"], train["shard_sizes"], train["shard_sha256"], strict=True):
        content = (out / name).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (size, digest)
    classes = json.loads((out / "classes.json").read_text())
    assert classes == {"names": ["cat", "dog", "owl"], "counts": {"train": [4, 4, 4], "val": [1, 1, 1]}}


def test_a_second_split_takes_the_labels_of_the_first(make_folder: MakeFolder, tmp_path: Path) -> None:
    """A validation split without the first class keeps the training split's labels; a new class is refused."""
    out = tmp_path / "out"
    pack(make_folder("train"), out)
    pack(make_folder("val", classes=("owl",), per_class=1), out, split="val")
    assert dict(members(out, "val"))["owl_0.cls"] == b"2"
    with pytest.raises(MismatchError, match=r"1 classes of the images are not in .*cat, dog, owl.*: rat"):
        pack(make_folder("test", classes=("rat",)), out, split="other")
    with pytest.raises(MismatchError, match=r"has 3 classes \(cat, dog, owl\), asked for are 1 \(owl\)"):
        pack(tmp_path / "val", out, split="val", classes=["owl"])


def test_classes_can_be_named(make_folder: MakeFolder, tmp_path: Path) -> None:
    """A list of classes gives the labels their order, and must know every image's class."""
    source = make_folder(per_class=1)
    report = pack(source, tmp_path / "out", classes=["owl", "dog", "cat"])
    assert report.classes == ("owl", "dog", "cat")
    assert dict(members(tmp_path / "out", "train"))["cat_0.cls"] == b"2"
    with pytest.raises(MismatchError, match=r"1 classes of the images are not in the list of classes .*: owl"):
        pack(source, tmp_path / "other", classes=["cat", "dog"])


def test_files_that_are_no_images_are_listed(make_folder: MakeFolder, tmp_path: Path) -> None:
    """Other files, and all hidden ones, are left out and said so; a damaged image is packed as it is."""
    source = make_folder(per_class=1)
    (source / "cat" / "notes.txt").write_text("a text")
    (source / "cat" / "._cat_0.jpg").write_bytes(b"left behind by a file manager")
    (source / ".thumbnails").mkdir()
    (source / ".thumbnails" / "small.jpg").write_bytes(b"a thumbnail")
    (source / "dog" / "dog_7.JPEG").write_bytes(b"\xff\xd8\xff cut short")
    report = pack(source, tmp_path / "out")
    names = [Path(place).relative_to(source).as_posix() for place in report.ignored]
    assert names == [".thumbnails/small.jpg", "cat/._cat_0.jpg", "cat/notes.txt"]
    assert dict(members(tmp_path / "out", "train"))["dog_7.jpg"] == b"\xff\xd8\xff cut short"
    assert json.loads((tmp_path / "out" / "_info.json").read_text())["splits"]["train"]["num_ignored"] == 3


def test_a_dot_in_a_base_name_does_not_cut_the_key(make_folder: MakeFolder, tmp_path: Path) -> None:
    """A key ends at the first dot for every reader of shards, so dots become _ and the report says which."""
    source = make_folder(per_class=1)
    (source / "cat" / "cat_0.jpg").rename(source / "cat" / "holiday.2020.01.jpg")
    report = pack(source, tmp_path / "out")
    assert report.renamed == ((str(source / "cat" / "holiday.2020.01.jpg"), "holiday_2020_01"),)
    assert "holiday_2020_01.jpg" in dict(members(tmp_path / "out", "train"))


def test_duplicate_keys_are_refused_with_both_places(make_folder: MakeFolder, tmp_path: Path) -> None:
    """Two files of one base name, in two classes or with two suffixes, are named both."""
    source = make_folder(per_class=1)
    (source / "dog" / "cat_0.png").write_bytes(b"\x89PNG")
    with pytest.raises(InputError, match=r"1 keys stand twice: cat_0 \(.*cat/cat_0.jpg and .*dog/cat_0.png\)"):
        pack(source, tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.tar"))


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("stray.jpg", r"stray.jpg: nothing says its class"),
        ("train/n01440764/n01440764_1.jpg", r"train is a split, not a class: give the folder below"),
        ("cat/two\nlines.jpg", r"two\\nlines.jpg: a name with characters that cannot be printed"),
        ("cats.tar", r"cats.tar is an archive that is not named as a class"),
        ("train_images_0.tar.gz", r"is an archive .*name them: 'FOLDER/train_images_0.tar.gz'"),
    ],
)
def test_a_folder_that_cannot_be_packed_says_why(
    make_folder: MakeFolder, tmp_path: Path, path: str, message: str
) -> None:
    """An image without a class, a folder too high up, an unprintable name, foreign archives: each is named."""
    source = make_folder(per_class=1)
    (source / path).parent.mkdir(parents=True, exist_ok=True)
    (source / path).write_bytes(b"\xff\xd8\xff")
    with pytest.raises(InputError, match=message):
        pack(source, tmp_path / "out")


def test_settings_that_make_no_sense_are_refused(make_folder: MakeFolder, tmp_path: Path) -> None:
    """No source, an empty one, a split that is a path, and shards of no images get a message, not an empty folder."""
    source = make_folder(per_class=1)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder or archive"):
        pack(tmp_path / "nowhere", tmp_path / "out")
    with pytest.raises(InputError, match="holds no images"):
        pack(tmp_path / "empty", tmp_path / "out")
    with pytest.raises(InputError, match="a folder can be packed alone"):
        pack([source, tmp_path / "empty"], tmp_path / "out")
    with pytest.raises(InputError, match="letters, digits, - and _"):
        pack(source, tmp_path / "out", split="../train")
    with pytest.raises(InputError, match="samples_per_shard is 0"):
        pack(source, tmp_path / "out", samples_per_shard=0)


def test_linked_class_folders_are_packed_and_loops_refused(make_folder: MakeFolder, tmp_path: Path) -> None:
    """A subset made of links to class folders is an ordinary source; a link to its own parent does not hang."""
    source, subset = make_folder(), tmp_path / "subset"
    subset.mkdir()
    (subset / "dog").symlink_to(source / "dog")
    assert pack(subset, tmp_path / "out").num_samples == 4
    (source / "dog" / "again").symlink_to(source)
    with pytest.raises(UnsafeError, match="again is a link to a folder above itself"):
        pack(source, tmp_path / "other")


# Killed by itself once `shards` are recorded, as the power would do it: no handler runs, nothing is closed.
KILLED = """
import os, signal, sys
from dlth.data.packing.pack import pack
def progress(done, total):
    if done >= int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
pack(sys.argv[1], sys.argv[2], samples_per_shard=2, workers=2, progress=progress)
"""


def test_killed_and_run_again_gives_the_same_bytes(make_folder: MakeFolder, tmp_path: Path) -> None:
    """`kill -9` after some shards, run again: finished shards are kept, and all files equal an uninterrupted run's."""
    source, out = make_folder(), tmp_path / "killed"
    pack(source, tmp_path / "whole", samples_per_shard=2)
    for done in (2, 8):
        killed = subprocess.run([sys.executable, "-c", KILLED, str(source), str(out), str(done)], check=False)
        assert killed.returncode == -signal.SIGKILL
        assert not (out / "_info.json").exists()
    (out / ".pack-train" / "train-000000.tar.partial").write_bytes(b"torn")
    report = pack(source, out, samples_per_shard=2)
    assert 4 <= report.kept <= 6
    assert digests(out) == digests(tmp_path / "whole")
    assert [path.name for path in out.iterdir() if path.name.startswith(".")] == [".pack.lock"]


def test_a_damaged_or_missing_shard_is_written_again(make_folder: MakeFolder, tmp_path: Path) -> None:
    """Running the command on finished shards checks each by its digest and repairs what is not as it was."""
    source, out = make_folder(), tmp_path / "out"
    pack(source, out, samples_per_shard=4)
    before = digests(out)
    flip(out / "train-000001.tar", 8 * 700)
    (out / "train-000002.tar").unlink()
    calls: list[tuple[int, int]] = []
    report = pack(source, out, samples_per_shard=4, progress=lambda done, total: calls.append((done, total)))
    assert (report.kept, digests(out)) == (1, before)
    assert sorted(calls) == [(4, 12), (8, 12), (12, 12)]


def test_other_settings_on_the_same_folder_are_refused(make_folder: MakeFolder, tmp_path: Path) -> None:
    """Another seed, size or set of images names every difference, whether the first run finished or not."""
    source, out = make_folder(), tmp_path / "out"

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack(source, out, samples_per_shard=2, workers=1, progress=stop)
    message = r"samples_per_shard: there 2, now 3; seed: there 0, now 1\. Give another folder"
    with pytest.raises(MismatchError, match=message):
        pack(source, out, samples_per_shard=3, seed=1)
    pack(source, out, samples_per_shard=2)
    with pytest.raises(MismatchError, match=message):
        pack(source, out, samples_per_shard=3, seed=1)
    (source / "cat" / "cat_0.jpg").unlink()
    with pytest.raises(MismatchError, match=r"content: there .*, now .*; num_samples: there 12, now 11"):
        pack(source, out, samples_per_shard=2)


def test_a_split_can_be_written_anew(make_folder: MakeFolder, tmp_path: Path) -> None:
    """resume=False replaces what pack wrote of this split, leftover shards included, and leaves other splits alone."""
    out = tmp_path / "out"
    pack(make_folder("train"), out, samples_per_shard=2)
    pack(make_folder("val", per_class=1), out, split="val")
    val = digests(out)["val-000000.tar"]
    report = pack(tmp_path / "train", out, samples_per_shard=12, seed=5, resume=False)
    assert (len(report.shards), report.kept) == (1, 0)
    assert sorted(digests(out)) == ["_info.json", "classes.json", "train-000000.tar", "val-000000.tar"]
    assert digests(out)["val-000000.tar"] == val


def test_shards_of_others_are_never_overwritten(make_folder: MakeFolder, tmp_path: Path) -> None:
    """Shards of the same names that pack did not write stay as they are, also when asked to write anew."""
    source, out = make_folder(), tmp_path / "out"
    out.mkdir()
    (out / "train-000000.tar").write_bytes(b"someone else's")
    for resume in (True, False):
        with pytest.raises(InputError, match="holds a split train that dlth pack did not write"):
            pack(source, out, resume=resume)
    assert (out / "train-000000.tar").read_bytes() == b"someone else's"


def test_odd_files_beside_the_shards_are_refused(make_folder: MakeFolder, tmp_path: Path) -> None:
    """Whatever types classes.json, _info.json and the records of an unfinished split hold: one error, nothing lost."""
    source, out = make_folder(), tmp_path / "out"
    pack(source, out)
    whole = {name: (out / name).read_bytes() for name in ("classes.json", "_info.json")}
    counts = {"val": [1]}
    for odd in (5, None, [["a"]], "abc"):
        (out / "classes.json").write_text(json.dumps({"names": odd, "counts": counts}))
        with pytest.raises(SchemaError, match="'names' must be a list of texts"):
            pack(source, out)
    for odd in (7, ["val"], {"val": 7}, "val"):
        (out / "classes.json").write_text(json.dumps({"names": ["a"], "counts": odd}))
        with pytest.raises(SchemaError, match="'counts' must map the splits' names to lists"):
            pack(source, out)
    (out / "classes.json").write_bytes(whole["classes.json"])
    entry = json.loads(whole["_info.json"])["splits"]["train"]
    odd_entries: list[tuple[dict, str]] = [({"pack": odd}, "'pack' must be an object") for odd in (5, ["a"], "", False)]
    odd_entries += [({"filenames": 5}, "four lists of one length"), ({"shard_sizes": ["1"]}, "a shard's record must")]
    for change, message in odd_entries:
        (out / "_info.json").write_text(json.dumps({"splits": {"train": entry | change}}))
        with pytest.raises(SchemaError, match=message):
            pack(source, out)
    (out / "_info.json").unlink()
    (out / ".pack-train").mkdir(exist_ok=True)
    (out / ".pack-train" / "plan.json").write_text(json.dumps(entry["pack"]))
    for record in ({}, {"name": "train-000000.tar"}, {"name": ["a"], "rows": 1, "size": 1, "sha256": ""}):
        (out / ".pack-train" / "train-000000.tar.json").write_text(json.dumps(record))
        with pytest.raises(SchemaError, match="a shard's record must have name, rows, size, sha256"):
            pack(source, out)


def test_one_run_at_a_time(make_folder: MakeFolder, tmp_path: Path) -> None:
    """While another process holds the folder, a second run is told so and touches nothing."""
    source, out = make_folder(), tmp_path / "out"
    out.mkdir()
    with (out / ".pack.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(LockedError, match="another dlth pack writes to"):
            pack(source, out)
        assert [path.name for path in out.iterdir()] == [".pack.lock"]
    assert pack(source, out).num_samples == 12


def test_a_source_that_shrinks_meanwhile_is_noticed(make_folder: MakeFolder, tmp_path: Path) -> None:
    """An image that is shorter than when it was listed stops the run with its name; a repaired source continues."""
    source, out = make_folder(), tmp_path / "out"
    victim = source / "owl" / "owl_3.jpg"
    content, packed = victim.read_bytes(), list[PackReport]()

    def cut(done: int, total: int) -> None:
        for path in source.rglob("*.jpg"):
            path.write_bytes(path.read_bytes()[:-1])

    before = {path: path.read_bytes() for path in source.rglob("*.jpg")}
    with pytest.raises(DamageError, match=r"bytes were listed, .* could be read: it changed while it was packed"):
        pack(source, out, samples_per_shard=1, workers=1, progress=cut)
    for path, whole in before.items():
        path.write_bytes(whole)
    packed.append(pack(source, out, samples_per_shard=1))
    assert packed[0].kept >= 1
    assert dict(members(out, "train"))["owl_3.jpg"] == content


def test_a_disk_without_room_is_refused_before_the_first_byte(
    make_folder: MakeFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What cannot fit is refused with the number of bytes needed and free."""
    source = make_folder(per_class=1)
    with (source / "cat" / "huge.jpg").open("wb") as file:
        file.truncate(200 * 1024 * 1024)  # a hole: it takes no space here
    monkeypatch.setattr("dlth.data.packing.pack.RESERVE", shutil.disk_usage(tmp_path).free - 100 * 1024 * 1024)
    with pytest.raises(SpaceError, match=r"\d+ bytes are needed, \d+ are free"):
        pack(source, tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.tar"))


def test_a_source_that_is_refused_leaves_nothing_unpacked(
    make_folder: MakeFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gzip archive that is a bomb, holds no images, or cannot be packed in the end, leaves no copy of itself."""
    out = tmp_path / "out"

    def refused(name: str, content: bytes, match: str, **options: Any) -> None:
        (tmp_path / name).write_bytes(gzip.compress(content, 1))
        with pytest.raises(DlthError, match=match):
            pack(tmp_path / name, out, **options)
        assert [path.name for path in out.rglob("*") if path.is_file()] in ([".pack.lock"], [".pack.lock", "plan.json"])

    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        tar.add(make_folder(), "train")
    refused("no-tar.tar.gz", b"text" * 1000, "not a sound tar header")
    refused("no-images.tar.gz", bytes(10_240), "holds no images")
    refused("classes.tar.gz", packed.getvalue(), "3 classes of the images are not in", classes=("bird",))
    monkeypatch.setattr("dlth.data.packing.pack.RESERVE", shutil.disk_usage(tmp_path).total)
    refused("no-room.tar.gz", packed.getvalue(), "bytes are needed")
    monkeypatch.setattr("dlth.data.packing.archives._SWELL_BYTES", 2**20)
    monkeypatch.setattr("dlth.data.packing.archives._CHUNK", 2**18)
    refused("bomb.tar.gz", packed.getvalue()[:-1024] + bytes(2**24), "no archive of images does")


def test_an_archive_that_is_a_pipe_does_not_hold_pack_up(tmp_path: Path) -> None:
    """A FIFO, as archive or as labels, is refused and not waited for."""
    os.mkfifo(tmp_path / "a.tar")
    with pytest.raises(UnsafeError, match=r"a\.tar is not a regular file"):
        pack(tmp_path / "a.tar", tmp_path / "out")
    os.mkfifo(tmp_path / "devkit.tar.gz")
    with pytest.raises(UnsafeError, match=r"devkit\.tar\.gz is not a regular file"):
        validation_labels(tmp_path / "devkit.tar.gz")
    with pytest.raises(UnsafeError, match="neither a file nor a pipe"):
        validation_labels(Path("/dev/zero"))
