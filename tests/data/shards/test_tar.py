"""The strict tar walk: agrees with `tarfile` on sound archives, and no damage passes as fewer members."""

import gzip
import io
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from makers.pictures import make_tar

from dlth.data.packing.archives import archive_files
from dlth.data.shards.tar import Member, check_header, members, pread
from dlth.data.shards.tar_header import BLOCK
from dlth.tickets.errors import DamageError, DlthError, LimitError, UnsafeError

CONTENTS = [("a/x.jpg", b"J" * 700), ("a/x.cls", b"3"), ("empty.jpg", b""), ("b.jpg", b"K" * 512), ("b.cls", b"0")]


def walk(path: Path) -> list[Member]:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return list(members(descriptor, os.fstat(descriptor).st_size, where="s.tar"))
    finally:
        os.close(descriptor)


def walk_bytes(tmp_path: Path, content: bytes) -> list[Member]:
    path = tmp_path / "mutant.tar"
    path.write_bytes(content)
    return walk(path)


def header(name: str, size: int = 0, kind: bytes = b"0") -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info.tobuf(tarfile.USTAR_FORMAT)


def with_pax(fields: str, kind: bytes = b"x") -> bytes:
    return header("pax", len(fields), kind) + fields.encode().ljust(-(-len(fields) // BLOCK) * BLOCK, b"\0")


@pytest.mark.parametrize("tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_walk_agrees_with_tarfile(tar_format: int, tmp_path: Path) -> None:
    """Names (long, not ASCII), offsets and sizes of each common dialect are those that tarfile finds."""
    deep = [("d" * 60 + "/" + "e" * 90 + ".jpg", b"1"), ("ü.jpg", b"2")]
    if tar_format != tarfile.USTAR_FORMAT:
        deep += [("f" * 300 + ".jpg", b"3"), ("ü" * 200 + ".jpg", b"4")]
    path = make_tar(tmp_path / "s.tar", CONTENTS + deep, tar_format)
    with tarfile.open(path) as tar:
        expected = [(info.name, info.offset_data, info.size) for info in tar]
    assert [tuple(member) for member in walk(path)] == expected


def test_a_label_of_the_archive_changes_no_member(tmp_path: Path) -> None:
    """`tar --format=posix -V name` writes one global record; it says nothing of where members lie."""
    content = with_pax("25 GNU.volume.label=name\n", b"g") + header("a.jpg", 512) + bytes(512) + bytes(1024)
    assert [member.name for member in walk_bytes(tmp_path, content)] == ["a.jpg"]


def test_folders_are_passed_over_and_an_empty_archive_is_empty(tmp_path: Path) -> None:
    """Directory entries, old and new style, are no members; two zero blocks are a whole archive."""
    content = header("d/", kind=b"5") + header("old/", kind=b"\0") + header("d/a.jpg") + bytes(1024)
    assert [member.name for member in walk_bytes(tmp_path, content)] == ["d/a.jpg"]
    assert walk_bytes(tmp_path, bytes(1024)) == []


def test_a_tar_within_a_tar(tmp_path: Path) -> None:
    """ImageNet's training archive: the inner walk starts at the outer member's offset and stays within its size."""
    inner = make_tar(tmp_path / "n01.tar", CONTENTS)
    outer = make_tar(tmp_path / "train.tar", [("n01.tar", inner.read_bytes()), ("n02.tar", inner.read_bytes())])
    second = walk(outer)[1]
    descriptor = os.open(outer, os.O_RDONLY)
    found = [
        (member.name, pread(descriptor, member.offset, member.size))
        for member in members(descriptor, second.size, where="n02.tar", start=second.offset)
    ]
    assert found == CONTENTS
    with pytest.raises(DamageError, match=r"^n02.tar: byte 0: a/x.jpg claims 700 bytes, 512 are"):
        list(members(descriptor, 1024, where="n02.tar", start=second.offset))
    os.close(descriptor)


def test_every_cut_is_an_error_or_loses_nothing(tmp_path: Path) -> None:
    """At all 64-byte steps a cut is refused; only cuts within the padding after the end mark keep every member."""
    whole = make_tar(tmp_path / "s.tar", CONTENTS).read_bytes()
    expected = walk_bytes(tmp_path, whole)
    end_mark = max(member.offset + -(-member.size // BLOCK) * BLOCK for member in expected) + 2 * BLOCK
    refused = 0
    for length in range(0, len(whole), 64):
        try:
            found = walk_bytes(tmp_path, whole[:length])
        except DamageError:
            refused += 1
            continue
        assert length >= end_mark
        assert found == expected
    assert refused >= end_mark // 64


@pytest.mark.parametrize("tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT])
def test_flips_in_headers_are_all_found(tar_format: int, tmp_path: Path) -> None:
    """Every single flipped bit of a header is an error; flips in content, padding aside, leave every member in place.

    (Three bits swap a NUL, a space or a leading zero of the checksum's own text: nothing is lost.) tarfile ends
    the archive there without a word. A flip inside an image is told by its content hash, in a label by the digest.
    """
    path = make_tar(tmp_path / "s.tar", CONTENTS, tar_format)
    whole, expected = path.read_bytes(), walk(path)
    descriptor, harmless = os.open(path, os.O_RDWR), 0

    def walk_flipped(place: int, bit: int) -> list[Member]:
        os.pwrite(descriptor, bytes([whole[place] ^ 1 << bit]), place)
        try:
            return list(members(descriptor, len(whole), where="s.tar"))
        finally:
            os.pwrite(descriptor, whole[place : place + 1], place)

    start = expected[1].offset - BLOCK
    for bit in range(BLOCK * 8):
        try:
            found = walk_flipped(start + bit // 8, bit % 8)
        except DlthError:
            continue
        assert found == expected
        assert 148 <= bit // 8 < 156
        harmless += 1
    assert harmless == 3
    rng = np.random.default_rng(0)
    contents = [member.offset + i for member in expected for i in range(member.size)]
    for place, bit in zip(rng.choice(contents, 500).tolist(), rng.integers(0, 8, 500).tolist(), strict=True):
        assert walk_flipped(place, bit) == expected
    os.close(descriptor)


END = bytes(1024)
BODY = b"J" * 512


def hidden() -> bytes:
    """A sample that a folder's content holds."""
    return header("hidden.jpg", 512) + BODY


def with_long_name(name: bytes) -> bytes:
    return header("././@LongLink", len(name), b"L") + name.ljust(512, b"\0")


def patched(at: int, value: bytes, kind: bytes = b"0", size: int = 0) -> bytes:
    """A header with other bytes at one place, and a checksum that is right."""
    raw = bytearray(header("a.jpg", size, kind))
    raw[at : at + len(value)] = value
    raw[148:156] = b" " * 8
    raw[148:156] = b"%06o\0 " % sum(raw)
    return bytes(raw)


DISPUTED: dict[str, tuple[bytes, str]] = {
    "folder with a size": (header("d/", 1024, b"5") + hidden(), "d/ is a folder of 1024 bytes"),
    "old folder with a size": (header("d/", 1024, b"\0") + hidden(), "d/ is a folder of 1024 bytes"),
    "folder with a pax size": (
        with_pax("13 size=1024\n") + header("d", 1024, b"5") + hidden(),
        "d/ is a folder of 1024",
    ),
    "file that ends like a folder": (header("a.jpg/", 512) + BODY, "a.jpg/ is a file to some and a folder to others"),
    "record that ends like a folder": (with_pax("15 path=a.jpg/\n") + header("b.jpg"), "a.jpg/ is a file to some"),
    "old folder, file by its record": (with_long_name(b"a.jpg\0") + header("d/", 0, b"\0"), "a.jpg is a file to some"),
    "pax size against the header": (
        with_pax("12 size=512\n") + header("a.jpg") + BODY,
        "has 512 bytes by its pax header",
    ),
    "two pax records": (with_pax("14 path=b.jpg\n") * 2 + header("a.jpg"), "two name records stand before one member"),
    "long name and pax": (with_long_name(b"a\0") + with_pax("14 path=b.jpg\n") + header("a.jpg"), "two name records"),
    "something behind a record": (
        with_pax("14 path=b.jpg\n")[:-20] + b"14 path=c.jpg\n".ljust(20, b"\0") + header("a.jpg"),
        "bytes other than zero follow a name record",
    ),
    "a mode that is no number": (patched(100, b"0o644\0"), "the header's mode field is not a number"),
    "a signed owner": (patched(108, b"+12\0"), "the header's owner field is not a number"),
    "a time that is no number": (patched(136, b"yesterday\0"), "the header's time field is not a number"),
    "a prefix in a GNU header": (patched(257, b"ustar  \0".ljust(88, b"\0") + b"dir"), "of a format that has none"),
    "a prefix with a slash": (patched(345, b"dir/"), "prefix ends in a slash"),
}


@pytest.mark.parametrize("case", DISPUTED)
def test_what_readers_see_differently_is_refused_by_name(case: str, tmp_path: Path) -> None:
    """Where two readers would list other samples or bytes, the shard is refused with its byte, also inside a tar."""
    content, message = DISPUTED[case]
    with pytest.raises(UnsafeError, match=rf"^s.tar: byte \d+: .*{message}.*: tar readers differ on it"):
        walk_bytes(tmp_path, content + END)
    inner = content + END
    outer = tmp_path / "train.tar"
    outer.write_bytes(header("n01440764.tar", len(inner)) + inner + END)
    with pytest.raises(UnsafeError, match=message):
        list(archive_files(outer, tmp_path))


def test_a_member_of_8_gib_as_python_writes_it(tmp_path: Path) -> None:
    """Such a size stands in a pax header and as zero in the member's own: no contradiction."""
    path, size = tmp_path / "s.tar", 8**11
    info = tarfile.TarInfo("video.mp4")
    info.size = size
    head = info.tobuf(tarfile.PAX_FORMAT)
    with open(path, "wb") as file:
        file.write(head)
        file.seek(len(head) + size)
        file.write(header("a.jpg", 512) + BODY + END)
    assert walk(path) == [("video.mp4", len(head), size), ("a.jpg", len(head) + size + BLOCK, 512)]


LIES: dict[str, tuple[bytes, type[DlthError], str]] = {
    "empty file": (b"", DamageError, "byte 0: the end mark of the archive is missing"),
    "half a block": (b"\0" * 100, DamageError, "byte 0: 512 bytes must follow, 100 are left"),
    "one zero block": (bytes(512), DamageError, "the end mark takes two blocks of 512 bytes, 512 bytes are left"),
    "no end": (header("a.jpg"), DamageError, "byte 512: the end mark of the archive is missing"),
    "odd end": (header("a.jpg") + END + b"\0", DamageError, "1025 bytes are left"),
    "garbage after the end": (END + b"x" * 512, DamageError, "bytes other than zero follow the end mark"),
    "two tars joined": (header("a.jpg") + END + header("b.jpg") + END, DamageError, "byte 512: .*joined tars"),
    "endless size in one block": (header("a.jpg", 2**33 - 1), DamageError, "size field is 8589934591 bytes"),
    "size past the end": (header("a.jpg", 1025) + END, DamageError, "a.jpg claims 1025 bytes, 1024 are left"),
    "hard link": (header("a.jpg", kind=b"1") + END, UnsafeError, "a.jpg is a hard link"),
    "symbolic link": (header("a.jpg", kind=b"2") + END, UnsafeError, "a.jpg is a symbolic link"),
    "character device": (header("a.jpg", kind=b"3") + END, UnsafeError, "a.jpg is a character device"),
    "block device": (header("a.jpg", kind=b"4") + END, UnsafeError, "a.jpg is a block device"),
    "FIFO": (header("a.jpg", kind=b"6") + END, UnsafeError, "a.jpg is a FIFO"),
    "GNU sparse": (header("a.jpg", kind=b"S") + END, UnsafeError, "a.jpg is a sparse file"),
    "unknown type": (header("a.jpg", kind=b"Z") + END, UnsafeError, "member type b'Z' is unknown"),
    "escape in a name": (header("\x1b[2J.jpg", kind=b"2") + END, UnsafeError, r"\\x1b\[2J.jpg is a symbolic link"),
    "pax sparse": (with_pax("22 GNU.sparse.major=1\n") + header("a.jpg") + END, UnsafeError, "a sparse file"),
    "pax link": (with_pax("14 linkpath=a\n") + header("a.jpg") + END, UnsafeError, "the next member a link"),
    "global name": (with_pax("14 path=b.jpg\n", b"g") + header("a.jpg") + END, UnsafeError, "changes every member"),
    "pax size of its own": (
        with_pax("13 size=9999\n") + header("a") + END,
        UnsafeError,
        "a has 9999 bytes by its pax h",
    ),
    "pax size past the end": (
        with_pax("19 size=8589934592\n") + header("a") + END,
        DamageError,
        "a claims 8589934592 bytes",
    ),
    "pax size no number": (with_pax("11 size=-1\n") + header("a.jpg") + END, DamageError, "gives the size b'-1'"),
    "pax length wrong": (with_pax("99 path=b.jpg\n") + header("a.jpg") + END, DamageError, "pax header is malformed"),
    "pax length zero": (with_pax("0 path=b.jpg\n") + header("a.jpg") + END, DamageError, "pax header is malformed"),
    "pax of another alphabet": (with_pax("22 hdrcharset=latin-1\n") + header("a") + END, UnsafeError, "not in UTF-8"),
    "pax with a key twice": (with_pax("14 path=b.jpg\n14 path=c.jpg\n") + header("a") + END, DamageError, "malformed"),
    "pax with an empty name": (with_pax("8 path=\n") + header("a") + END, UnsafeError, "gives an empty path"),
    "pax with a size of holes": (
        with_pax("23 SCHILY.realsize=512\n") + header("a") + END,
        UnsafeError,
        "SCHILY.realsize",
    ),
    "global at the end": (with_pax("12 comment=\n", b"g") + END, DamageError, "followed by the end"),
    "pax at the end": (with_pax("14 path=b.jpg\n") + END, DamageError, "name record is followed by the end"),
    "NUL in a name": (with_pax("12 path=b\0g\n") + header("a.jpg") + END, DamageError, "one with a NUL in it"),
    "huge name record": (with_pax("x" * 70_000) + header("a.jpg") + END, LimitError, "a name record of 70000 bytes"),
    "no name": (header("") + END, DamageError, "a member has no name"),
    "gzip": (gzip.compress(header("a.jpg") + END).ljust(1024, b"\0"), UnsafeError, "a gzip file, not a plain tar"),
    "text": (b"<html>no such shard</html>".ljust(1024, b" "), DamageError, "byte 0: this is not a sound tar header"),
}


@pytest.mark.parametrize("lie", LIES)
def test_what_a_tar_may_not_be(lie: str, tmp_path: Path) -> None:
    """Each way an archive can lie is refused with shard and byte, at once and without reading far."""
    content, error, message = LIES[lie]
    with pytest.raises(error, match=f"^s.tar: byte .*{message}|^s.tar: {message}"):
        walk_bytes(tmp_path, content)


def test_a_name_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    """Keys are UTF-8 in ticket files; a Latin-1 name says so instead of becoming another key."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w", format=tarfile.USTAR_FORMAT, encoding="latin-1") as tar:
        tar.addfile(tarfile.TarInfo("café.jpg"))
    with pytest.raises(DamageError, match=r"name b'caf\\xe9.jpg' is not UTF-8"):
        walk_bytes(tmp_path, content.getvalue())


def test_check_header_knows_its_file() -> None:
    """The header right before an image is sound and of that size, or reading it is refused."""
    assert check_header(header("a.jpg", 77), 77)
    assert not check_header(header("a.jpg", 77), 78)
    assert not check_header(header("a.jpg", 77, b"2"), 77)
    assert not check_header(bytes(512), 0)
    assert not check_header(b"short", 5)
