"""One tar header, 512 bytes: its fields, and what in it tar readers do not read alike.

A format of five dialects has corners. Python's `tarfile` ends an archive, without a word, at a number that it cannot
read, takes the name's prefix whatever the dialect, and skips no content of a folder; GNU tar and libarchive do
otherwise. A sample that stands in such a corner is there for one reader and not for another, so a set would be one
thing when it is checked and another when it is trained on. Headers are therefore read as all readers read them, or
refused. Pure functions of the 512 bytes.
"""

BLOCK = 512
OCTAL_LIMIT = 8**11  # bytes: sizes from here on do not fit the field's eleven octal digits
_NUMBERS = {
    "mode": slice(100, 108),
    "owner": slice(108, 116),
    "group": slice(116, 124),
    "time": slice(136, 148),
    "device": slice(329, 337),
    "minor device": slice(337, 345),
}


def is_sound(header: bytes) -> bool:
    """Whether the checksum in the header is that of its bytes, its own field taken as eight spaces."""
    return _octal(header[148:156]) == sum(header) - sum(header[148:156]) + 8 * 32


def size_field(header: bytes) -> int | None:
    """The size in octal, or in GNU's base 256 for 8 GiB and more; None if it is neither."""
    field = header[124:136]
    return int.from_bytes(field[1:], "big") if field[0] == 0x80 else _octal(field)


def name_field(header: bytes) -> bytes:
    """The name of a header, with ustar's prefix (GNU and v7 headers have other things there)."""
    name, prefix = _own_name(header), _prefix(header)
    return prefix + b"/" + name if prefix and _is_ustar(header) else name


def is_old_folder(header: bytes) -> bool:
    """Whether this is a folder as before POSIX: a file of the type NUL with a name before its slash at the end."""
    name = _own_name(header)
    return header[156:157] == b"\0" and name.endswith(b"/") and bool(name.strip(b"/"))


def disputed(header: bytes) -> str:
    """What in this header tar readers understand differently, as text; empty if nothing."""
    for name, place in _NUMBERS.items():
        if not _is_number(header[place]):
            return f"the header's {name} field is not a number"
    prefix = _prefix(header)
    if prefix and not _is_ustar(header):
        return "the header has a prefix of the name, and is of a format that has none"
    if prefix and (prefix.endswith(b"/") or not _own_name(header)):
        return "the name's prefix ends in a slash, or has no name behind it"
    return ""


def _own_name(header: bytes) -> bytes:
    return header[:100].partition(b"\0")[0]


def _prefix(header: bytes) -> bytes:
    return header[345:500].partition(b"\0")[0]


def _is_ustar(header: bytes) -> bool:
    return header[257:263] == b"ustar\0"


def _is_number(field: bytes) -> bool:
    """Whether the field is empty, octal, or base 256 (of which times and owners may be negative)."""
    return field[0] in (0x80, 0xFF) or not field.strip(b"\0 ") or _octal(field) is not None


def _octal(field: bytes) -> int | None:
    digits = field.rstrip(b"\0 ").lstrip(b" ")
    if not digits or digits.strip(b"01234567"):
        return None
    return int(digits, 8)
