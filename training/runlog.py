"""What a run writes beside its weights: one line per step and epoch, timm's table, curves, and the result.

    config.toml     every setting, as `--config` reads it
    metrics.jsonl   the record: one JSON object a line, `kind` train (a few steps) or epoch
    summary.csv     timm's table: one row an epoch, train_*, eval_*, lr
    curves.png      loss, accuracy and learning rate over epochs
    result.json     written last: a run that has it is finished
    tensorboard/    only when asked for

metrics.jsonl is the source; the others can be made from it. On resume, what lies after the checkpoint is cut off, so an
interrupted run leaves the same lines as an unbroken one, times apart. Only the leading rank has a log.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dlth.tickets.errors import DamageError, InputError
from dlth.training.checkpoint import write_text

METRICS, SUMMARY, CURVES, RESULT = "metrics.jsonl", "summary.csv", "curves.png", "result.json"
TENSORBOARD = "tensorboard"


class RunLog:
    """The log of one run in `folder`; `after` is the step that a resumed run goes on from, 0 for a new one.

    `about` says whose tickets the run's numbers are of: columns of the summary, the title of the curves. Raises
    InputError when TensorBoard is asked for and not installed.
    """

    def __init__(
        self, folder: Path, after: int = 0, tensorboard: bool = False, about: Mapping[str, str] | None = None
    ) -> None:
        self.folder, self.about = folder, dict(about or {})
        folder.mkdir(parents=True, exist_ok=True)
        (folder / RESULT).unlink(missing_ok=True)
        self._records = [record for record in _read_records(folder / METRICS) if _is_before(record, after)]
        write_text(folder / METRICS, "".join(_line(record) for record in self._records))
        self._file = (folder / METRICS).open("a", encoding="utf-8")
        self._board = _open_board(folder / TENSORBOARD, after) if tensorboard else None

    def close(self) -> None:
        """Close the files; nothing can be added afterwards."""
        self._file.close()
        if self._board is not None:
            self._board.close()

    def add(self, kind: str, step: int, **values: Any) -> dict[str, Any]:
        """Append a record and give it back; numbers go to TensorBoard as well."""
        record = {"kind": kind, "step": step, **strict(values)}
        self._records.append(record)
        self._file.write(_line(record))
        self._file.flush()
        if self._board is not None:
            for name, value in values.items():
                if isinstance(value, int | float) and name != "epoch":
                    self._board.add_scalar(f"{kind}/{name}", value, step)
        return record

    @property
    def epochs(self) -> list[dict[str, Any]]:
        """The records of whole epochs, one each, in order."""
        return [record for record in self._records if record["kind"] == "epoch"]

    def write_summary(self) -> None:
        """Write summary.csv and curves.png anew from the epochs so far."""
        rows = [{name: row[name] for name in row if name not in ("kind", "step")} | self.about for row in self.epochs]
        names = list(dict.fromkeys(name for row in rows for name in row))
        text = io.StringIO()
        table = csv.DictWriter(text, fieldnames=names, restval="", lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
        write_text(self.folder / SUMMARY, text.getvalue())
        draw_curves(rows, self.folder / CURVES, self.about)


def write_result(folder: Path, result: Mapping[str, Any]) -> None:
    """Write result.json, the mark of a finished run."""
    write_text(folder / RESULT, json.dumps(strict(result), indent=2, allow_nan=False) + "\n")


def strict(value: Any) -> Any:
    """The value as JSON can hold it: NaN and infinities, for which JSON has no word, become None."""
    if isinstance(value, Mapping):
        return {name: strict(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [strict(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def draw_curves(rows: list[dict[str, Any]], path: Path, about: Mapping[str, str]) -> None:
    """Draw loss, top-1 by kind of tokens, and learning rate over epochs; a column that is absent is left out.

    `about` stands above them: what is meant by a ticket.
    """
    from matplotlib.figure import Figure  # half a second, and only the leading rank draws

    figure = Figure(figsize=(12, 3.6), layout="constrained")
    panels = {
        "loss": [name for name in _columns(rows) if name.endswith("loss")],
        "top-1 accuracy, %": [name for name in _columns(rows) if name.endswith("top1")],
        "learning rate": ["lr"],
    }
    for axes, (title, names) in zip(figure.subplots(1, 3), panels.items(), strict=True):
        for name in names:
            points = [(row["epoch"], row[name]) for row in rows if row.get(name) is not None]
            axes.plot(*zip(*points, strict=True), marker="." if len(points) < 30 else None, label=name)
        axes.set(title=title, xlabel="epoch")
        axes.grid(alpha=0.3)
        if names:
            axes.legend(fontsize="small")
    title = "\n".join(f"{name.replace('_', ' ')}: {text}" for name, text in about.items() if text)
    if title:
        figure.suptitle(title, fontsize="small", parse_math=False)
    partial = path.with_name(path.name + ".partial")
    figure.savefig(partial, format="png", dpi=120)
    partial.rename(path)


def _columns(rows: list[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row if row[name] is not None))


def _line(record: Mapping[str, Any]) -> str:
    return json.dumps(record, allow_nan=False) + "\n"


def _is_before(record: Mapping[str, Any], step: int) -> bool:
    """Whether a record was written before the checkpoint of `step`: what is measured there is measured again."""
    return bool(record["step"] < step or (record["step"] == step and record["kind"] == "train"))


def _read_records(path: Path) -> list[dict[str, Any]]:
    """The records of an earlier start; a last line that a kill cut off is dropped."""
    if not path.is_file():
        return []
    *whole, _ = path.read_text(encoding="utf-8").split("\n")
    try:
        return [json.loads(line) for line in whole]
    except ValueError as error:
        raise DamageError(f"{path} is no list of JSON lines: {error}", file=str(path)) from error


def _open_board(folder: Path, after: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise InputError("TensorBoard is not installed: pip install 'dlth[tensorboard]'") from error
    return SummaryWriter(str(folder), purge_step=after + 1 if after else None)
