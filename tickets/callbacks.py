"""What a long call tells whoever waits for it: how far it is, and what a person should know on the way.

Both are plain functions, so the library prints nothing and knows no console: the command line passes a bar, a script
whatever it likes.
"""

from collections.abc import Callable

Progress = Callable[[int, int], None]
"""Told (done, total); the total may become known, or grow, on the way."""

Note = Callable[[str], None]
"""Told one sentence for a person."""
