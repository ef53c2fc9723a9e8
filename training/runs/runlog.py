"""What a run writes beside its weights: one line per step and epoch, timm's table, curves, and the result.

    config.toml     every setting, as `--config` reads it
    metrics.jsonl   the record: one JSON object a line, `kind` train (a few steps) or epoch
    summary.csv     timm's table: one row an epoch, train_*, eval_*, lr
    curves.png      loss, accuracy and learning rate over epochs; at most a minute old
    result.json     written last: a run that has it is finished
    tensorboard/    only when asked for

metrics.jsonl is the source; the others can be made from it. On resume, what lies after the checkpoint is cut off, so an
interrupted run leaves the same lines as an unbroken one, times apart; a checkpoint holds the digest of the lines before
it, so that a number which changed since is told. Lines are read and copied one at a time, and those of whole epochs
alone stay in memory: a log of every step of a long run has gigabytes. Only the leading rank has a log.
"""

import csv
import hashlib
import io
import json
import os
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from dlth.tickets.errors import DamageError, InputError, MissingFileError, SchemaError, UnsafeError, shown
from dlth.tickets.format.jsontext import parse, strict
from dlth.tickets.store.disk import appended
from dlth.training.drawing import own_style
from dlth.training.run_files import published, write_errors, write_text
from dlth.training.settings.fields import MAX_EPOCHS

METRICS, SUMMARY, CURVES, RESULT = "metrics.jsonl", "summary.csv", "curves.png", "result.json"
TENSORBOARD = "tensorboard"
BETWEEN_DRAWINGS = 60.0
"""Seconds."""
_MAX_LINE = 1 << 20
_MAX_NUMBER = 3.5e38
"""What is measured is a float32 or counted; axes for numbers of 1e308 cannot be drawn."""
_FIELD, _MAX_FIELDS = re.compile(r"[A-Za-z0-9_]{1,64}"), 128
"""Names of a record's fields and their number: runs write up to forty, and each becomes a column and a line's label."""


class Mark(NamedTuple):
    """How far a log went when a checkpoint was written: its lines, and sha256 of their bytes."""

    lines: int
    sha256: str


