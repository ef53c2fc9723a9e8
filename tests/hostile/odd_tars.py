"""Odd tars: dlth refuses each, or finds what Python's tarfile (and GNU tar, where asked for) finds in it.

    python odd_tars.py [--count 1000] [--first 0] [--tar /usr/bin/tar] [--weaken]

Tar n is a function of n: a few samples, in which one to three headers or records were made odd, with checksums that
are right. Contents hold headers of their own, so that a reader which skips too little or too much sees other members.
With `--weaken` nothing is disputed, as before, and findings must appear. Prints one JSON object; exit code 1 with
findings.
"""

import io
import os
import random
import subprocess
import sys
import tarfile
import tempfile
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from makers.campaign import Tally, numbered

from dlth.data.shards import tar
from dlth.tickets.errors import DlthError

Found = list[tuple[str, bytes]]
FIELDS = {"mode": (100, 8), "uid": (108, 8), "gid": (116, 8), "size": (124, 12), "mtime": (136, 12), "device": (329, 8)}
MAGICS = (b"ustar\x0000", b"ustar  \0", bytes(8), b"ustar\x01\x01\x01", b"USTAR\x0000")


def numbers(value: int, width: int) -> list[bytes]:
    """Spellings of a number, and what is none, for a field of so many bytes."""
    octal = b"%o" % value
    spelled = [octal, octal.zfill(width), octal.rjust(width), octal + b" \0", b"+" + octal, b"-" + octal, b"0o" + octal]
    spelled += [b"\0" + octal, b"  \0" + octal, octal + b"\0009", octal + b" 7", b"1_2", b"9", b"x", b"", b" "]
    based = [bytes([first]) + value.to_bytes(width - 1, "big") for first in (0x80, 0xFF, 0x81, 0xC0)]
    return [*spelled, *based]


class Head:
    """A header whose bytes may be set; its checksum is made last."""

    def __init__(self, name: bytes, size: int, kind: bytes = b"0") -> None:
        self.raw = bytearray(tarfile.TarInfo("n").tobuf(tarfile.USTAR_FORMAT)[:512])
        self.put(0, name, 100)
        self.put(124, b"%011o\0" % size, 12)
        self.raw[156:157] = kind

    def put(self, at: int, value: bytes, width: int) -> None:
        self.raw[at : at + width] = value[:width].ljust(width, b"\0")

    def bytes(self) -> bytes:
        self.raw[148:156] = b" " * 8
        self.raw[148:156] = b"%06o\0 " % sum(self.raw)
        return bytes(self.raw)


def padded(content: bytes, filler: bytes = b"\0") -> bytes:
    return content + (filler * 512)[: -len(content) % 512]


def pax(**fields: str | bytes) -> bytes:
    """A pax record; a trailing underscore of a key makes it another entry of the same key."""
    lines = b""
    for key, value in fields.items():
        text = b" %s=%s\n" % (key.rstrip("_").replace("__", ".").encode(), _bytes(value))
        length = len(text) + next(n for n in range(1, 6) if len(str(len(text) + n)) == n)
        lines += b"%d" % length + text
    return lines


def _bytes(value: str | bytes) -> bytes:
    return value.encode() if isinstance(value, str) else value


def record(content: bytes, kind: bytes = b"x", filler: bytes = b"\0") -> bytes:
    return Head(b"record", len(content), kind).bytes() + padded(content, filler)


def odd_record(rng: random.Random, size: int) -> bytes:
    """What stands before a member whose content has `size` bytes."""
    other = rng.choice([0, size, size + 1, 512, 1024, 2048])
    fields: list[dict[str, str | bytes]] = [
        {"path": rng.choice(["z.jpg", "z.jpg/", "d/", "", "ü.jpg", "z\0.jpg", "./z.jpg"])},
        {"size": rng.choice([f"{other}", f"+{other}", f" {other}", f"{other} ", "", "-1", f"0{other}", f"{size}"])},
        {"size": f"{size}", "size_": f"{other}"},
        {"path": "y.jpg", "path_": "z.jpg"},
        {"path": b"\xe9.jpg", "hdrcharset": rng.choice(["BINARY", "ISO-IR 8859 1 1998", "ISO-IR 10646 2000 UTF-8"])},
        {rng.choice(["mtime", "comment", "SCHILY__xattr__user", "LIBARCHIVE__creationtime"]): "1"},
        {"SCHILY__realsize": f"{other}"},
        {"GNU__sparse__name": "z.jpg", "GNU__sparse__major": "1"},
        {"linkpath": "z"},
        {},
    ]
    content = pax(**rng.choice(fields))
    kind = rng.choice([b"x"] * 6 + [b"g", b"g", b"X"])
    if rng.random() < 0.3:
        name = rng.choice(
            [b"long.jpg", b"long.jpg\0", b"long.jpg\0\0", b"long\0.jpg", b"", b"\0", b"long/", b"l" * 512]
        )
        content, kind = name, b"L"
    filler = rng.choice([b"\0"] * 5 + [b"q", pax(path="padded.jpg").ljust(512, b"\0")])
    content += rng.choice([b""] * 8 + [b"\0", b"\0" * 9, b"12 \n", b"99999 path=a\n"])
    return record(content, kind, filler)


