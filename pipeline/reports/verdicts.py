"""The verdicts of a report, and every comparison behind them as a table."""

from collections.abc import Sequence

from dlth.pipeline.judging.arm_comparison import SEEDS_FOR_ARMS
from dlth.pipeline.judging.verdicts import ClauseVerdict
from dlth.pipeline.pages.report import Cell, Section, Table, Verdict
from dlth.pipeline.reports.arms import KEY_COLUMNS, key_cells, key_columns
from dlth.tickets.errors import shown

COLUMNS = ("outcome", "difference", "low", "high", "p", "p corrected", "seeds", "images", "margin", "more seeds")
MOST_SHOWN = 6
"""Verdicts on pruned arms that a page shows at once; more are folded by their claims."""
_P, _POINTS = (".2g", "+.2f")


def as_verdicts(judged: Sequence[ClauseVerdict]) -> tuple[Verdict, ...]:
    """Each verdict as the top of the page has it."""
    many = sum(bool(each.first.pruned) for each in judged) > MOST_SHOWN
    folds = (_begun(str(each.clause)) if many and each.first.pruned else "" for each in judged)
    return tuple(Verdict(each.outcome, _sentence(each), fold) for each, fold in zip(judged, folds, strict=True))


def comparisons_section(judged: Sequence[ClauseVerdict]) -> Section | None:
    """Differences, intervals and p-values of every clause at every keep."""
    if not judged:
        return None
    keys = _keys(judged)
    tried = "keeps, or the shares of weights," if "weights" in keys else "keeps"
    texts = (
        "Differences are in percentage points, with their 95 % interval. Runs and images are both taken as samples, so"
        " the interval says where the difference would lie with other seeds and other images; it holds for arms trained"
        f" as here. Below {SEEDS_FOR_ARMS} seeds it is about these very models, and decides nothing of arms.",
        "“Better than” is tested for superiority, “as good as” for equivalence within the margin; p is of what the"
        f" difference leans to, and corrected over the {tried} of a claim (Holm). Not decided means that these runs can"
        " neither show nor exclude it.",
    )
    formats = dict.fromkeys(("p", "p corrected"), _P) | dict.fromkeys(("difference", "low", "high"), _POINTS)
    words = (*keys, "outcome", "more seeds")
    rows = tuple(_row(verdict, keys) for verdict in judged)
    table = Table(("claim", *keys, *COLUMNS), rows, "comparisons", formats, words)
    return Section("Comparisons", texts=texts, tables=(table,))


def _sentence(verdict: ClauseVerdict) -> str:
    """Its text, without the outcome, which the page says before it."""
    return _begun(shown(verdict.text.replace(f": {verdict.outcome}.", ".", 1), 1000))


def _begun(text: str) -> str:
    return text[:1].upper() + text[1:]


def _keys(judged: Sequence[ClauseVerdict]) -> tuple[str, ...]:
    """Columns of what a claim is made at, beside the arms that it names."""
    keys = key_columns(verdict.first for verdict in judged)
    return KEY_COLUMNS[1:] if keys == KEY_COLUMNS else keys[:-1]


def _row(verdict: ClauseVerdict, keys: Sequence[str]) -> tuple[Cell, ...]:
    came, more = verdict.comparison, verdict.more_seeds
    sparse = verdict.second if verdict.clause.first == "dense" else verdict.first
    interval = (came.difference, came.low, came.high) if came else (None, None, None)
    needed = "" if more is None else "never" if more.bound == "never" else f"{more.bound} {more.number}"
    return (
        *(str(verdict.clause), *key_cells(sparse, keys), verdict.outcome, *interval, verdict.p_value, verdict.p_holm),
        *(len(verdict.seeds), came.num_images if came else None, came.margin if came else None, needed),
    )