class RunLog:
    """The log of one run in `folder`; `after` is the step that a resumed run goes on from, 0 for a new one.

    `about` says whose tickets the run's numbers are of: columns of the summary, the title of the curves. `mark` is what
    the checkpoint says of the lines before it, None where it says nothing.

    Raises:
        InputError: TensorBoard is asked for and not installed, or nothing can be written
        DamageError: a log that is none, or not what the run wrote before the checkpoint
        SpaceError: the disk is full
    """

    def __init__(
        self,
        folder: Path,
        after: int = 0,
        tensorboard: bool = False,
        about: Mapping[str, str] | None = None,
        mark: Mark | None = None,
    ) -> None:
        self.folder, self.about = folder, dict(about or {})
        self.epochs: list[dict[str, Any]] = []
        self._lines, self._digest = 0, hashlib.sha256()
        self._drawn = time.monotonic()
        with write_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        with published(folder / METRICS) as file:
            for line in _kept(folder / METRICS, after, mark):
                record = _record(line, folder / METRICS)
                if record["kind"] == "epoch" and not self._follows(record, after):
                    raise DamageError(
                        f"{shown(folder / METRICS)}: an epoch is out of order: {shown(line)}", file=METRICS
                    )
                file.write(line)
                self._count(line, record)
        with write_errors(folder / RESULT):
            (folder / RESULT).unlink(missing_ok=True)
        with write_errors(folder / METRICS):
            self._file = appended(folder / METRICS)
        self._board = _open_board(folder / TENSORBOARD, after) if tensorboard else None

    def close(self) -> None:
        """Close the files; nothing can be added afterwards."""
        with write_errors(self.folder / METRICS):
            self._file.close()
            if self._board is not None:
                self._board.close()

    def mark(self) -> Mark:
        """How far the log goes; it is on the disk for good before a checkpoint says so.

        Raises MissingFileError where it is gone, as with the whole folder: a checkpoint would make that anew.
        """
        with write_errors(self.folder / METRICS):
            os.fsync(self._file.fileno())
            there = os.path.lexists(self.folder / METRICS)
            if not there or not os.path.samestat(os.fstat(self._file.fileno()), os.lstat(self.folder / METRICS)):
                raise MissingFileError(
                    f"{shown(self.folder / METRICS)} was removed while the run went on: run the same command again"
                )
        return Mark(self._lines, self._digest.hexdigest())

    def add(self, kind: str, step: int, **values: Any) -> None:
        """Append a record; numbers go to TensorBoard as well."""
        record = {"kind": kind, "step": step, **strict(values)}
        line = (json.dumps(record, allow_nan=False) + "\n").encode()
        with write_errors(self.folder / METRICS):
            self._file.write(line)
            self._file.flush()
            if self._board is not None:
                for name, value in values.items():
                    if isinstance(value, int | float) and name != "epoch":
                        self._board.add_scalar(f"{kind}/{name}", value, step)
        self._count(line, record)

    def _follows(self, record: dict[str, Any], after: int) -> bool:
        """Whether an epoch read back comes after those before it, and in the steps that were done: so they are few."""
        epoch, last = record["epoch"], self.epochs[-1]["epoch"] if self.epochs else -1
        return bool(last < epoch < record["step"] <= after)

    def _count(self, line: bytes, record: dict[str, Any]) -> None:
        self._lines += 1
        self._digest.update(line)
        if record["kind"] == "epoch":
            self.epochs.append(record)

    def write_summary(self, last: bool) -> None:
        """Write summary.csv anew from the epochs so far, and curves.png for the last one and once a minute before.

        Drawing takes half a second, which is a tenth of an epoch on a small data set.
        """
        rows = [{name: row[name] for name in row if name not in ("kind", "step")} | self.about for row in self.epochs]
        names = list(dict.fromkeys(name for row in rows for name in row))
        text = io.StringIO()
        table = csv.DictWriter(text, fieldnames=names, restval="", lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
        write_text(self.folder / SUMMARY, text.getvalue())
        if last or time.monotonic() - self._drawn > BETWEEN_DRAWINGS:
            draw_curves(rows, self.folder / CURVES, self.about)
            self._drawn = time.monotonic()


def logged_epochs(folder: Path, most: int = MAX_EPOCHS) -> list[dict[str, Any]]:
    """The records of whole epochs in a run's log, in order. Raises DamageError for a log that is none, or of more than
    `most`.
    """
    epochs: list[dict[str, Any]] = []
    for line in _lines(folder / METRICS):
        if (record := _record(line, folder / METRICS))["kind"] == "epoch":
            epochs.append(record)
        if len(epochs) > most:
            raise DamageError(f"{shown(folder / METRICS)} holds more than the run's {most:,} epochs", file=METRICS)
    return epochs


def newest_records(folder: Path, limit: int = 1 << 20) -> Iterator[dict[str, Any]]:
    """The records of a run's log from the newest back, as far as its last `limit` bytes go; a line that is just being
    written is left out. Raises DamageError and UnsafeError for what is no log.
    """
    path = folder / METRICS
    if not _is_log(path):
        return
    with path.open("rb") as file:
        begin = max(0, file.seek(0, os.SEEK_END) - limit)
        file.seek(begin)
        lines = file.read(limit).split(b"\n")[:-1]
    for line in reversed(lines[1:] if begin else lines):
        yield _record(line, path)


@own_style()
def draw_curves(rows: list[dict[str, Any]], path: Path, about: Mapping[str, str]) -> None:
    """Draw loss, top-1 by kind of tokens, and learning rate over epochs; a column that is absent is left out.

    `about` stands above them: what is meant by a ticket.
    """
    from matplotlib.figure import Figure  # half a second, and only the leading rank draws

    above = [f"{name.replace('_', ' ')}: {text}" for name, text in about.items() if text]
    figure = Figure(figsize=(12, 3.6))  # a layout that is computed would draw everything twice
    figure.subplots_adjust(left=0.05, right=0.99, bottom=0.14, top=0.91 - 0.05 * len(above), wspace=0.18)
    columns = dict.fromkeys(name for row in rows for name in row if row[name] is not None)
    panels = {
        "loss": [name for name in columns if name.endswith("loss")],
        "top-1 accuracy, %": [name for name in columns if name.endswith("top1")],
        "learning rate": ["lr"],
    }
    for axes, (title, names) in zip(figure.subplots(1, 3), panels.items(), strict=True):
        for name in names:
            points = [(row["epoch"], row[name]) for row in rows if row.get(name) is not None]
            axes.plot(*zip(*points, strict=True), marker="." if len(points) < 30 else None, label=name)
        axes.set(title=title, xlabel="epoch")
        axes.grid(alpha=0.3)
        if names:
            for text in axes.legend(fontsize="small").get_texts():
                text.set_parse_math(False)
    if above:
        figure.suptitle("\n".join(above), fontsize="small", parse_math=False)
    with published(path) as file:
        figure.savefig(file, format="png", dpi=120)


def _kept(path: Path, after: int, mark: Mark | None) -> Iterator[bytes]:
    """The lines of an earlier start that a run goes on from at step `after`.

    With a mark they are its first lines, else those whose step says so; a last line that a kill cut off is dropped. A
    log that is not there is begun anew.

    Raises:
        DamageError: what the mark stands for is not there
    """
    digest, count = hashlib.sha256(), 0
    for line in _lines(path):
        if mark is None:
            if _is_before(_record(line, path), after):
                yield line
            continue
        if count == mark.lines:
            break
        digest.update(line)
        count += 1
        yield line
    if mark is not None and os.path.lexists(path) and mark != (count, digest.hexdigest()):
        raise DamageError(
            f"{shown(path)} is not what the run wrote before its checkpoint: put it back, or remove it, and the log"
            " begins at the checkpoint",
            file=path.name,
        )


def _lines(path: Path) -> Iterator[bytes]:
    """Whole lines of a log, none where there is none. Raises DamageError and UnsafeError for what is no log."""
    if not _is_log(path):
        return
    with path.open("rb") as file:
        while (line := file.readline(_MAX_LINE)).endswith(b"\n"):
            yield line
        if len(line) == _MAX_LINE:
            raise DamageError(f"{shown(path)} is no list of JSON lines: one has no end", file=path.name)


def _is_log(path: Path) -> bool:
    """Whether there is a log; raises UnsafeError for a link or no file in its place."""
    if not os.path.lexists(path):
        return False
    if path.is_symlink() or not path.is_file():
        raise UnsafeError(f"{shown(path)} is not a regular file")
    return True


def _record(line: bytes, path: Path) -> dict[str, Any]:
    """The record of a line. Raises DamageError where it is none."""
    try:
        record = parse(line, shown(path))
    except SchemaError as error:
        raise DamageError(f"{shown(path)} is no list of JSON lines: {error}", file=path.name) from error
    flat = isinstance(record, dict) and not any(isinstance(value, dict | list) for value in record.values())
    flat = flat and len(record) <= _MAX_FIELDS and all(map(_FIELD.fullmatch, record))
    if not flat or type(record.get("step")) is not int or record.get("kind") not in ("train", "epoch"):
        raise DamageError(f"{shown(path)} holds a line that is no record: {shown(line)}", file=path.name)
    values = [value for name, value in record.items() if name != "kind"]
    numbers = all(value is None or (isinstance(value, int | float) and abs(value) <= _MAX_NUMBER) for value in values)
    epoch = record.get("epoch")
    counted = type(epoch) is int and 0 <= epoch < MAX_EPOCHS
    if record["kind"] == "epoch" and not (numbers and counted and "lr" in record):
        raise DamageError(f"{shown(path)} holds an epoch that is none: {shown(line)}", file=path.name)
    return record


def _is_before(record: Mapping[str, Any], step: int) -> bool:
    """Whether a record was written before the checkpoint of `step`: what is measured there is measured again."""
    return bool(record["step"] < step or (record["step"] == step and record["kind"] == "train"))


def _open_board(folder: Path, after: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise InputError("TensorBoard is not installed: pip install 'dlth[tensorboard]'") from error
    with write_errors(folder):
        return SummaryWriter(str(folder), purge_step=after + 1 if after else None)
