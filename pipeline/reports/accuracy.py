"""How accurate the arms are: a row for each arm over its seeds, and one for each run."""

from collections.abc import Sequence
from statistics import fmean, stdev

from dlth.pipeline.evidence.evidence import Evidence
from dlth.pipeline.evidence.finished_run import FinishedRun
from dlth.pipeline.pages.charts import Dots, dots
from dlth.pipeline.pages.report import Cell, Picture, Section, Table
from dlth.pipeline.reports.arms import key_cells, key_columns, looks
from dlth.tickets.errors import shown

TOKENS = {"dense": "on all tokens", "ticket": "on ticket tokens", "random": "on random tokens"}
"""What models are evaluated on, and the column of it."""
MOST_ROWS = 40
"""Arms that the picture has room for."""


def accuracy_section(evidence: Evidence) -> Section | None:
    """Top-1 by arm and by run."""
    if not evidence.runs:
        return None
    text = (
        "Top-1 accuracy in percent on the whole validation set: the mean over seeds, and ± their standard deviation."
        f" {_judged(evidence)} The columns to the right are the same models on all patches, on the selector's, and on"
        " random ones."
    )
    pictures = (picture,) if (picture := _picture(evidence)) else ()
    return Section("Accuracy", texts=(text,), tables=(_arms(evidence), _runs(evidence)), pictures=pictures)


def _judged(evidence: Evidence) -> str:
    """On what the arms that drop patches are judged: the selector's where there were validation tickets."""
    sparse = [run for runs in evidence.runs.values() for run in runs.values() if run.result.arm != "dense"]
    blind = [run.judged_on == "dense" for run in sparse]
    if not any(blind):
        return "An arm that drops patches is judged on the selector's patches, the dense arm on all."
    if all(blind):
        return "Every arm is judged on all patches: there were no validation tickets."
    return (
        "An arm that drops patches is judged on the selector's patches; the dense arm, and a run without them, on all."
    )


def mean(values: Sequence[float]) -> float | None:
    """The mean; None of nothing."""
    return fmean(values) if values else None


def _picture(evidence: Evidence) -> Picture | None:
    drawn, rows = looks(evidence.runs), []
    for key, runs in evidence.runs.items():
        values = [run.top1(run.judged_on) for run in runs.values() if run.images]
        if values and not key.pruned:  # those have a picture of their own
            rows.append(Dots(shown(key, 60), drawn[key], values))
    if not rows or len(rows) > MOST_ROWS:
        return None
    told = "; ".join(f"{row.label}: {fmean(row.values):.1f} %, {len(row.values)} runs" for row in rows)
    caption = "Accuracy by arm, on the tokens that it is judged by. A dot is a run, the bar their mean."
    return Picture("accuracy", dots(rows, "top-1 accuracy, %"), caption, f"Accuracy by arm. {told}.")


def _arms(evidence: Evidence) -> Table:
    keys, rows = key_columns(evidence.runs), []
    for key, by_seed in evidence.runs.items():
        runs = list(by_seed.values())
        first = runs[0].result
        judged = [run.top1(run.judged_on) for run in runs if run.images]
        means = (mean([run.top1(tokens) for run in runs if f"{tokens}_top1" in run.images]) for tokens in TOKENS)
        spread = stdev(judged) if len(judged) > 1 else None
        rows.append((*key_cells(key, keys), len(runs), first.k, first.epochs, mean(judged), spread, *means))
    columns = (*keys, "runs", "patches", "epochs", "top-1", "±", *TOKENS.values())
    formats = dict.fromkeys(("top-1", "±", *TOKENS.values()), ".2f")
    return Table(columns, tuple(rows), "arms", formats, keys, "By arm")


def _runs(evidence: Evidence) -> Table:
    keys = key_columns(evidence.runs)
    rows = [
        (*key_cells(key, keys), seed, run.result.train_loss, *(_top1(run, tokens) for tokens in TOKENS), _seen(run))
        for key, by_seed in evidence.runs.items()
        for seed, run in by_seed.items()
    ]
    columns = (*keys, "seed", "training loss", *TOKENS.values(), "images")
    formats = dict.fromkeys(TOKENS.values(), ".2f") | {"training loss": ".4g", "seed": "d"}
    return Table(columns, tuple(rows), "runs", formats, keys, "By run", folded=True)


def _top1(run: FinishedRun, tokens: str) -> float | None:
    return run.top1(tokens) if f"{tokens}_top1" in run.images else None


def _seen(run: FinishedRun) -> Cell:
    return int(run.images[f"{run.judged_on}_seen"].sum()) if run.images else None
