"""A comparison from what was asked for to what came out: one plan that all processes follow, the runs, the report."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dlth.pipeline.evidence.gather import gather
from dlth.pipeline.evidence.study_plan import StudyPlan, read_study
from dlth.pipeline.evidence.validation_images import ValidationImages
from dlth.pipeline.pages.report import Report, Section, write_page
from dlth.pipeline.reports.report import report_of
from dlth.pipeline.studies.arms import Counting
from dlth.pipeline.studies.asked import asked_text
from dlth.pipeline.studies.founding import foreseen, founded, owned_in_time
from dlth.pipeline.studies.planning import plan_study
from dlth.pipeline.studies.study_config import CompareConfig
from dlth.pipeline.studies.study_controls import make_controls
from dlth.tickets.callbacks import Note
from dlth.tickets.errors import DlthError

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


def foreseen_study(
    config: CompareConfig,
    train: Mapping[str, Any],
    *,
    note: Note = lambda text: None,
    counting: Counting | None = None,
) -> StudyPlan:
    """The plan that `found_study` would give, and its refusals; nothing is written."""

    def make_plan(known: StudyPlan | None) -> StudyPlan:
        return plan_study(config, train, note=note, counting=counting, known=known)

    return foreseen(Path(config.out), asked_text(config, train), make_plan)


def conclude(
    folder: Path,
    note: Note = lambda text: None,
    page: Path | None = None,
    title: str = "",
    more: Sequence[Section] = (),
) -> Report:
    """What the runs of one's own study came to so far, as a page and as a value; its images are drawn.

    Args:
        folder: the study's
        note: told what a person should know
        page: the HTML file, in the study's folder if absent
        title: what stands above it
        more: sections at the end
    Raises:
        DlthError: as `gather` and `report_of`
    """
    with owned_in_time(folder, note):
        evidence = replace(gather([folder], note), images=_images(read_study(folder), note))
        report = report_of(evidence, title)
        report = replace(report, sections=(*report.sections, *more))
        write_page(report, page or folder / REPORT)
    return report


def _images(plan: StudyPlan, note: Note) -> ValidationImages | None:
    """What the runs are evaluated on; None without tickets of it, or where it is no longer there."""
    for settings in (run.settings for run in plan.runs):
        if settings.get("val") and settings.get("val_tickets"):
            try:
                return ValidationImages.open(settings["val"], settings["val_tickets"], settings.get("val_split"))
            except DlthError as error:
                note(f"no tickets are drawn: {error}")
                return None
    return None
