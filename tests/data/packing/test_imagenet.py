"""ImageNet in its own layouts, three classes of four images: archives, devkit, Hub archives, Kaggle's folders."""

import gzip
import io
import json
import resource
import struct
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch
from makers.pictures import make_image, make_picture, make_tar
from makers.tampering import flipped
from typer.testing import CliRunner

from dlth.data.confined import Confined
from dlth.data.images.decode import decode
from dlth.data.packing import imagenet
from dlth.data.packing.imagenet import GROUND_TRUTH, META, name_and_synset, synsets_by_number, validation_labels
from dlth.data.packing.pack import pack
from dlth.pipeline.cli.app import app
from dlth.tickets.errors import DamageError, InputError, LimitError, MismatchError, UnsafeError

# The devkit's numbers are not in the order of the sorted synsets; number 4 stands above the leaves.
SYNSETS = ("n01440764", "n02105855", "n01751748")
NUMBERS = {2: "n01440764", 3: "n02105855", 1: "n01751748"}
VAL_NUMBERS = [3, 1, 2, 2, 1, 3]


@pytest.fixture
def train_images() -> dict[str, dict[str, bytes]]:
    """Class -> base name -> encoded bytes, with ImageNet's oddities: a PNG and a CMYK JPEG, both named .JPEG."""
    images: dict[str, dict[str, bytes]] = {}
    for label, wnid in enumerate(SYNSETS):
        images[wnid] = {f"{wnid}_{n}": make_image(make_picture(10 * label + n, 24, 32)) for n in (10026, 7, 33, 48)}
    images["n02105855"]["n02105855_33"] = make_image(make_picture(90, 24, 32), "PNG")
    images["n01751748"]["n01751748_7"] = make_image(make_picture(91, 24, 32), mode="CMYK")
    return images


@pytest.fixture
def train_tar(tmp_path: Path, train_images: dict[str, dict[str, bytes]]) -> Path:
    """ILSVRC2012_img_train.tar: a GNU tar of class tars, in no particular order."""
    classes = []
    for wnid, images in train_images.items():
        members = [(f"{name}.JPEG", encoded) for name, encoded in images.items()]
        inner = make_tar(tmp_path / f"{wnid}.inner", members, tarfile.GNU_FORMAT)
        classes.append((f"{wnid}.tar", inner.read_bytes()))
    return make_tar(tmp_path / "ILSVRC2012_img_train.tar", classes, tarfile.GNU_FORMAT)


@pytest.fixture
def val_images() -> dict[str, bytes]:
    """Base name -> JPEG of the six validation images."""
    return {f"ILSVRC2012_val_{n:08d}": make_image(make_picture(200 + n, 24, 32)) for n in range(1, 7)}


@pytest.fixture
def val_tar(tmp_path: Path, val_images: dict[str, bytes]) -> Path:
    """ILSVRC2012_img_val.tar: flat."""
    members = [(f"{name}.JPEG", encoded) for name, encoded in reversed(val_images.items())]
    return make_tar(tmp_path / "ILSVRC2012_img_val.tar", members, tarfile.GNU_FORMAT)


@pytest.fixture
def devkit(tmp_path: Path) -> Path:
    """The devkit's unpacked folder, its meta.mat written by scipy as MATLAB writes it: 8 fields, compressed."""
    folder = tmp_path / "ILSVRC2012_devkit_t12" / "data"
    folder.mkdir(parents=True)
    fields = ["ILSVRC2012_ID", "WNID", "words", "gloss", "num_children", "children", "wordnet_height"]
    synsets = np.empty((4, 1), dtype=[(name, object) for name in fields])
    for row, (number, wnid) in enumerate({**NUMBERS, 4: "n00001740"}.items()):
        parent = number == 4
        children = np.array([1.0, 2.0, 3.0]) if parent else np.zeros((1, 0))
        synsets[row, 0] = (float(number), wnid, "tench, Tinca", "a fish…", 3 * parent, children, 0.0)
    scipy.io.savemat(folder / META, {"synsets": synsets}, do_compression=True)
    (folder / GROUND_TRUTH).write_text("".join(f"{number}\n" for number in VAL_NUMBERS))
    return folder.parent


