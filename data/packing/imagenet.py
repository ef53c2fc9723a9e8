"""What is particular to ImageNet (ILSVRC 2012): its file names, its synsets, and the labels of its validation images.

The training archive says each image's class by the class archive it lies in. The validation archive says nothing: its
50,000 labels are numbers in a text file, and the devkit's ``meta.mat`` says which synset a number means (its numbers
are *not* the order of sorted synsets that everyone trains with; mixing the two up costs all accuracy and raises no
error). So labels are always brought to synset names here, and become indices of the sorted names later.

Read as labels: the devkit (``ILSVRC2012_devkit_t12.tar.gz`` or its folder); ``ILSVRC2012_validation_ground_truth.txt``
with ``meta.mat`` beside it; a text with one synset a line in the images' order; Kaggle's ``LOC_val_solution.csv``.
"""

import lzma
import os
import re
import tarfile
import zlib
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import IO

from dlth.data.confined import confined
from dlth.tickets.ascii_digits import is_digits
from dlth.tickets.errors import DamageError, InputError, LimitError, MissingFileError, shown
from dlth.tickets.store.disk import open_regular
from dlth.tickets.user_files import read_named

GROUND_TRUTH, META, DEVKIT = ("ILSVRC2012_validation_ground_truth.txt", "meta.mat", "ILSVRC2012_devkit_t12.tar.gz")
MAX_TEXT = 64 * 1024 * 1024
MAX_DEVKIT = 1024 * 1024 * 1024
_DEVKIT_MEMORY = 512 * 1024 * 1024  # bytes to read the devkit with; its files have three million
WNID = re.compile(r"n[0-9]{8}")
_NUMBERED = re.compile(r"ILSVRC2012_val_([0-9]{8})")
_TRAIN_NAME = re.compile(r"(n[0-9]{8})_[0-9]+")
_HUB_NAME = re.compile(r"(n[0-9]{8}_[0-9]+|ILSVRC2012_val_[0-9]{8})_(n[0-9]{8})")


def name_and_synset(stem: str) -> tuple[str, str | None]:
    """(ImageNet's own base name, the synset it says or None) of a file name without extension.

    ``n01440764_10026`` says its synset; the Hugging Face Hub's archives append it
    (``ILSVRC2012_val_00000293_n01440764``), which is taken off so that keys agree with everyone else's.
    """
    if hub := _HUB_NAME.fullmatch(stem):
        return hub[1], hub[2]
    train = _TRAIN_NAME.fullmatch(stem)
    return stem, train[1] if train else None


def validation_labels(path: Path) -> Mapping[str, str]:
    """Synset by base name (``ILSVRC2012_val_00000001`` -> ``n01751748``) from any of the forms the module names.

    Raises `MissingFileError` where a file is not there, `DamageError` where its content is none of the forms.
    """
    if path.is_dir():
        folder = path / "data" if (path / "data").is_dir() else path
        return _from_numbers(_text(folder / GROUND_TRUTH), _content(folder / META), str(folder))
    if path.name.endswith((".tar.gz", ".tgz", ".tar")):
        files = _from_devkit(path)
        return _from_numbers(_decoded(files[GROUND_TRUTH], str(path)), files[META], str(path))
    text = _text(path)
    first = text.split("\n", 1)[0].strip()
    if first.startswith("ImageId,"):
        return _from_kaggle(text, str(path))
    if is_digits(first):
        return _from_numbers(text, _content(path.parent / META), str(path))
    return _in_order([_synset(line, str(path), row) for row, line in enumerate(text.split(), 1)])


def label_of(labels: Mapping[str, str], name: str, where: str) -> str:
    """The synset of one validation image; raises `InputError` where the labels do not speak of it."""
    if name not in labels:
        raise InputError(
            f"{shown(where)}: no label for it among {len(labels)} (the first is {next(iter(labels), '-')})"
        )
    return labels[name]


def synsets_by_number(meta: bytes, where: str) -> dict[int, str]:
    """ILSVRC2012's class numbers (1 to 1000) to synsets, from the devkit's ``meta.mat``, in a process of its own."""
    import dlth.data.packing.matfile  # noqa: F401 (scipy, which most runs do without; here, or the child would pay for it)

    synsets: dict[int, str] = confined(partial(_leaves, meta, where), _DEVKIT_MEMORY, shown(where))
    return synsets


