"""What became of every validation image, read from a run's eval.npz, which may be another lab's.

    keys               text [images]            each once
    labels             integer [images]
    without_ticket     bool [images]            measured under "ticket" although they have none; where there are any
    TOKENS_top1, _top5, _seen    bool [images]  TOKENS: dense, ticket, random, dropping
    TOKENS_loss        float [images]

`EvalResult.save` writes it. Every size is bounded before it is allocated, nothing is unpickled, and what cannot be (a
hit on an image that was not seen) is refused. Columns of other names are left alone.
"""

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlth.tickets.errors import DamageError, LimitError, shown
from dlth.tickets.exchange.npz_column import Column, check_directory, guarded
from dlth.tickets.store.disk import read_file

TOKENS = ("dense", "ticket", "random", "dropping")
"""What a model is evaluated on."""
MAX_FILE_BYTES = 256 << 20
MAX_BYTES = 1 << 30
"""Of all columns unpacked; ImageNet's 50,000 validation images take 10 MB."""
_KINDS = {"keys": "U", "labels": "iu", "without_ticket": "b"}
_KINDS |= {f"{tokens}_{name}": "b" for tokens in TOKENS for name in ("top1", "top5", "seen")}
_KINDS |= {f"{tokens}_loss": "f" for tokens in TOKENS}

ImageColumns = Mapping[str, NDArray[Any]]


def read_image_results(path: Path) -> ImageColumns:
    """Read a run's per-image results, by column.

    Raises:
        MissingFileError, UnsafeError, LimitError: as `read_file`
        DamageError: no such file, or one that says what cannot be
    """
    where = shown(path)
    file = io.BytesIO(read_file(path, MAX_FILE_BYTES, where))
    with guarded(where):
        check_directory(file, where)
        with zipfile.ZipFile(file) as archive:
            members = [info for info in archive.infolist() if info.filename.removesuffix(".npy") in _KINDS]
            if (total := sum(info.file_size for info in members)) > MAX_BYTES:
                raise LimitError(f"{where} unpacks to {total:,} bytes, the bound is {MAX_BYTES:,}")
            found = [Column(archive, info, where, _KINDS[info.filename.removesuffix(".npy")], (1,)) for info in members]
            columns = {column.name: column.read(0, column.shape[0]) for column in found}
    problem = _problem(columns)
    if problem:
        raise DamageError(f"{where} holds no results of images: {problem}", file=path.name)
    return columns


def evaluated_on(columns: ImageColumns) -> tuple[str, ...]:
    """Which tokens there are results for."""
    return tuple(tokens for tokens in TOKENS if f"{tokens}_top1" in columns)


def _problem(columns: ImageColumns) -> str:
    """What is wrong with the columns of a file; empty if nothing is."""
    evaluated = evaluated_on(columns)
    needed = {"keys", "labels"} | {
        f"{tokens}_{name}" for tokens in evaluated for name in ("top1", "top5", "loss", "seen")
    }
    if "dense" not in evaluated or not needed <= columns.keys():
        return f"columns are missing; found {shown(sorted(columns))}"
    if len({len(column) for column in columns.values()}) > 1:
        return "columns differ in length"
    if len(np.unique(columns["keys"])) < len(columns["keys"]):
        return "a key stands there twice"
    for tokens in evaluated:
        top1, top5, seen = (columns[f"{tokens}_{name}"] for name in ("top1", "top5", "seen"))
        if not seen.any():
            return f"no image was seen on {tokens} tokens"
        if (top1 & ~top5).any() or (top5 & ~seen).any():
            return f"an image is right on {tokens} tokens that was not seen, or first and not among the first five"
    return ""