def packed(folder: Path, split: str) -> dict[str, tuple[bytes, int]]:
    """Key -> (image bytes, label) of all shards of a split."""
    contents: dict[str, bytes] = {}
    for path in sorted(folder.glob(f"{split}-*.tar")):
        with tarfile.open(path) as tar:
            contents |= {member.name: tar.extractfile(member).read() for member in tar}
    keys = {name.split(".")[0] for name in contents}
    return {key: (contents[f"{key}.jpg"], int(contents[f"{key}.cls"])) for key in keys}


def expected(images: dict[str, dict[str, bytes]]) -> dict[str, tuple[bytes, int]]:
    return {
        name: (encoded, sorted(images).index(wnid)) for wnid, named in images.items() for name, encoded in named.items()
    }


def test_the_training_archive_is_packed_without_extraction(
    train_tar: Path, train_images: dict[str, dict[str, bytes]], tmp_path: Path
) -> None:
    """A tar of class tars gives every image byte for byte, and the class from the archive it lies in."""
    report = pack(train_tar, tmp_path / "out", samples_per_shard=5)
    assert report.classes == tuple(sorted(SYNSETS))
    assert packed(tmp_path / "out", "train") == expected(train_images)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {".pack.lock", "_info.json", "classes.json", *(shard.name for shard in report.shards)}


def test_odd_files_stay_as_they_are_and_decode(train_tar: Path, tmp_path: Path) -> None:
    """The PNG named .JPEG and the CMYK JPEG come out as they went in, and dlth's decoder reads both."""
    pack(train_tar, tmp_path / "out")
    images = packed(tmp_path / "out", "train")
    for key, start in (("n02105855_33", b"\x89PNG"), ("n01751748_7", b"\xff\xd8\xff")):
        assert images[key][0].startswith(start)
        pixels = decode(images[key][0], where=key)
        assert (pixels.shape, pixels.dtype) == ((3, 24, 32), torch.uint8)


def test_every_layout_of_the_training_set_gives_the_same_shards(
    train_tar: Path, train_images: dict[str, dict[str, bytes]], tmp_path: Path
) -> None:
    """Archive, folder of class tars, unpacked folder, a tar of folders and the Hub's gzip archives: the same bytes."""
    tars, folders = tmp_path / "class_tars", tmp_path / "unpacked"
    tars.mkdir()
    with tarfile.open(train_tar) as outer:
        outer.extractall(tars, filter="data")
    hub, nested = list[tuple[str, bytes]](), list[tuple[str, bytes]]()
    for wnid, images in train_images.items():
        (folders / wnid).mkdir(parents=True)
        for name, encoded in images.items():
            (folders / wnid / f"{name}.JPEG").write_bytes(encoded)
            hub.append((f"{name}_{wnid}.JPEG", encoded))
            nested.append((f"./imagenet/train/{wnid}/{name}.JPEG", encoded))
    for number, part in enumerate((hub[:5], hub[5:])):
        plain = make_tar(tmp_path / "plain.tar", part)
        (tmp_path / f"train_images_{number}.tar.gz").write_bytes(gzip.compress(plain.read_bytes()))
    sources = {
        "archive": train_tar,
        "class tars": tars,
        "folder": folders,
        "tar of folders": make_tar(tmp_path / "nested.tar", nested),
        "hub, glob": tmp_path / "train_images_*.tar.gz",
        "hub, list": [tmp_path / "train_images_0.tar.gz", tmp_path / "train_images_1.tar.gz"],
    }
    shards = {}
    for name, source in sources.items():
        pack(source, tmp_path / "out" / name, samples_per_shard=5)
        shards[name] = json.loads((tmp_path / "out" / name / "_info.json").read_text())["splits"]["train"]
        assert not list((tmp_path / "out" / name).glob(".pack-*")), "the decompressed copy is gone"
    assert all(found == shards["archive"] for found in shards.values())


