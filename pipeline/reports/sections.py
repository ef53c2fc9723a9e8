"""The sections of a report, in their order. Each is a function of the evidence; one with nothing to say gives None.

A new section is a file beside this one and a line in `SECTIONS`.
"""

from collections.abc import Callable

from dlth.pipeline.evidence.evidence import Evidence
from dlth.pipeline.pages.report import Section
from dlth.pipeline.reports.accuracy import accuracy_section
from dlth.pipeline.reports.agreement import agreement_section
from dlth.pipeline.reports.cost import cost_section
from dlth.pipeline.reports.curves import curves_section, pareto_section
from dlth.pipeline.reports.drawn import recall_section, tickets_section
from dlth.pipeline.reports.making import making_section
from dlth.pipeline.reports.unfinished import unfinished_section

SectionMaker = Callable[[Evidence], Section | None]
SECTIONS: tuple[SectionMaker, ...] = (
    accuracy_section,
    curves_section,
    pareto_section,
    tickets_section,
    recall_section,
    agreement_section,
    cost_section,
    unfinished_section,
    making_section,
)


def sections_of(evidence: Evidence) -> tuple[Section, ...]:
    """Every section that has something to say of the evidence."""
    made = (make(evidence) for make in SECTIONS)
    return tuple(section for section in made if section is not None)
