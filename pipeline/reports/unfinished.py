"""Runs that have no result yet, or none that can be read: what a reader must know before any figure."""

from dlth.pipeline.evidence.evidence import Evidence
from dlth.pipeline.pages.report import Section, Table
from dlth.pipeline.reports.arms import key_cells, key_columns
from dlth.tickets.errors import shown


def unfinished_section(evidence: Evidence) -> Section | None:
    """A row for each run that is waiting, running, stopped, failed or damaged."""
    if not evidence.unfinished:
        return None
    keys = key_columns(run.arm for run in evidence.unfinished)
    rows = tuple(
        (*key_cells(run.arm, keys), run.seed, run.state, run.epoch, shown(run.problem, 400))
        for run in evidence.unfinished
    )
    columns = (*keys, "seed", "state", "epochs done", "why")
    table = Table(columns, rows, "unfinished", {"seed": "d"}, (*keys, "state", "why"))
    return Section("Runs without a result", texts=("No figure and no verdict counts them.",), tables=(table,))


def warnings(evidence: Evidence) -> tuple[str, ...]:
    """What stands above the verdicts."""
    said = [shown(note, 600) for note in evidence.notes]
    if evidence.unfinished:
        counts = _counts([run.state for run in evidence.unfinished])
        said.append(f"Runs without a result: {counts}. The verdicts are of the others.")
    for arm, differences in evidence.differences.items():
        said.append(f"Not judged: {shown(arm)}, as its runs differ in more than the arm: {_listed(differences)}.")
    for (first, second), differences in evidence.apart.items():
        said.append(
            f"Not judged: {shown(first)} against {shown(second)}, as they differ in more than the arm:"
            f" {_listed(differences)}."
        )
    if evidence.left_out:
        said.append(
            f"{evidence.left_out:,} validation images are left out of all comparisons, as not every run has seen them."
        )
    return tuple(said)


def _listed(differences: list[str]) -> str:
    listed = "; ".join(shown(text, 300) for text in differences[:5])
    return f"{listed}; and {len(differences) - 5} more" if len(differences) > 5 else listed


def _counts(states: list[str]) -> str:
    return ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