def test_the_validation_archive_takes_its_labels_from_the_devkit(
    train_tar: Path, val_tar: Path, val_images: dict[str, bytes], devkit: Path, tmp_path: Path
) -> None:
    """Devkit folder or archive, the text beside meta.mat, a list of synsets, Kaggle's table: all say the same."""
    wnids = [NUMBERS[number] for number in VAL_NUMBERS]
    with tarfile.open(tmp_path / "ILSVRC2012_devkit_t12.tar.gz", "w:gz") as tar:
        tar.add(devkit, devkit.name)
    (tmp_path / "synsets.txt").write_text("\n".join(wnids))
    rows = [f"{name},{wnid} 85 1 499 272 " for name, wnid in zip(val_images, wnids, strict=True)]
    (tmp_path / "LOC_val_solution.csv").write_text("\n".join(["ImageId,PredictionString", *reversed(rows)]))
    want = {
        name: (encoded, sorted(SYNSETS).index(wnid))
        for (name, encoded), wnid in zip(val_images.items(), wnids, strict=True)
    }
    for labels in (
        devkit,
        tmp_path / "ILSVRC2012_devkit_t12.tar.gz",
        devkit / "data" / GROUND_TRUTH,
        tmp_path / "synsets.txt",
        tmp_path / "LOC_val_solution.csv",
    ):
        out = tmp_path / "out" / labels.name
        pack(train_tar, out)
        report = pack(val_tar, out, split="val", labels=labels)
        assert packed(out, "val") == want
        assert report.classes == tuple(sorted(SYNSETS))
        assert report.renamed == (), "a suffix that is taken off changes no key"


def test_the_hubs_validation_archive_says_its_labels(val_images: dict[str, bytes], tmp_path: Path) -> None:
    """The synset that the Hub appends to a name becomes the label and is no part of the key."""
    wnids = [NUMBERS[number] for number in VAL_NUMBERS]
    named = [(f"{name}_{wnid}.JPEG", val_images[name]) for name, wnid in zip(val_images, wnids, strict=True)]
    pack(make_tar(tmp_path / "val_images.tar", named), tmp_path / "out", split="val")
    found = packed(tmp_path / "out", "val")
    assert found.keys() == val_images.keys()
    assert [found[name][1] for name in val_images] == [sorted(SYNSETS).index(wnid) for wnid in wnids]


@pytest.mark.parametrize(
    ("stem", "name", "wnid"),
    [
        ("n01440764_10026", "n01440764_10026", "n01440764"),
        ("n01440764_10026_n01440764", "n01440764_10026", "n01440764"),
        ("ILSVRC2012_val_00000293_n01440764", "ILSVRC2012_val_00000293", "n01440764"),
        ("ILSVRC2012_val_00000293", "ILSVRC2012_val_00000293", None),
        ("holiday_n01440764", "holiday_n01440764", None),
        ("n01440764", "n01440764", None),
    ],
)
def test_names_say_their_synset(stem: str, name: str, wnid: str | None) -> None:
    """Only ImageNet's own names are taken apart; any other name is left alone."""
    assert name_and_synset(stem) == (name, wnid)


def test_the_help_offers_the_labels_that_are_read() -> None:
    """`pack --help` does not offer the ground-truth file alone: its numbers say nothing without meta.mat."""
    text = CliRunner().invoke(app, ["pack", "--help"], env={"COLUMNS": "400"}).output
    assert "ground-truth file with meta.mat beside it" in text
    assert "LOC_val_solution.csv" in text


