"""Agreement of tickets with a selector in the loop, as a report finds and shows it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
from makers.results import write_run

from dlth.pipeline.evidence.agreement import Agreement, Seen, write_agreement
from dlth.pipeline.evidence.gather import gather
from dlth.pipeline.reports.agreement import agreement_section


def agreement(tickets: str) -> Agreement:
    """Four images, 8 of 16 patches kept; the last two mirrored, half of one's in common."""
    common = np.array([[8, 4, 4], [8, 4, 4], [8, 4, 4], [4, 4, 4]])
    seen = Seen(common, np.full((4, 3), np.nan), np.array([1.0, 0.5, 0.1, 0.1]), np.arange(4) > 1)
    return Agreement(
        tickets, "selector vit", {}, "selector vit, in the loop", {}, 8, 16, {"seed": 0}, 4, 0, seen.rows(8)
    )


def test_what_was_measured_of_the_runs_tickets_is_shown(tmp_path: Path) -> None:
    """A file of other tickets, and one that was altered, are told and left out; shares, IoU and kinds of views are
    counted over images, and what has no score says nothing."""
    write_run(tmp_path / "runs" / "ticket-0", "ticket", 0)
    of_runs = agreement("a" * 64)
    write_agreement(tmp_path / "runs" / "agreement.json", of_runs)
    write_agreement(tmp_path / "runs" / "agreement-2.json", agreement("f" * 64))
    (tmp_path / "runs" / "agreement-3.json").write_text('{"k": 8}')
    evidence = gather([tmp_path / "runs"])
    assert evidence.agreements == {"runs/agreement.json": of_runs}
    assert ["agreement-2.json is about tickets" in note for note in evidence.notes] == [True, False]
    section = agreement_section(evidence)
    assert section is not None
    rows = {row[:2]: row[2:8] for row in section.tables[0].rows}
    assert rows["all", "projected"] == (4, 8, 0.875, np.std([1, 1, 1, 0.5]), (3 + 1 / 3) / 4, None)
    assert rows["area 0 to 0.25", "projected"][:3] == (2, 8, 0.75)
    assert rows["mirrored", "projected"][:3] == (2, 8, 0.75)
    assert {row[0] for row in section.tables[0].rows} == {
        *("all", "area 0 to 0.25", "area 0.5 to 0.8", "area 0.8 to 1", "mirrored", "not mirrored")
    }
    assert agreement_section(replace(evidence, agreements={})) is None
