"""Paths in settings: relative to the file that they stand in, or to wherever a command was called."""

import os
import re
from pathlib import Path

from dlth.training.settings.fields import NO_PATH


def beside(folder: Path, text: str, kind: str = "file") -> str:
    """A path, or shards with commas between, that a file in `folder` names, as the working folder knows it.

    Addresses and absolute paths stay as they are.
    """
    if kind == "shards" and not (folder / text).exists():
        return ",".join(beside(folder, part.strip()) for part in re.split(r",(?![^{}]*\})", text))
    if text in ("", NO_PATH) or "://" in text or os.path.isabs(text) or folder == Path():
        return text
    return os.path.normpath(folder / text)