def test_labels_that_do_not_fit_the_images_are_refused(val_tar: Path, devkit: Path, tmp_path: Path) -> None:
    """No labels, too few, too many, an unknown number, a missing mapping: each is named, none guessed."""
    out, truth = tmp_path / "out", devkit / "data" / GROUND_TRUTH
    with pytest.raises(InputError, match=r"ILSVRC2012_val_0000000\d.JPEG: nothing says its class.*\(--labels, for"):
        pack(val_tar, out, split="val")
    truth.write_text("2\n" * 5)
    with pytest.raises(InputError, match=r"val_00000006.JPEG: no label for it among 5"):
        pack(val_tar, out, split="val", labels=truth)
    truth.write_text("2\n" * 7)
    with pytest.raises(MismatchError, match="7 labels for 6 images"):
        pack(val_tar, out, split="val", labels=truth)
    truth.write_text("2\n" * 5 + "4\n")
    with pytest.raises(DamageError, match=r"line 6: 4 is no class number that meta.mat knows"):
        pack(val_tar, out, split="val", labels=truth)
    (devkit / "data" / META).unlink()
    with pytest.raises(FileNotFoundError, match=r"meta.mat is not there.*keep both files in one folder"):
        pack(val_tar, out, split="val", labels=truth)
    (tmp_path / "words.txt").write_text("tench\ngoldfish\n")
    with pytest.raises(DamageError, match=r"line 1: tench is no synset.*LOC_val_solution.csv"):
        validation_labels(tmp_path / "words.txt")
    with pytest.raises(InputError, match=r"holds no ILSVRC2012_validation_ground_truth.txt and no meta.mat"):
        validation_labels(val_tar)


def test_meta_mat_is_read_as_scipy_reads_it(devkit: Path) -> None:
    """The numbers of the leaves, and no others, whether the file is compressed or not."""
    path = devkit / "data" / META
    assert synsets_by_number(path.read_bytes(), "meta.mat") == NUMBERS
    scipy.io.savemat(path, {"other": 1.0, "synsets": scipy.io.loadmat(path)["synsets"]}, do_compression=False)
    assert synsets_by_number(path.read_bytes(), "meta.mat") == NUMBERS


class _Reader:
    def read(self, meta: bytes) -> dict[int, str]:
        return imagenet._leaves(meta, "meta.mat")


def test_a_damaged_meta_mat_is_an_error_and_nothing_else(devkit: Path) -> None:
    """Every truncation and 2,000 flipped bits end in a mapping or in one of dlth's errors: one process reads on until
    a file ends it."""
    scipy.io.savemat(devkit / "m", {"synsets": scipy.io.loadmat(devkit / "data" / META)["synsets"]}, appendmat=False)
    whole = (devkit / "m").read_bytes()
    mutants = [whole[:length] for length in range(0, len(whole), 7)]
    mutants += [flipped(whole, bit) for bit in np.random.default_rng(0).integers(0, len(whole) * 8, 2000).tolist()]
    outcomes, reader = set(), Confined(_Reader, 2**29, "meta.mat")
    for mutant in mutants:
        try:
            outcomes.add(type(reader.call("read", mutant)))
        except (DamageError, LimitError) as error:
            outcomes.add(type(error))
            if "cannot be read" not in str(error):
                reader = Confined(_Reader, 2**29, "meta.mat")
    assert outcomes >= {dict, DamageError}


