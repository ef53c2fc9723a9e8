"""CIFAR's archives: every pixel, label and name arrives, and nothing in a pickle is run, believed or unbounded."""

import json
import os
import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from makers.cifar import FOLDER, NAMES, cifar_batch, cifar_files, make_cifar, python2_pickle
from makers.tampering import flipped

from dlth.data.images.decode import decode
from dlth.data.packing.pack import pack
from dlth.data.packing.plain_pickle import MAX_BYTES, read_pickle
from dlth.data.shards.index import open_index
from dlth.tickets.errors import DamageError, DlthError, InputError, LimitError, MissingFileError, UnsafeError


def python3_pickle(value: Any) -> bytes:
    """As Python 3 and today's numpy write it at protocol 2."""
    return pickle.dumps(value, protocol=2)


def packed(folder: Path, split: str) -> dict[str, bytes]:
    """Content of every member by name."""
    found = {}
    for path in sorted(folder.glob(f"{split}-*.tar")):
        with tarfile.open(path) as tar:
            found |= {member.name: tar.extractfile(member).read() for member in tar}
    return found


def expected(numbers: list[int], part: str) -> dict[str, tuple[np.ndarray, int]]:
    """Key -> pixels uint8 [3, 32, 32] and label of the images of some batches, in their order."""
    batches = [cifar_batch(number) for number in numbers]
    rows = [row for batch in batches for row in zip(batch[b"data"], batch[b"labels"], strict=True)]
    return {f"cifar10_{part}_{n:05d}": (pixels.reshape(3, 32, 32), label) for n, (pixels, label) in enumerate(rows)}


@pytest.mark.parametrize("write", [python2_pickle, python3_pickle])
def test_every_pixel_label_and_name_arrives(tmp_path: Path, write: Any) -> None:
    """Both parts, in the order of the archive's batches, lossless; labels are the archive's numbers and names."""
    files = cifar_files(write)
    archive = make_cifar(tmp_path / "cifar-10-python.tar.gz", files)
    for split, numbers, part in (("train", [1, 2, 3, 4, 5], "train"), ("val", [0], "test")):
        report = pack(archive, tmp_path / "out", split=split, samples_per_shard=16)
        found, wanted = packed(tmp_path / "out", split), expected(numbers, part)
        assert (report.classes, report.num_samples) == (NAMES, len(wanted))
        assert report.ignored == (f"{archive}: {FOLDER}/readme.html",)
        assert set(found) == {f"{key}.{suffix}" for key in wanted for suffix in ("png", "cls")}
        for key, (pixels, label) in wanted.items():
            assert np.array_equal(decode(found[f"{key}.png"], where=key).numpy(), pixels)
            assert found[f"{key}.cls"] == str(label).encode()
        index = open_index(str(tmp_path / "out"), split=split)
        assert (index.num_samples, index.num_classes) == (len(wanted), 1 + max(label for _, label in wanted.values()))
    assert not list((tmp_path / "out").glob(".pack-*/"))
    assert json.loads((tmp_path / "out" / "classes.json").read_text())["names"] == list(NAMES)
    for name, content in files.items():
        (tmp_path / FOLDER).mkdir(exist_ok=True)
        (tmp_path / FOLDER / name).write_bytes(content)
    pack(tmp_path / FOLDER, tmp_path / "again", split="test")
    assert packed(tmp_path / "again", "test") == packed(tmp_path / "out", "val")


def test_cifar_100_has_its_fine_labels(tmp_path: Path) -> None:
    """Of its two kinds of labels the hundred fine ones, under their own names."""
    names = [b"apple", b"aquarium_fish", b"baby"]
    batch = {b"data": cifar_batch(0)[b"data"], b"fine_labels": [2, 0, 1, 1, 0, 2], b"coarse_labels": [0] * 6}
    meta = {b"fine_label_names": names, b"coarse_label_names": [b"fruit"]}
    files = {"meta": meta, "test": batch, "train": batch}
    archive = make_cifar(
        tmp_path / "c.tar.gz", {n: python2_pickle(v) for n, v in files.items()} | {"file.txt~": b""}, "cifar-100-python"
    )
    assert pack(archive, tmp_path / "out").classes == ("apple", "aquarium_fish", "baby")
    labels = [content for name, content in sorted(packed(tmp_path / "out", "train").items()) if name.endswith(".cls")]
    assert labels == [b"2", b"0", b"1", b"1", b"0", b"2"]


class Evil:
    """An object whose pickle calls something when it is loaded."""

    def __init__(self, call: Any, *arguments: Any) -> None:
        self.call, self.arguments = call, arguments

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.call, self.arguments


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_no_code_in_a_pickle_is_run(tmp_path: Path, protocol: int) -> None:
    """A batch that makes a folder when it is unpickled is refused by what it asks for, and makes none."""
    canary = tmp_path / "canary"
    content = pickle.dumps({b"data": Evil(os.mkdir, str(canary))}, protocol=protocol)
    archive = make_cifar(tmp_path / "c.tar.gz", cifar_files() | {"data_batch_2": content})
    with pytest.raises(UnsafeError, match=r"data_batch_2: byte \d+: .* need no such instruction\. It was not run"):
        pack(archive, tmp_path / "out")
    assert not canary.exists()
    assert not list((tmp_path / "out").rglob("*.spool"))
    pickle.loads(content)  # the threat is real
    assert canary.is_dir()


