"""The report of a study of pruned weights: its table and curve, beside the sections and studies that patches have."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from makers.pruning import TICKET, WAYS, write_prune_study
from makers.results import write_study_of

from dlth.pipeline.evidence.arm_key import ArmKey
from dlth.pipeline.evidence.gather import gather
from dlth.pipeline.judging.verdicts import PAPER, WEIGHTS
from dlth.pipeline.pages.report import Report
from dlth.pipeline.reports.report import report_of, verdicts_of, write_report


@pytest.fixture(scope="module")
def page(pruned: Path) -> Path:
    """Its report."""
    return write_report(gather([pruned]), pruned.parent / "report.html")


def rows(page: Path, name: str) -> list[dict[str, str]]:
    with (page.with_name(f"{page.stem}_files") / f"{name}.csv").open() as file:
        return list(csv.DictReader(file))


def files_of(page: Path) -> dict[str, bytes]:
    found = [page, page.with_suffix(".json"), *page.with_name(f"{page.stem}_files").iterdir()]
    return {path.name.replace(page.stem, "NAME"): path.read_bytes() for path in found}


def section(report: Report, title: str) -> str:
    """All that a section says and its pictures' captions."""
    (found,) = [each for each in report.sections if each.title == title]
    return " ".join([*found.texts, *(picture.caption for picture in found.all_pictures)])


def test_the_table_counts_images_by_remaining_weights(pruned: Path, page: Path) -> None:
    """The unpruned model stands first; means are of seeds, a seed's draws by their mean; runs are all that finished."""
    unpruned, first, second = rows(page, "pruning")
    assert [(row["weights"], row["remaining"]) for row in (unpruned, first, second)] == [
        *(("1", "100"), ("0.8", "80"), ("0.64", "64"))
    ]
    assert len({unpruned[way] for way in WAYS}) == 1
    assert [second[f"runs of {way}"] for way in WAYS] == ["3", "5", "6", "3"]
    assert (first["one-shot"], first["runs of one-shot"]) == ("", "")
    seeds = []
    for seed in range(3):
        draws = [np.load(pruned / "runs" / f"dense-rr-level1-draw{draw}-seed{seed}" / "eval.npz") for draw in range(2)]
        seeds.append(np.mean([100 * images["dense_top1"].mean() for images in draws]))
    assert (float(first["rr"]), float(first["± rr"])) == pytest.approx((np.mean(seeds), np.std(seeds, ddof=1)))


def test_the_curve_says_its_figures(pruned: Path) -> None:
    """One picture, whose text names every way, the share that it ends at, and the unpruned model."""
    (found,) = [each for each in report_of(gather([pruned])).sections if each.title == "Accuracy by remaining weights"]
    (picture,) = found.pictures
    for told in ("unpruned 8", "lt from 8", "rr from 8", "random-mask from 8", "one-shot from 8", "at 0.64"):
        assert told in picture.alt


def test_planted_differences_stand_in_the_verdicts(page: Path) -> None:
    """lt is better than rr and a random mask at both shares, corrected over them; tables say the share of a claim."""
    outcomes = {(row["claim"], row["weights"]): row["outcome"] for row in rows(page, "comparisons")}
    assert {outcomes[str(clause), weights] for clause in (WEIGHTS[0], WEIGHTS[3]) for weights in ("0.8", "0.64")} == {
        "holds"
    }
    assert outcomes["lt as good as rr", "0.64"] == "fails"
    texts = [verdict["text"] for verdict in json.loads(page.with_suffix(".json").read_text())["verdicts"]]
    assert any(text.startswith("Lt better than rr at 0.64 of the weights.") for text in texts)


def test_the_curve_comes_first_and_many_verdicts_are_folded(pruned: Path, page: Path) -> None:
    """Accuracy by remaining weights is the first section; nine verdicts stand under a line for each claim, which counts
    their outcomes; those on patches do not.
    """
    html = page.read_text()
    assert html.index("<h2>Accuracy by remaining weights") < html.index("<h2>Comparisons")
    assert "<details><summary>Lt better than rr: holds at 2</summary>\n<p class=" in html
    assert html.count("<details><summary>Lt ") == html[: html.index("<nav")].count("</details>") == len(WEIGHTS)


def test_what_levels_have_no_part_in_shows_unpruned_models(pruned: Path, page: Path) -> None:
    """Curves over epochs are of the unpruned arm, and say so; the missing run is named with its weights; commands and
    settings are those of `dlth prune`.
    """
    report = report_of(gather([pruned]))
    assert "Pruned models are not drawn" in section(report, "Curves")
    assert "Accuracy and computation" not in [each.title for each in report.sections]
    (missing,) = rows(page, "unfinished")
    assert [missing[name] for name in ("arm", "pruned", "weights", "draw", "seed")] == ["dense", "rr", "0.64", "1", "2"]
    assert f"dlth prune --out {pruned}" in report.sections[-1].commands
    assert {"rounds", "rate", "rewind"} <= {row["setting"] for row in rows(page, "study")}
    assert {"mask", "init_from", "init_seed"}.isdisjoint(row["setting"] for row in rows(page, "settings"))


def test_the_same_folders_give_the_same_bytes(pruned: Path, page: Path) -> None:
    """Written again under another name: every file is the same, byte for byte."""
    assert files_of(write_report(gather([pruned]), page.with_name("again.html"))) == files_of(page)


def test_both_lotteries_stand_on_one_page(pruned: Path, tmp_path: Path) -> None:
    """A study of patches and one of weights: each judged as alone, and both tables; columns of weights are there where
    anything is pruned, and nowhere else.
    """
    arms = (ArmKey("dense"), TICKET, ArmKey("random", "0.5", "projected"))
    write_study_of(tmp_path / "patches", arms)
    both = gather([tmp_path / "patches", pruned])
    judged = {}
    for name, evidence in (("patches", gather([tmp_path / "patches"])), ("weights", gather([pruned])), ("both", both)):
        judged[name] = [(str(each.clause), each.outcome, each.comparison) for each in verdicts_of(evidence)]
    assert judged["both"] == judged["patches"] + judged["weights"]
    assert {clause for clause, _, _ in judged["both"]} == {str(clause) for clause in (*PAPER, *WEIGHTS)}
    tables = report_of(both).tables
    assert {row[3] for row in tables["pruning"].rows} == {"pruned"}
    assert len(tables["pareto"].rows) == 4
    assert "weights" in tables["arms"].columns
    alone = report_of(gather([tmp_path / "patches"])).tables
    assert "pruning" not in alone
    assert not any({"weights", "pruned"} & set(table.columns) for table in alone.values())


def test_both_lotteries_of_one_study(tmp_path: Path) -> None:
    """Tickets on pruned weights: rows and picture name the arm of patches, verdicts too."""
    write_prune_study(tmp_path / "both", {"lt": 0.8, "rr": 0.5}, levels=1, arm=TICKET)
    report = report_of(gather([tmp_path / "both"]))
    assert report.tables["pruning"].rows[1][:6] == ("ticket", "0.5", "projected", "", "0.8", 80)
    assert report.verdicts[0].text.startswith("Lt better than rr, ticket, keep 0.5, projected, at 0.8 of the weights.")
