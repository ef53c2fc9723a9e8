"""The same row with a share of its images and epochs, to see that all is well before money is spent.

The share is of whole shards, the first ones, at least one: nothing is packed anew. Steps keep the row's number of
images as far as there are so many.
"""

import math
from dataclasses import replace

from dlth.data.shards.sources import expand
from dlth.pipeline.reproduction.experiment import Experiment
from dlth.tickets.errors import InputError
from dlth.tickets.ranking.budget import exact_rate


def scaled(row: Experiment, scale: str) -> Experiment:
    """The row with a share of its epochs, at least one."""
    return replace(row, epochs=max(1, round(row.epochs * exact_rate(scale))))


def first_shards(spec: str, split: str | None, scale: str) -> str:
    """A spec of the first shards of `spec`, as many as the share says, at least one. Raises as `expand`."""
    shards = expand(spec, split)
    return ",".join(shards[: math.ceil(len(shards) * exact_rate(scale))])


def step_settings(row: Experiment, gpus: int, at_most: int, images: int | None = None) -> dict[str, int]:
    """Batch size and accumulation by which `gpus` processes make the row's step of forwards of `at_most` images.

    Args:
        images: how many there are, where a step of more is cut to those; None never cuts
    Raises:
        InputError: the images of a step do not divide among the processes, in pairs
    """
    unit = 2 * gpus  # images are mixed in pairs
    batch = row.batch if images is None else min(row.batch, max(unit, images // unit * unit))
    if batch % unit:
        raise InputError(f"--gpus {gpus}: a step of {row.name} has {batch:,} images, which do not divide among them")
    share = batch // gpus
    size = max((size for size in range(2, min(at_most, share) + 1, 2) if share % size == 0), default=2)
    return {"batch_size": size, "grad_accum_steps": share // size}