def global_(name: str) -> bytes:
    """The instruction that asks for ``module name``."""
    return b"c" + name.replace(" ", "\n").encode() + b"\n"


ARRAY = global_("numpy.core.multiarray _reconstruct") + global_("numpy ndarray") + b"K\x00\x85U\x01b\x87R"
BYTE = global_("numpy dtype") + b"U\x02u1K\x00K\x01\x87R"
LAUGHS = b"U\x01x\x85q\x00" + b"h\x00h\x00h\x00\x87q\x00" * 200
"""A text in 200 tuples of three, each thrice the one before: 3 ** 200 texts where anyone writes it out."""


@pytest.mark.parametrize(
    ("program", "error", "message"),
    [
        (b"K\x01.", DamageError, "it holds a int, not a dict"),
        (b"K\x01K\x02.", DamageError, "cannot be read"),
        (b"}U\x01a", DamageError, "cannot be read"),
        (b"}h\x07.", DamageError, "cannot be read"),
        (b"}\x86.", DamageError, "too few values"),
        (b"e.", DamageError, "cannot be read"),
        (b"}K\x01K\x02s.", DamageError, "a str is expected, found a int"),
        (b"K\x01K\x02a.", DamageError, "a list is expected, found a int"),
        (b"}K\x01b.", DamageError, "a dict has no state"),
        (b"}(U\x01ae.", DamageError, "a list is expected"),
        (b"}(U\x01au.", DamageError, "cannot be read"),
        (global_("builtins eval") + b"U\x04exit\x85R.", UnsafeError, "GLOBAL builtins eval"),
        (global_("numpy dtype") + b"U\x02O8K\x00K\x01\x87R.", DamageError, "it calls numpy dtype with other arguments"),
        (global_("numpy ndarray") + b"K\x05\x85R.", DamageError, "it calls numpy ndarray with other arguments"),
        (LAUGHS + global_("numpy dtype") + b"h\x00\x85R.", DamageError, "it calls numpy dtype with other arguments"),
        (b"}K\x01K\x02R.", DamageError, "it calls int with"),
        (b"}T\xff\xff\xff\x7f.", DamageError, "cannot be read"),
        (b"]" * 10_001, LimitError, "more than 10000 instructions"),
        (b"}I" + b"9" * 9999 + b"\n.", DamageError, "cannot be read"),
        (b"}\x8a\x01\x01.", UnsafeError, "LONG1"),
        (b"}U\x01a" + ARRAY + b"s.", DamageError, "a tuple is expected"),
        (b"}U\x01a" + ARRAY + b"(K\x01K\x02K\x03\x86" + BYTE + b"\x89U\x05abcdetbs.", DamageError, r"shape \[2, 3\]"),
        (b"}U\x01a" + ARRAY + b"(K\x01J\xff\xff\xff\xff\x85" + BYTE + b"\x89U\x01atbs.", DamageError, "none of bytes"),
        (b"}U\x01a" + ARRAY + b"(K\x01(" + b"M\xff\xff" * 99 + b"t" + BYTE + b"\x89U\x01atbs.", DamageError, "none of"),
        (b"}U\x01a" + ARRAY + b"(K\x01K\x01\x85U\x01b\x89U\x01atbs.", DamageError, "none of bytes"),
        (b"}U\x01a" + ARRAY + b"(K\x01K\x01\x85" + BYTE + b"\x89K\x01tbs.", DamageError, "a str is expected"),
        (
            b"}U\x01a" + ARRAY + b"(K\x01K\x01\x85" + BYTE + b"\x89X\x03\x00\x00\x00\xe2\x82\xactbs.",
            DamageError,
            "latin",
        ),
    ],
)
def test_a_pickle_that_is_no_batch_is_an_error_of_ours(
    program: bytes, error: type[DlthError], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is cut short, nested, huge or made to do harm is refused at once, in a message of a few lines."""
    monkeypatch.setattr("dlth.data.packing.plain_pickle._MAX_STEPS", 10_000)
    with pytest.raises(error, match=message) as caught:
        read_pickle(b"\x80\x02" + program, "batch")
    assert len(str(caught.value)) < 400


def test_damage_is_an_error_of_ours_wherever_it_is() -> None:
    """A batch cut after any number of bytes, or with any bit of its program flipped, is refused or still a dict."""
    raw = python2_pickle(cifar_batch(1, 1))
    for size in (*range(200), *range(200, len(raw), 97)):
        with pytest.raises(DamageError):
            read_pickle(raw[:size], "batch")
    program = [place for place in range(len(raw)) if place < 300 or place > len(raw) - 60]
    for place in program:
        try:
            assert isinstance(read_pickle(flipped(raw, 8 * place + place % 8), "batch"), dict)
        except DlthError:
            continue
    with pytest.raises(LimitError, match="at most"):
        read_pickle(bytes(MAX_BYTES + 1), "batch")


def test_columns_first_is_numpys_other_order() -> None:
    """An array that numpy stored column by column comes out as it was."""
    state = b"(K\x01K\x02K\x03\x86" + BYTE + b"\x88U\x06adbecftb"
    assert read_pickle(b"\x80\x02}U\x01a" + ARRAY + state + b"s.", "batch")["a"].tobytes() == b"abcdef"


def test_an_array_of_many_names_is_made_once() -> None:
    """Names of one array share it, and arrays of the same bytes are refused once they outgrow the pickle."""

    def array(content: bytes) -> bytes:
        return ARRAY + b"(K\x01M\x00\x10\x85" + BYTE + b"\x89" + content + b"tb"

    first = b"\x80\x02}(U\x01a" + array(b"T\x00\x10\x00\x00" + bytes(4096) + b"q\x01") + b"q\x02"
    named = read_pickle(first + b"U\x01bh\x02U\x01ch\x02u.", "batch")
    assert named["a"] is named["b"] is named["c"]
    with pytest.raises(DamageError, match="its arrays have more bytes than it"):
        read_pickle(first + b"U\x01b" + array(b"h\x01") + b"u.", "batch")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": np.zeros((6, 3071), np.uint8)}, r"'data' must be rows of 3072 bytes, found .* shape \(6, 3071\)"),
        ({"data": np.zeros((6, 3072, 1), np.uint8)}, r"found an array of shape \(6, 3072, 1\)"),
        ({"data": [1]}, r"found list"),
        ({"labels": [0] * 5}, r"'labels' must be a list of 6 numbers, found 5"),
        ({"labels": b"0"}, r"'labels' must be a list of 6 numbers, found str"),
        ({"labels": [0, 1, 2, 10, 3, 4]}, r"image 3: its label is none of the 10 classes"),
        ({"labels": [0, -1, 2, 1, 3, 4]}, r"image 1: its label is none of the 10 classes"),
        ({"data": np.zeros((0, 3072), np.uint8), "labels": []}, r"test_batch holds no image"),
    ],
)
def test_batches_that_are_none_of_images_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    """Shapes, lengths and labels that do not fit, named with the batch; nothing is left behind."""
    archive = make_cifar(
        tmp_path / "c.tar.gz", cifar_files() | {"test_batch": python2_pickle(cifar_batch(0, **changes))}
    )
    with pytest.raises(DamageError, match=message):
        pack(archive, tmp_path / "out", split="val")
    assert not list((tmp_path / "out").rglob("*.spool"))


def test_what_cannot_be_packed_is_refused_by_name(tmp_path: Path) -> None:
    """A split of another name, a missing batch, a class list that is none, labels from outside, a batch twice."""
    archive = make_cifar(tmp_path / "c.tar.gz")
    with pytest.raises(InputError, match="split 'extra': CIFAR has images to train and to test"):
        pack(archive, tmp_path / "out", split="extra")
    (tmp_path / "labels.txt").write_text("n01440764\n")
    with pytest.raises(InputError, match="CIFAR's batches say their labels: leave --labels out"):
        pack(archive, tmp_path / "out", labels=tmp_path / "labels.txt")
    with pytest.raises(InputError, match=rf"{archive}: {FOLDER}/.* stands in it twice"):
        pack([archive, archive], tmp_path / "out")
    for name in ("data_batch_3", "batches.meta"):
        files = cifar_files()
        del files[name]
        with pytest.raises(MissingFileError, match=rf"less\.tar\.gz looks like CIFAR: {name} of cifar10 missing"):
            pack(make_cifar(tmp_path / "less.tar.gz", files), tmp_path / "out")
    for names in ([b"a\nb"], [b""], [b"a/b"], [b"a\\b"], [b"a" * 256]):
        files = cifar_files() | {"batches.meta": python2_pickle({b"label_names": names})}
        with pytest.raises(DamageError, match="'label_names' must be a list of names"):
            pack(make_cifar(tmp_path / "meta.tar.gz", files), tmp_path / "out")
    files = cifar_files() | {"batches.meta": python2_pickle({b"label_names": [b"cat", b"dog", b"cat"]})}
    with pytest.raises(DamageError, match=r"meta\.tar\.gz: .*batches\.meta: the class name 'cat' stands twice"):
        pack(make_cifar(tmp_path / "meta.tar.gz", files), tmp_path / "out")
    cut = tmp_path / "cut.tar.gz"
    cut.write_bytes(archive.read_bytes()[:-2000])
    with pytest.raises(DamageError, match="cannot be decompressed"):
        pack(cut, tmp_path / "out")
    assert not list((tmp_path / "out").rglob("*.spool"))