def odd_head(rng: random.Random, head: Head, size: int) -> None:
    """Change a member's own header in one way."""
    way = rng.randrange(6)
    if way == 0:
        at, width = FIELDS[rng.choice(list(FIELDS))]
        value = size if at == 124 else 420
        head.put(at, rng.choice(numbers(value, width)), width)
    elif way == 1:
        head.put(257, rng.choice(MAGICS), 8)
        head.put(345, rng.choice([b"", b"dir", b"dir/", b"/", b"\0dir", b"a/b"]), 155)
    elif way == 2:
        head.raw[156] = rng.choice(b"0\x007512346xgLKSVDMNA9z")
    elif way == 3:
        head.raw[156] = rng.choice(b"0\x0075")
        head.put(0, rng.choice([b"a.jpg/", b"d/", b"/", b"", b"a.jpg\0b", b"./a.jpg", b"\xe9.jpg", b"n" * 100]), 100)
    elif way == 4:
        head.put(257, rng.choice(MAGICS), 8)
    else:
        head.raw[156], name = rng.choice(b"0\x005"), bytes(head.raw[:100]).rstrip(b"\0")
        head.put(0, name + b"/", 100)


def odd_tar(number: int) -> bytes:
    """The odd tar of this number."""
    rng = random.Random(number)
    parts: list[bytes] = []
    odd = set(rng.sample(range(4), rng.choice([1, 1, 2])))
    for place in range(4):
        inner = Head(b"inner%d.jpg" % place, 5).bytes() + padded(b"inner")
        content = rng.choice([b"", b"5", inner, b"j" * 600, inner + inner])
        head = Head(b"m%d.jpg" % place, len(content))
        if place in odd:
            if rng.random() < 0.5:
                parts += [odd_record(rng, len(content)) for _ in range(rng.choice([1, 1, 1, 2]))]
            if rng.random() < 0.6:
                odd_head(rng, head, len(content))
            if rng.random() < 0.05:
                parts.append(bytes(512))
        parts += [head.bytes(), padded(content)]
    return b"".join(parts) + bytes(1024)


def by_dlth(descriptor: int, raw: bytes) -> Found:
    os.ftruncate(descriptor, len(raw))
    os.pwrite(descriptor, raw, 0)
    return [
        (member.name, raw[member.offset : member.offset + member.size])
        for member in tar.members(descriptor, len(raw), where="odd.tar")
    ]


def by_tarfile(raw: bytes) -> Found:
    with tarfile.open(fileobj=io.BytesIO(raw), mode="r:") as archive:
        return [(info.name, archive.extractfile(info).read()) for info in archive if info.isfile()]  # type: ignore[union-attr]


def by_program(program: str, path: Path) -> tuple[list[str], bytes]:
    """Names and joined contents of the plain files that GNU tar lists; what it says of times is of no concern."""
    common = [program, "-f", str(path)]
    listed = subprocess.run([*common, "-tv", "--quoting-style=literal"], capture_output=True).stdout
    lines = [line.split(maxsplit=5) for line in listed.decode().replace("\n\n", "\\n\n").split("\n")[:-1]]
    content = subprocess.run([*common, "-xO"], capture_output=True).stdout
    return [line[5].replace("\\n", "\n") for line in lines if line[0][0] in "-C"], content


def judge(raw: bytes, descriptor: int, path: Path, program: str) -> str:
    """What dlth says of these bytes, or how it differs."""
    try:
        found = by_dlth(descriptor, raw)
    except DlthError as error:
        return f"refused {error.code}" if "odd.tar" in str(error) else "FINDING: the message does not name the shard"
    try:
        expected = by_tarfile(raw)
    except (tarfile.TarError, ValueError) as error:
        return f"FINDING: {len(found)} members, tarfile refuses ({error})"
    if found != expected:
        return f"FINDING: {[name for name, _ in found]}, tarfile has {[name for name, _ in expected]}"
    if program:
        theirs = by_program(program, path)
        if theirs != ([name for name, _ in found], b"".join(content for _, content in found)):
            return f"FINDING: {[name for name, _ in found]}, {program} has {theirs[0]}"
    return "the same members"


def main() -> int:
    parser = numbered(__doc__, 1_000)
    parser.add_argument("--tar", default="", help="a tar program that must agree as well")
    arguments = parser.parse_args()
    if arguments.weaken:
        tar._Reader.disputed = lambda *told: None  # type: ignore[method-assign, assignment, return-value]
    tally = Tally()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "odd.tar"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
        for number in range(arguments.first, arguments.first + arguments.count):
            tally.judge(f"tar {number}", partial(judge, odd_tar(number), descriptor, path, arguments.tar))
        os.close(descriptor)
    return tally.tell(count=arguments.count)


if __name__ == "__main__":
    sys.exit(main())
