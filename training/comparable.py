"""Whether results may be compared: what must be alike, for a difference between arms to be the arms'.

A name is compared where results say it: a result of an older version is not refused for what it does not know. Order is
compared among runs of one seed, as every seed has its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

ALIKE = {
    "data": "the training images",
    "data_labels": "the training images' labels",
    "data_order": "the order of the training images in their shards",
    "data_content": "the training images' bytes",
    "left_out": "how many training images were left out",
    "val": "the validation images",
    "val_labels": "the validation images' labels",
    "val_order": "the order of the validation images in their shards",
    "val_content": "the validation images' bytes",
    "val_tickets": "the validation images' tickets",
}
ALIKE_BY_SEED = {"visited_sha256": "which images an epoch visits, and in which order"}


def comparable(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """What keeps results, each a result.json, from being compared: a sentence for each difference, none if they may be.

    Each is held against the first that says the same, or the first of its seed.
    """
    differences = []
    for place, result in enumerate(results):
        for names, peers in (
            (ALIKE, results[:place]),
            (ALIKE_BY_SEED, [other for other in results[:place] if other["seed"] == result["seed"]]),
        ):
            for name, text in names.items():
                first = next((other for other in peers if name in other["data"]), None)
                if first is not None and name in result["data"] and first["data"][name] != result["data"][name]:
                    differences.append(f"{text}: {_side(first, name)}, {_side(result, name)}")
    return differences


def _side(result: Mapping[str, Any], name: str) -> str:
    value = result["data"][name]
    said = value[:12] or "none" if isinstance(value, str) else value
    return f"{said} (arm {result['arm']}, seed {result['seed']})"
