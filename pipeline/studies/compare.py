"""A comparison from what was asked for to what came out: one plan that all processes follow, the runs, the report."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dlth.pipeline.evidence.gather import gather
from dlth.pipeline.evidence.study_plan import StudyPlan
from dlth.pipeline.pages.report import Report, write_page
from dlth.pipeline.reports.report import report_of
from dlth.pipeline.studies.arms import Counting
from dlth.pipeline.studies.asked import asked_text
from dlth.pipeline.studies.founding import founded, owned_in_time
from dlth.pipeline.studies.planning import plan_study
from dlth.pipeline.studies.study_config import CompareConfig
from dlth.pipeline.studies.study_controls import make_controls
from dlth.tickets.callbacks import Note

REPORT = "report.html"


def found_study(
    config: CompareConfig,
    train: Mapping[str, Any],
    *,
    note: Note = lambda text: None,
    counting: Counting | None = None,
) -> StudyPlan:
    """The plan that the study's folder has, or a new one there, with its control tickets.

    Args:
        config: settings of the study
        train: settings of `dlth train` that its runs share
        note: told what a person should know
        counting: shows progress, arm by arm
    Raises:
        InputError, MismatchError: as `plan_study` and `founded`
    """
    folder = Path(config.out)

    def make_plan(known: StudyPlan | None) -> StudyPlan:
        plan = plan_study(config, train, note=note, counting=counting, known=known)
        for text in make_controls(folder, plan.settings):
            note(text)
        return plan

    return founded(folder, asked_text(config, train), make_plan, note)


def conclude(folder: Path, note: Note = lambda text: None) -> Report:
    """What the runs of a study came to so far, as a page in its folder and as a value. Raises as `gather`."""
    with owned_in_time(folder, note):
        report = report_of(gather([folder], note))
        write_page(report, folder / REPORT)
    return report
