"""Variables of the environment that make a library fail or fall silent, mended before the library reads them.

rich takes any digit for a number, so that COLUMNS=² ends its import, and shows nothing at COLUMNS=0; matplotlib ends
its import at a back end that it does not know, though none is needed to write a picture.
"""

import os

MAX_SIZE = 10_000
"""Columns or lines of a terminal, at most; rich makes lines of that length."""


def mend_environment() -> None:
    """Drop a terminal's size that is no number, nought or absurd; give matplotlib the back end without windows."""
    for name in ("COLUMNS", "LINES"):
        text = os.environ.get(name, "")
        if text and not (text.isascii() and text.isdecimal() and len(text) < 6 and 0 < int(text) <= MAX_SIZE):
            del os.environ[name]
    os.environ["MPLBACKEND"] = "agg"
