"""The verdicts of a report, and every comparison behind them as a table."""

from collections.abc import Sequence

from dlth.pipeline.judging.arm_comparison import SEEDS_FOR_ARMS
from dlth.pipeline.judging.verdicts import ClauseVerdict
from dlth.pipeline.pages.report import Cell, Section, Table, Verdict
from dlth.pipeline.reports.arms import KEY_COLUMNS, key_cells
from dlth.tickets.errors import shown

COLUMNS = (
    *("claim", "keep", "mode", "variant", "outcome", "difference", "low", "high", "p", "p corrected", "seeds"),
    *("images", "margin", "more seeds"),
)
_P, _POINTS = (".2g", "+.2f")


def as_verdicts(judged: Sequence[ClauseVerdict]) -> tuple[Verdict, ...]:
    """Each verdict as the top of the page has it."""
    return tuple(Verdict(verdict.outcome, _sentence(verdict)) for verdict in judged)


def comparisons_section(judged: Sequence[ClauseVerdict]) -> Section | None:
    """Differences, intervals and p-values of every clause at every keep."""
    if not judged:
        return None
    texts = (
        "Differences are in percentage points, with their 95 % interval. Runs and images are both taken as samples, so"
        " the interval says where the difference would lie with other seeds and other images; it holds for arms trained"
        f" as here. Below {SEEDS_FOR_ARMS} seeds it is about these very models, and decides nothing of arms.",
        "“Better than” is tested for superiority, “as good as” for equivalence within the margin; p is of what the"
        " difference leans to, and corrected over the keeps of a claim (Holm). Not decided means that these runs can"
        " neither show nor exclude it.",
    )
    formats = dict.fromkeys(("p", "p corrected"), _P) | dict.fromkeys(("difference", "low", "high"), _POINTS)
    words = (*KEY_COLUMNS, "outcome", "more seeds")
    table = Table(COLUMNS, tuple(map(_row, judged)), "comparisons", formats, words)
    return Section("Comparisons", texts=texts, tables=(table,))


def _sentence(verdict: ClauseVerdict) -> str:
    """Its text, without the outcome, which the page says before it."""
    text = shown(verdict.text.replace(f": {verdict.outcome}.", ".", 1), 1000)
    return text[:1].upper() + text[1:]


def _row(verdict: ClauseVerdict) -> tuple[Cell, ...]:
    came, more = verdict.comparison, verdict.more_seeds
    sparse = verdict.second if verdict.clause.first == "dense" else verdict.first
    interval = (came.difference, came.low, came.high) if came else (None, None, None)
    needed = "" if more is None else "never" if more.bound == "never" else f"{more.bound} {more.number}"
    return (
        *(str(verdict.clause), *key_cells(sparse)[1:], verdict.outcome, *interval, verdict.p_value, verdict.p_holm),
        *(len(verdict.seeds), came.num_images if came else None, came.margin if came else None, needed),
    )
