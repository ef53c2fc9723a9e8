"""What folders of studies and runs came to, as one HTML page with CSV and JSON of the same tables."""

from pathlib import Path

from dlth.pipeline.evidence.evidence import Evidence
from dlth.pipeline.pages.report import Report, write_page
from dlth.pipeline.reports.sections import sections_of

MARGIN = 1.0
"""Points within which an arm is as good as another, where no study says another number."""


def report_of(evidence: Evidence, title: str = "What the runs came to") -> Report:
    """The whole report as a value."""
    return Report(title, "", sections=sections_of(evidence))


def write_report(evidence: Evidence, out: Path, title: str = "What the runs came to") -> Path:
    """Write the page `out` (a name ending in .html), its JSON and its folder of tables and pictures; returns `out`.

    Raises InputError for another ending.
    """
    return write_page(report_of(evidence, title), out)
