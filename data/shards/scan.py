"""One shard's samples: which member is an image, which a label, and what would lose a sample without a word.

A member's key is its path up to the first dot of the base name, as webdataset has it, folders included and a leading
``./`` left out; the rest is its suffix. Names that begin with a dot (macOS writes ``._x.jpg``) have no key. Images are
``jpg jpeg png webp``, labels ``cls`` (digits), in any case; other members are counted and left alone, never read and
never unpickled. Members of a sample need not stand side by side. A sample's row is the position of its image among the
shard's images.

Refused by name, because a sample would be missing: two images or labels for one key, a label without an image, and a
member that looks like an image but whose key has none (``IMG.01.jpg`` has the key ``IMG``; ``a.tiff`` is not decoded).
So is an image or label in a folder like ``__a__/``, which webdataset's readers skip as their own.
"""

import re
from dataclasses import dataclass, field
from typing import NoReturn

from dlth.data.shards.tar import Member, members, pread
from dlth.tickets.errors import DamageError, InputError, LimitError, UnsafeError, shown

IMAGE_SUFFIXES = frozenset(("jpg", "jpeg", "png", "webp"))
LABEL_SUFFIX = "cls"
MAX_IMAGE_BYTES = 256 * 1024 * 1024
MAX_KEY_BYTES = 1024
_SKIPPED = re.compile(r"__[^/]*__($|/)")
"""At the beginning of a name: what webdataset's readers pass over (its `skip_meta`)."""
_PICTURES = IMAGE_SUFFIXES | {"gif", "bmp", "tif", "tiff", "ppm", "avif", "heic", "jxl", "jp2"}
_MAX_LABEL_BYTES = 32
MAX_CLASSES = 1_000_000
"""No label reaches this: the largest sets of images have some 200,000 classes (Google Landmarks)."""


@dataclass
class Rows:
    """One shard's samples in order: keys (UTF-8), where each image lies and its size (bytes of the shard), labels."""

    keys: list[bytes] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    num_ignored: int = 0


def split_name(name: str) -> tuple[str, str]:
    """(key, suffix in lower case) of a member's name; both empty where the base name has no dot or begins with one."""
    while name.startswith("./"):
        name = name[2:]
    folder, slash, base = name.rpartition("/")  # nothing is normalised: a//b and a/b are two keys to webdataset
    stem, dot, suffix = base.partition(".")
    return (folder + slash + stem, suffix.lower()) if stem and dot else ("", "")


def scan(descriptor: int, size: int, where: str) -> Rows:
    """Walk an open shard of `size` bytes; `where` names it. Raises DamageError, UnsafeError, LimitError, InputError."""
    images: dict[str, Member] = {}
    labels: dict[str, Member] = {}
    doubtful: dict[str, Member] = {}
    num_ignored = 0
    for member in members(descriptor, size, where=where):
        key, suffix = split_name(member.name)
        kind = images if suffix in IMAGE_SUFFIXES else labels if suffix == LABEL_SUFFIX else None
        if key and kind is not None:
            if _SKIPPED.match(member.name):
                _missing(where, member, "folder is one that webdataset's readers skip: they would see fewer samples")
            if key in kind:
                _twice(where, key, kind[key], member)
            kind[key] = member
            continue
        num_ignored += 1
        if key and suffix.rpartition(".")[2] in _PICTURES:
            doubtful.setdefault(key, member)
    for key, member in labels.items():
        if key not in images:
            _missing(where, member, f"label of {shown(key)!r} has no image in this shard")
    for key, member in doubtful.items():
        if key not in images:
            _missing(
                where, member, f"sample {shown(key)!r} (a key ends at the first dot) has no jpg, jpeg, png or webp"
            )
    rows = Rows(num_ignored=num_ignored)
    for key, member in images.items():
        rows.keys.append(_checked_key(key, member, where))
        rows.offsets.append(member.offset)
        rows.sizes.append(member.size)
        rows.labels.append(read_label(descriptor, labels[key], where, key) if key in labels else -1)
        if member.size > MAX_IMAGE_BYTES:
            raise LimitError(
                f"{shown(where)}: byte {member.offset}: image {shown(member.name)} has {member.size} bytes; "
                f"at most {MAX_IMAGE_BYTES} are read. Leave it out of the shard."
            )
    return rows


def _twice(where: str, key: str, first: Member, second: Member) -> NoReturn:
    raise InputError(
        f"{shown(where)}: key {shown(key)!r} has two members of one kind: {shown(first.name)} at byte {first.offset} "
        f"and {shown(second.name)} at byte {second.offset}. A key must name one image: repack the shard (dlth pack)."
    )


def _missing(where: str, member: Member, what: str) -> NoReturn:
    raise DamageError(
        f"{shown(where)}: byte {member.offset}: {shown(member.name)}: the {what}. "
        "The shard is damaged or made otherwise than WebDataset's: fetch it again or repack it (dlth pack).",
        shard=where,
    )


def _checked_key(key: str, member: Member, where: str) -> bytes:
    raw = key.encode()
    if len(raw) > MAX_KEY_BYTES:
        raise LimitError(f"{shown(where)}: byte {member.offset}: a key of {len(raw)} bytes; at most {MAX_KEY_BYTES}")
    if key.startswith("/") or ".." in key.split("/"):
        raise UnsafeError(f"{shown(where)}: byte {member.offset}: the key {shown(key)!r} points out of its folder")
    return raw


def read_label(descriptor: int, member: Member, where: str, key: str) -> int:
    """The class number in a ``.cls`` member of an open shard; raises DamageError, naming shard and key."""
    content = pread(descriptor, member.offset, min(member.size, _MAX_LABEL_BYTES)).strip()
    if member.size > _MAX_LABEL_BYTES or not content.isdigit() or int(content) >= MAX_CLASSES:
        raise DamageError(
            f"{shown(where)}: byte {member.offset}: the label of {shown(key)!r} must be a class number in digits, "
            f"found {shown(ascii(content))[1:]} ({member.size} bytes). It goes from 0 to {MAX_CLASSES - 1}; an "
            "image of no class has no .cls member.",
            shard=where,
        )
    return int(content)