def _leaves(meta: bytes, where: str) -> dict[int, str]:
    from dlth.data.packing.matfile import read_struct_array

    rows = read_struct_array(meta, "synsets", ("ILSVRC2012_ID", "WNID", "num_children"), where)
    leaves: dict[int, str] = {}
    for number, wnid, children in rows:
        if isinstance(number, str) or not number.is_integer() or not WNID.fullmatch(str(wnid)):
            raise DamageError(f"{shown(where)}: {shown(number)} {shown(wnid)} is no class number with its synset")
        if not children:  # the synsets above the leaves have numbers too, and no images
            leaves[int(number)] = str(wnid)
    return leaves


def _from_numbers(text: str, meta: bytes, where: str) -> Mapping[str, str]:
    synsets = synsets_by_number(meta, f"{where}: {META}")
    numbers = text.split()
    for row, number in enumerate(numbers, 1):
        if not is_digits(number) or int(number) not in synsets:
            raise DamageError(f"{shown(where)}: line {row}: {shown(number)} is no class number that {META} knows")
    return _in_order([synsets[int(number)] for number in numbers])


def _in_order(wnids: list[str]) -> Mapping[str, str]:
    return {f"ILSVRC2012_val_{number:08d}": wnid for number, wnid in enumerate(wnids, 1)}


def _from_kaggle(text: str, where: str) -> Mapping[str, str]:
    """``ILSVRC2012_val_00048981,n03995372 85 1 499 272 …``: the boxes are of no concern."""
    labels: dict[str, str] = {}
    for row, line in enumerate(text.splitlines()[1:], 2):
        name, _, boxes = line.partition(",")
        if not _NUMBERED.fullmatch(name) or name in labels:
            raise DamageError(f"{shown(where)}: line {row}: {shown(name)} is no validation image, or stands twice")
        labels[name] = _synset(boxes.partition(" ")[0], where, row)
    return labels


def _synset(text: str, where: str, row: int) -> str:
    if not WNID.fullmatch(text):
        raise DamageError(
            f"{shown(where)}: line {row}: {shown(text)} is no synset. Labels are read from {DEVKIT}, {GROUND_TRUTH} "
            f"with {META} beside it, a text of one synset a line, or LOC_val_solution.csv."
        )
    return text


def _from_devkit(path: Path) -> dict[str, bytes]:
    """Ground truth and meta.mat out of the devkit's archive, in a process of its own.

    Whoever unpacks a tar of a stranger reads its name records whole, whatever size they say they have.
    """
    files: dict[str, bytes] = confined(partial(_unpacked, path), _DEVKIT_MEMORY, shown(path))
    return files


def _unpacked(path: Path) -> dict[str, bytes]:
    """The two files of a devkit's archive, read as a stream and never extracted."""
    files: dict[str, bytes] = {}
    try:
        descriptor = open_regular(path)
    except MissingFileError as error:
        raise MissingFileError(f"{shown(path)} is not there") from error
    try:
        with os.fdopen(descriptor, "rb") as file, tarfile.open(fileobj=file, mode="r|*") as devkit:
            for member in devkit:
                if member.offset_data + member.size > MAX_DEVKIT:
                    raise LimitError(f"{shown(path)}: more than {MAX_DEVKIT} bytes when decompressed: no devkit")
                name = member.name.rsplit("/", 1)[-1]
                if name not in (GROUND_TRUTH, META) or not member.isreg():
                    continue
                stream = devkit.extractfile(member)
                files[name] = _bounded(stream, f"{path}: {name}") if stream else b""
    except (tarfile.TarError, EOFError, OSError, ValueError, lzma.LZMAError, zlib.error) as error:
        raise DamageError(f"{shown(path)} cannot be read: {shown(error)}") from error
    if missing := [name for name in (GROUND_TRUTH, META) if name not in files]:
        raise InputError(f"{shown(path)} holds no {' and no '.join(missing)}: give {DEVKIT}")
    return files


def _content(path: Path) -> bytes:
    try:
        return read_named(path, MAX_TEXT, "file of labels")
    except MissingFileError as error:
        raise MissingFileError(
            f"{shown(path)} is not there. The class numbers of ImageNet's validation labels need {META}: "
            f"give {DEVKIT} itself, or keep both files in one folder."
        ) from error


def _text(path: Path) -> str:
    return _decoded(_content(path), str(path))


def _decoded(raw: bytes, where: str) -> str:
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DamageError(f"{shown(where)} is no text of labels: {shown(error)}") from error


def _bounded(file: IO[bytes], where: str) -> bytes:
    raw = file.read(MAX_TEXT + 1)
    if len(raw) > MAX_TEXT:
        raise LimitError(f"{shown(where)}: more than {MAX_TEXT} bytes")
    return raw
