"""What folders of studies and runs came to, as one HTML page with CSV and JSON of the same tables.

The same folders give the same bytes, whatever order they were written in: nothing of now is in a report.
"""

from pathlib import Path

from dlth.pipeline.evidence.evidence import Evidence
from dlth.pipeline.judging.verdicts import ClauseVerdict, judge
from dlth.pipeline.pages.report import Report, write_page
from dlth.pipeline.reports.pruning import pruning_section
from dlth.pipeline.reports.sections import sections_of
from dlth.pipeline.reports.unfinished import warnings
from dlth.pipeline.reports.verdicts import as_verdicts, comparisons_section
from dlth.tickets.errors import InputError, MismatchError, shown

MARGIN = 1.0
"""Points within which an arm is as good as another, where no study says another number."""


def margin_of(evidence: Evidence, margin: float | None = None) -> float:
    """The margin of the verdicts: the one given, or the studies'. Raises MismatchError where those differ."""
    if margin is not None:
        return margin
    named = [plan.settings["margin"] for plan in evidence.studies.values() if "margin" in plan.settings]
    if any(other != named[0] for other in named):
        raise MismatchError(f"the studies name several margins ({shown(named)}): give --margin")
    return named[0] if named else MARGIN


def verdicts_of(evidence: Evidence, margin: float | None = None) -> tuple[ClauseVerdict, ...]:
    """What the evidence says of each clause. Raises InputError for a margin that is none, MismatchError."""
    return judge(evidence.hits, margin_of(evidence, margin), evidence.apart)


def report_of(evidence: Evidence, title: str = "", margin: float | None = None) -> Report:
    """The whole report as a value."""
    judged = verdicts_of(evidence, margin)
    first = (pruning_section(evidence), comparisons_section(judged))  # what a study was made for
    return Report(
        title=shown(title or _title(evidence)),
        lead=_lead(evidence),
        verdicts=as_verdicts(judged),
        sections=(*filter(None, first), *sections_of(evidence)),
        warnings=warnings(evidence),
    )


def write_report(evidence: Evidence, out: Path, title: str = "", margin: float | None = None) -> Path:
    """Write the page `out`, `NAME.json` beside it, and its tables and pictures in `NAME_files`; returns `out`.

    Raises:
        InputError: a name that does not end in .html, or a place that cannot be written
        MismatchError: studies of several margins, and none given
    """
    if out.suffix != ".html":
        raise InputError(f"--out {shown(out)}: a report is an HTML page, and its name must end in .html")
    return write_page(report_of(evidence, title, margin), out)


def _title(evidence: Evidence) -> str:
    names = [folder.resolve().name for folder in evidence.studies]
    if len(names) > 3:
        return f"{len(names)} studies"
    return f"Study {', '.join(names)}" if names else "Runs side by side"


def _lead(evidence: Evidence) -> str:
    runs = evidence.all_runs
    seeds = sorted({run.seed for run in runs})
    models = ", ".join(dict.fromkeys(shown(run.result.model, 80) for run in runs))
    listed = ", ".join(map(str, seeds[:12])) + (", …" if len(seeds) > 12 else "")
    return (
        f"{len(runs)} finished runs of {len(evidence.runs)} arms; seeds {listed or 'none'}; student {models or 'none'}."
    )
