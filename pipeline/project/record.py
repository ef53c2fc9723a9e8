"""What `dlth pack` writes of its shards into the ``dlth.toml`` beside their folder: the next commands find them there.

A line is put after the file's own text, or before it where tables follow, and never into it: what a user wrote stays as
it is to the letter. A key that is there already stays too; a link stays a link, and what it points to is written. A
file that cannot be read or written is no reason to call packed shards a failure: it is said, before the work begins
where that can be seen then, and that is all.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dlth.data.shards.splits import EVALUATION, TRAINING
from dlth.pipeline.project.file import NAME
from dlth.tickets.errors import DlthError, InputError, UnsafeError, shown
from dlth.tickets.store.disk import write_files
from dlth.tickets.user_files import read_named
from dlth.training.settings.toml_text import MAX_CONFIG_BYTES, parse_toml, toml_value

_BOM = "\ufeff"


def obstacles(out: Path, split: str) -> list[str]:
    """Why the ``dlth.toml`` beside the folder `out` could not take the shards of a split, before they are packed."""
    if _key(split) is None:
        return []
    path = out.absolute().parent / NAME
    try:
        parse_toml(_own(path).removeprefix(_BOM), _near(path))
    except (DlthError, OSError) as error:
        return [f"{_near(path)} will not name these shards: {shown(error)}"]
    return []


def record_shards(out: Path, split: str, names: Sequence[str]) -> list[str]:
    """Name the shards of a split in the ``dlth.toml`` beside the folder `out`; what a person should know of it."""
    key = _key(split)
    if key is None or not names:
        return []
    folder = out.absolute()
    path = folder.parent / NAME
    spec = f"{folder.name}/{brace_range(names)}"
    try:
        own = _own(path)
        text = own.removeprefix(_BOM)
        known = parse_toml(text, _near(path))
        if known.get(key) == spec:
            return []
        if key in known:
            return [f"{_near(path)} says {key} = {shown(known[key])} already, and that stays; these are {spec}"]
        line = f"{key} = {toml_value(spec)}\n"
        added = own[: len(own) - len(text)] + _with_line(text, line, {**known, key: spec}, _near(path))
        target = Path(os.path.realpath(path))
        write_files({target: added.encode()})
    except (DlthError, OSError, UnicodeError) as error:  # a folder's name need not be UTF-8
        return [f"{_near(path)} does not name these shards: {shown(error)}"]
    return [f"{_near(path)}: {key} = {spec}"]


def _key(split: str) -> str | None:
    return "data" if split.lower() in TRAINING else "val" if split.lower() in EVALUATION else None


def _own(path: Path) -> str:
    """A file's text as it is, line ends and byte order mark too; empty where there is none."""
    if not path.exists():
        return ""
    if not path.is_file():
        raise UnsafeError(f"{_near(path)} is not a regular file, and is left as it is")
    try:
        return read_named(path, MAX_CONFIG_BYTES, "file of settings").decode()
    except UnicodeDecodeError as error:
        raise InputError(f"{_near(path)} is not TOML: {error}") from error


def _with_line(text: str, line: str, wanted: Mapping[str, Any], where: str) -> str:
    """A file's text with one more line of its top level: at the end, unless it would belong to a table there."""
    at_end = f"{text}\n{line}" if text and not text.endswith("\n") else text + line
    try:
        return at_end if parse_toml(at_end, where) == wanted else line + text
    except InputError:  # the table at the end has that key too
        return line + text


def brace_range(names: Sequence[str]) -> str:
    """Numbered names ``a-000000.tar`` … ``a-000002.tar`` as ``a-{000000..000002}.tar``; one name is itself."""
    first, last = names[0], names[-1]
    if first == last:
        return first
    number = slice(len(first) - len("000000.tar"), len(first) - len(".tar"))
    return f"{first[: number.start]}{{{first[number]}..{last[number]}}}.tar"


def _near(path: Path) -> str:
    """The file as seen from the working folder, where it lies below it."""
    return shown(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
