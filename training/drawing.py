"""The style of all figures: matplotlib's own, and not what a ``matplotlibrc`` in the working folder says.

That file may come from others with the folder. It can have every text typeset by LaTeX, a program that reads files, and
figures hold keys and names from outside; two labs' figures of the same run would also differ.
"""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def own_style() -> Iterator[None]:
    """Draw in matplotlib's defaults while the block, or the function decorated with it, runs."""
    from matplotlib import style  # half a second: not before something is drawn

    with style.context("default"):
        yield
