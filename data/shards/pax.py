"""Pax records: ``length key=value\\n`` lines that say more about the next member of a tar, or about all.

What changes where a member's bytes lie or which they are (sparse maps, links, volumes) is refused, and so is whatever
two readers take differently: a key twice, an empty value (POSIX takes it for "as in the header", Python for an empty
name), names in another alphabet. Attributes, times and comments of any vendor are passed over.
"""

_MEMBER_KEYS = ("GNU.", "SUN.", "SCHILY.realsize", "SCHILY.filetype", "SCHILY.tarfiletype", "SCHILY.offset")
"""Beginnings of keys that make a member of something else than the bytes that follow: sparse, volumes, dumps."""
_LABEL = "GNU.volume.label"  # `tar -V`: a name for the whole archive, which changes no member
_CHARSETS = (b"BINARY", b"ISO-IR 10646 2000 UTF-8")  # dlth takes names as UTF-8 in both
_MAX_DIGITS = 12


def pax_fields(record: bytes) -> dict[str, bytes] | None:
    """The fields of a record by key; None where it is malformed or a key stands twice."""
    fields, position = dict[str, bytes](), 0
    while position < len(record):
        digits, space, _ = record[position : position + _MAX_DIGITS].partition(b" ")
        length = int(digits) if space and digits.isdigit() else 0
        field = record[position + len(digits) + 1 : position + length]
        raw, equals, value = field[:-1].partition(b"=")
        key = raw.decode("utf-8", "replace")
        if length <= len(digits) + 1 or position + length > len(record) or not equals or field[-1:] != b"\n":
            return None
        if not key or not key.isprintable() or key in fields:
            return None
        fields[key] = value
        position += length
    return fields


def refused(fields: dict[str, bytes], is_global: bool) -> str:
    """What in these fields cannot be read, or is read differently by tar readers, as text; empty if nothing."""
    if any(key.startswith("GNU.sparse") for key in fields):
        return "a pax header makes the next member a sparse file"
    if "linkpath" in fields:
        return "a pax header makes the next member a link"
    if changed := next((key for key in fields if key.startswith(_MEMBER_KEYS) and key != _LABEL), ""):
        return f"a pax header says {changed!r}, which makes the next member something else than a plain file"
    if is_global and fields.keys() & {"path", "size"}:
        return "a global pax header changes every member's name or size"
    if fields.get("hdrcharset", _CHARSETS[0]) not in _CHARSETS:
        return "a pax header's names are not in UTF-8"
    if empty := next((key for key in ("path", "size") if fields.get(key) == b""), ""):
        return f"a pax header gives an empty {empty}"
    return ""
