"""One family of errors, each with a stable code, each also a builtin.

Why: the command line turns every `DlthError` into one line and exit code 2, scripts match on `code`, and callers who
know nothing of dlth still catch `ValueError` or `FileNotFoundError`. Messages are made where the values are known; they
say what was wrong, where, what was expected and found, and what to do.
"""

import errno

SHOWN_LIMIT = 200
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What systems say of a full disk, a used-up quota, and a file above the limit that a process has."""


class DlthError(Exception):
    """Base of every error a user can cause or meet; `code` is stable across versions."""

    code = "E_DLTH"

    def __str__(self) -> str:  # KeyError would put the message in quotes
        return str(self.args[0]) if self.args else self.code


class InputError(DlthError, ValueError):
    """An argument or option cannot be used."""

    code = "E_INPUT"


class MissingFileError(DlthError, FileNotFoundError):
    """A file or folder that was named is not there."""

    code = "E_MISSING_FILE"


class IncompleteError(DlthError):
    """A ticket file is not finished."""

    code = "E_INCOMPLETE"


class DamageError(DlthError, ValueError):
    """Stored bytes are not what was written: a digest, a size, a missing chunk or a broken invariant.

    `shard` and `file` name the place; each is empty where it does not apply.
    """

    code = "E_DAMAGE"

    def __init__(self, message: str, shard: str = "", file: str = "") -> None:
        super().__init__(message)
        self.shard = shard
        self.file = file


class SchemaError(DlthError, ValueError):
    """A header, manifest or other structured text does not follow its schema."""

    code = "E_SCHEMA"


class UnsafeError(DlthError):
    """Something from outside asks for what data may never ask for: a link, a device, a foreign file, a command."""

    code = "E_UNSAFE"


class LimitError(DlthError):
    """A size from outside is above a fixed bound."""

    code = "E_LIMIT"


class MismatchError(DlthError, ValueError):
    """Two things that must agree do not: configuration, dataset, grid, budget."""

    code = "E_MISMATCH"


class MissingTicketError(DlthError, KeyError):
    """An image has no ticket in the file."""

    code = "E_NO_TICKET"


class LockedError(DlthError):
    """Another process owns what was asked for."""

    code = "E_LOCK"


class SignatureError(DlthError, ValueError):
    """A signature does not belong to this ticket file and this key."""

    code = "E_SIGNATURE"


class TransferError(DlthError, ConnectionError):
    """A transfer broke off; what came through is kept, and the same command goes on from there."""

    code = "E_TRANSFER"


class SpaceError(DlthError, OSError):
    """The disk is full; what was there before is whole."""

    code = "E_SPACE"


def plain(text: str, keep: str = "\n\t") -> str:
    """Text in which every control, format, surrogate and odd space character but those of `keep` is an escape."""
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() or char in keep else char.encode("unicode_escape").decode() for char in text
    )


def shown(text: object, limit: int = SHOWN_LIMIT) -> str:
    """Text from outside made safe to print on one line: as `plain`, newlines too, and cut to `limit`."""
    raw = str(text)
    safe = plain(raw[:limit], keep="")
    return f"{safe}… ({len(raw)} characters)" if len(raw) > limit else safe
