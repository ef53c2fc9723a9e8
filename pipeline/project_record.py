"""What `dlth pack` writes of its shards into the ``dlth.toml`` beside their folder: the next commands find them there.

A line is put after the file's own text, or before it where tables follow, and never into it: what a user wrote stays as
it is to the letter. A key that is there already stays too. A file that cannot be read or written is no reason to call
packed shards a failure: it is said, and that is all.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dlth.data.splits import EVALUATION, TRAINING
from dlth.pipeline.project_file import NAME
from dlth.tickets.errors import DlthError, shown
from dlth.tickets.files import write_files
from dlth.training.toml_text import read_toml, toml_value


def record_shards(out: Path, split: str, names: Sequence[str]) -> list[str]:
    """Name the shards of a split in the ``dlth.toml`` beside the folder `out`; what a person should know of it."""
    key = "data" if split.lower() in TRAINING else "val" if split.lower() in EVALUATION else None
    if key is None or not names:
        return []
    folder = out.absolute()
    path = folder.parent / NAME
    spec = f"{folder.name}/{brace_range(names)}"
    try:
        known = read_toml(path) if path.is_file() else {}
        if known.get(key) == spec:
            return []
        if key in known:
            return [f"{_near(path)} says {key} = {shown(known[key])} already, and that stays; these are {spec}"]
        own = path.read_bytes().decode() if path.is_file() else ""  # text reading would change line ends
        text = _with_line(own, f"{key} = {toml_value(spec)}\n", {**known, key: spec})
        write_files({path: text.encode()}, path.with_name(f".{NAME}.partial"))
    except (DlthError, OSError) as error:
        return [f"{_near(path)} does not name these shards: {shown(error)}"]
    return [f"{_near(path)}: {key} = {spec}"]


def _with_line(text: str, line: str, wanted: Mapping[str, Any]) -> str:
    """A file's text with one more line of its top level: at the end, unless it would belong to a table there."""
    at_end = f"{text}\n{line}" if text and not text.endswith("\n") else text + line
    return at_end if tomllib.loads(at_end) == wanted else line + text


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