def test_a_meta_mat_that_swells_is_refused(devkit: Path) -> None:
    """640 MiB of zeros in three, as the variable that is read: the process's memory is bounded."""
    header = (devkit / "data" / META).read_bytes()[:128]
    size = 640 * 2**20
    packer = zlib.compressobj(1)
    name = struct.pack("<II8s", 1, 7, b"synsets")
    array = struct.pack("<II8sIIii", 6, 8, bytes([6]), 5, 8, 1, size // 8) + name + struct.pack("<II", 9, size)
    packed = packer.compress(struct.pack("<II", 14, len(array) + size) + array)
    packed += b"".join(packer.compress(bytes(2**20)) for _ in range(size // 2**20)) + packer.flush()
    with pytest.raises(LimitError, match=r"meta\.mat asks for more than 0.5 GiB of memory while it is read"):
        synsets_by_number(header + struct.pack("<II", 15, len(packed)) + packed, "meta.mat")


def test_untrusted_archives_are_refused_with_the_place(tmp_path: Path) -> None:
    """Links, names that point outside, cut archives and cut gzip files stop the run; nothing is extracted."""
    link = tarfile.TarInfo("cat/link.jpg")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
    with tarfile.open(tmp_path / "link.tar", "w") as tar:
        tar.addfile(link)
    with pytest.raises(UnsafeError, match=r"link.tar: byte 0: .*link.jpg is a symbolic link"):
        pack(tmp_path / "link.tar", tmp_path / "out")
    outside = make_tar(tmp_path / "outside.tar", [("cat/../../evil.jpg", b"\xff\xd8\xff")])
    with pytest.raises(UnsafeError, match=r"cat/../../evil.jpg points out of the archive"):
        pack(outside, tmp_path / "out")
    whole = make_tar(tmp_path / "whole.tar", [("cat/1.jpg", bytes(3000)), ("dog/2.jpg", bytes(3000))]).read_bytes()
    (tmp_path / "cut.tar").write_bytes(whole[:5000])
    with pytest.raises(DamageError, match=r"cut.tar: byte 3584: dog/2.jpg claims 3000 bytes, .*cut short"):
        pack(tmp_path / "cut.tar", tmp_path / "out")
    (tmp_path / "cut.tar.gz").write_bytes(gzip.compress(whole)[:-20])
    with pytest.raises(DamageError, match=r"cut.tar.gz cannot be decompressed"):
        pack(tmp_path / "cut.tar.gz", tmp_path / "out")
    (tmp_path / "text.tar").write_text("no archive at all")
    with pytest.raises(DamageError, match=r"text.tar: byte 0"):
        pack(tmp_path / "text.tar", tmp_path / "out")
    nested = make_tar(tmp_path / "nested.tar", [("cats.tar", whole)])
    with pytest.raises(InputError, match=r"cats.tar is an archive that is not named as a class"):
        pack(nested, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").rglob("*")) == [".pack-train", ".pack.lock"]


def test_a_huge_member_is_refused_before_it_is_read(tmp_path: Path) -> None:
    """A member of more bytes than any image has is refused by its header."""
    with (tmp_path / "huge.tar").open("wb") as file:
        info = tarfile.TarInfo("cat/1.jpg")
        info.size = 300 * 1024 * 1024
        file.write(info.tobuf())
        file.truncate(info.size + 3 * 512)  # a hole: it takes no space here
    with pytest.raises(LimitError, match=r"cat/1.jpg: 314572800 bytes; an image has at most"):
        pack(tmp_path / "huge.tar", tmp_path / "out")


def test_a_devkit_that_swells_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A gzip archive that claims a text of gigabytes is not read into memory."""
    info = tarfile.TarInfo(f"devkit/{GROUND_TRUTH}")
    info.size = 2 * 1024**3
    (tmp_path / "bomb.tar.gz").write_bytes(gzip.compress(info.tobuf() + bytes(1024)))
    with pytest.raises(LimitError, match=r"more than 1073741824 bytes when decompressed"):
        validation_labels(tmp_path / "bomb.tar.gz")
    small = io.BytesIO()
    with tarfile.open(fileobj=small, mode="w:gz") as tar:
        info.size = 70 * 1024**2
        tar.addfile(info, io.BytesIO(bytes(info.size)))
    (tmp_path / "large.tar.gz").write_bytes(small.getvalue())
    with pytest.raises(LimitError, match=r"ground_truth.txt: more than \d+ bytes"):
        validation_labels(tmp_path / "large.tar.gz")
    info.type, info.size = tarfile.XHDTYPE, 256 * 1024**2  # a name record, which tarfile reads whole
    (tmp_path / "name.tar.gz").write_bytes(gzip.compress(info.tobuf() + bytes(info.size), 1))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    monkeypatch.setattr("dlth.data.packing.imagenet._DEVKIT_MEMORY", 2**27)
    with pytest.raises(LimitError, match=r"asks for more than 0\.125 GiB"):
        validation_labels(tmp_path / "name.tar.gz")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**15  # KiB
