"""The paper's table: a line for each row, with its published number and ours; a row that was not run says so.

Ours are means over the seeds of complete bundles. Bundles that are damaged, or whole but not of the paper's row (a
smaller scale, other images, other settings), give no number: they are named, with the reason.
"""

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from statistics import fmean
from typing import Any

from dlth.pipeline.reproduction.checked_bundle import CheckedBundle, CheckedRun
from dlth.pipeline.reproduction.experiment import Experiment
from dlth.pipeline.reproduction.pruned_rows import last_share


@dataclass(frozen=True)
class Line:
    """One row of the table; numbers are None where there are none.

    rate: share that each stage keeps; k: patches kept; seeds: as a person writes them
    reference: published top-1 in percent on all patches, of `source`
    dense, ticket, random: our top-1 in percent, mean over seeds, on all patches, on the selector's, on random ones;
        of a selector, `ticket` is that with patches dropped by itself
    difference: dense less the reference, in points; hours: of training, of all levels together, mean over seeds
    weights: share of the prunable weights of a pruned row, whose numbers are those of its last level; empty of others
    state: "complete", "damaged", "not comparable", "cannot be run" or "not run"; why: there are no numbers
    """

    row: str
    mode: str
    rate: str
    k: int | None
    epochs: int | None
    seeds: str
    reference: float | None
    source: str
    dense: float | None
    difference: float | None
    ticket: float | None
    random: float | None
    hours: float | None
    device: str
    state: str
    why: str = ""
    weights: str = ""


COLUMNS = tuple(field.name for field in fields(Line))


def table(rows: Iterable[Experiment], bundles: Sequence[CheckedBundle]) -> tuple[Line, ...]:
    """A line for each row and each mode that it was run in, in the order of the rows."""
    return tuple(line for row in rows for line in _lines(row, [bundle for bundle in bundles if bundle.row == row.name]))


def _lines(row: Experiment, bundles: list[CheckedBundle]) -> list[Line]:
    complete = [bundle for bundle in bundles if bundle.in_table]
    if complete:
        return [_line(row, bundle.mode, bundle.runs, "complete") for bundle in complete]
    if damage := [problem for bundle in bundles for problem in bundle.damage]:
        return [_line(row, "", (), "damaged", str(damage[0]))]
    if unlike := [text for bundle in bundles for text in bundle.unlike]:
        return [_line(row, "", (), "not comparable", unlike[0])]
    return [_line(row, "", (), "cannot be run" if row.missing else "not run", row.missing)]


def _line(row: Experiment, mode: str, runs: Sequence[CheckedRun], state: str, why: str = "") -> Line:
    last = [run for run in runs if (run.pruned, run.weights) == (row.arm, last_share(row))] if row.pruning else runs
    seeds = dict.fromkeys(str(run.seed) for run in runs)
    dense, published = _mean(last, "dense"), row.reference.top1 if row.reference is not None else None
    return Line(
        row=row.name,
        mode=mode,
        rate=row.rate,
        k=row.k or None,
        epochs=row.epochs or None,
        seeds=", ".join(seeds),
        reference=published,
        source=row.reference.source if row.reference is not None else "",
        dense=dense,
        difference=dense - published if dense is not None and published is not None else None,
        ticket=_mean(last, "ticket" if row.is_student else "dropping"),
        random=_mean(last, "random"),
        hours=sum(run.hours for run in runs) / len(seeds) if runs else None,
        device=", ".join(dict.fromkeys(run.device for run in runs)),
        state=state,
        why=why,
        weights=last_share(row),
    )


def _mean(runs: Sequence[CheckedRun], tokens: str) -> float | None:
    """Mean over runs of the top-1 in percent on a kind of tokens; None where one was not measured on it."""
    if not runs or any(tokens not in run.numbers for run in runs):
        return None
    return fmean(run.numbers[tokens]["top1"] for run in runs)


def as_json(lines: Iterable[Line]) -> list[dict[str, Any]]:
    """The table as JSON holds it."""
    return [asdict(line) for line in lines]


def as_csv(lines: Iterable[Line]) -> str:
    """The table as CSV, numbers in full."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(as_json(lines))
    return text.getvalue()


def as_markdown(lines: Iterable[Line]) -> str:
    """The table as Markdown, numbers as people read them."""
    rows = [[_cell(getattr(line, name)) for name in COLUMNS] for line in lines]
    ruled = [list(COLUMNS), ["---"] * len(COLUMNS), *rows]
    return "".join(f"| {' | '.join(row)} |\n" for row in ruled)


def _cell(value: object) -> str:
    if value is None or value == "":
        return "–"
    return f"{value:.2f}" if isinstance(value, float) else str(value).replace("|", "\\|")
