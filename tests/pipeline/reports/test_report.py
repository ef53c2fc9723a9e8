"""The report: what it says is what runs left, in the page, in CSV and in JSON; the same folders give the same bytes."""

import csv
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from makers.results import write_run, write_study_of

from dlth.pipeline.evidence.arm_key import ArmKey
from dlth.pipeline.evidence.gather import gather
from dlth.pipeline.judging.verdicts import judge
from dlth.pipeline.reports.report import report_of, write_report
from dlth.tickets.errors import MismatchError
from dlth.training.runs.runlog import METRICS

KEEPS = ("0.5", "0.25")
ARMS = (
    ArmKey("dense"),
    *(ArmKey(arm, keep, "projected") for keep in KEEPS for arm in ("ticket", "random")),
    ArmKey("control-centre", "0.5", "projected"),
)
HOSTILE = "</title><script>window.canary=1</script>"


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six arms with three seeds, one run of which is missing."""
    folder = tmp_path_factory.mktemp("studies") / "digits"
    write_study_of(folder, ARMS, unfinished=("random-keep0.25-seed2",))
    return folder


@pytest.fixture(scope="module")
def page(study: Path) -> Path:
    """Its report."""
    return write_report(gather([study]), study.parent / "report.html")


def table(page: Path, name: str) -> list[dict[str, str]]:
    with (page.with_name("report_files") / f"{name}.csv").open() as file:
        return list(csv.DictReader(file))


def files_of(page: Path) -> dict[str, bytes]:
    found = [page, page.with_suffix(".json"), *page.with_name(f"{page.stem}_files").iterdir()]
    return {path.name.replace(page.stem, "NAME"): path.read_bytes() for path in found}


def test_the_report_says_on_which_patches_arms_were_judged(page: Path, tmp_path: Path) -> None:
    """On the selector's, or where there were no validation tickets on all."""
    write_study_of(tmp_path / "blind", ARMS[:2], (0,), without="ticket")
    blind = write_report(gather([tmp_path / "blind"]), tmp_path / "report.html").read_text()
    told = ("An arm that drops patches is judged on the selector", "Every arm is judged on all patches")
    assert [[text in each for text in told] for each in (page.read_text(), blind)] == [[True, False], [False, True]]


def test_verdicts_stand_first_and_are_those_of_the_judge(study: Path, page: Path) -> None:
    """Every clause at every keep, in the judge's order, above the sections; what is missing is said before them."""
    text, judged = page.read_text(), judge(gather([study]).hits, 5.0)
    shown = re.findall(r'<p class="verdict ([a-z-]+)"><strong>', text)
    assert shown == ["warning", *(verdict.outcome.replace(" ", "-") for verdict in judged)]
    assert len(judged) == 3 * len(KEEPS) + 1
    assert {"holds", "not decided"} <= {verdict.outcome for verdict in judged}
    assert text.index('class="verdict') < text.index("<h2>Comparisons") < text.index("<h2>Accuracy")
    assert "Runs without a result: 1 waiting." in text
    rows = table(page, "comparisons")
    assert [row["outcome"] for row in rows] == [verdict.outcome for verdict in judged]
    assert float(rows[0]["difference"]) == judged[0].comparison.difference  # type: ignore[union-attr]


def test_figures_are_counted_from_the_images(study: Path, page: Path) -> None:
    """Accuracy in the tables is the share of right images in eval.npz: by run, and as mean over an arm's seeds."""
    shares = []
    for seed in range(3):
        images = np.load(study / "runs" / f"ticket-keep0.5-seed{seed}" / "eval.npz")
        shares.append(100 * images["ticket_top1"].mean())
    runs = [row for row in table(page, "runs") if (row["arm"], row["keep"]) == ("ticket", "0.5")]
    assert [float(row["on ticket tokens"]) for row in runs] == shares
    arm = next(row for row in table(page, "arms") if (row["arm"], row["keep"]) == ("ticket", "0.5"))
    assert (float(arm["top-1"]), float(arm["±"])) == (np.mean(shares), pytest.approx(np.std(shares, ddof=1)))
    assert [row["runs"] for row in table(page, "arms")] == ["3", "3", "3", "3", "3", "2"]


def test_numbers_are_set_as_numbers(page: Path) -> None:
    """The page has a minus where files have a hyphen and keeps a number and its % in one line; it explains no column
    that is not there."""
    text = page.read_text()
    lows = [f"{float(row['low']):.2f}" for row in table(page, "comparisons") if row["low"].startswith("-")]
    assert lows
    assert all(f">\N{MINUS SIGN}{low[1:]}<" in text for low in lows)
    verdicts = "".join(re.findall(r'<p class="verdict .*?</p>', text))
    assert " %" not in verdicts
    assert verdicts.count("\N{NO-BREAK SPACE}%") >= 21
    assert "Charged" not in text


def test_json_has_the_tables_of_the_csv(page: Path) -> None:
    """One JSON holds every table, its numbers whole, and the verdicts."""
    told = json.loads(page.with_suffix(".json").read_text())
    assert told["tables"].keys() == {path.stem for path in page.with_name("report_files").glob("*.csv")}
    for name, content in told["tables"].items():
        rows = [["" if cell is None else str(cell) for cell in row] for row in content["rows"]]
        assert [list(row.values()) for row in table(page, name)] == rows
    assert len(told["verdicts"]) == 7


def test_the_same_folders_give_the_same_bytes(study: Path, page: Path) -> None:
    """Written again under another name: every file is the same, byte for byte."""
    again = write_report(gather([study]), page.with_name("again.html"))
    assert files_of(again) == files_of(page)


def test_what_is_measured_in_seconds_is_kept_apart(study: Path, page: Path, tmp_path: Path) -> None:
    """A slower machine changes the table of times, and the curve over hours; no other table, and no verdict."""
    shutil.copytree(study, tmp_path / "digits")
    for log in tmp_path.glob(f"digits/runs/*/{METRICS}"):
        log.write_text(log.read_text().replace('"compute_seconds": 9.0', '"compute_seconds": 99.0'))
    slower = files_of(write_report(gather([tmp_path / "digits"]), tmp_path / "report.html"))
    before = files_of(page)
    csvs = {name for name in before if name.endswith(".csv")}
    assert {name for name in csvs if slower[name] != before[name]} == {"time.csv"}
    assert json.loads(slower["NAME.json"])["verdicts"] == json.loads(before["NAME.json"])["verdicts"]
    assert slower["curves-0-flops.png"] == before["curves-0-flops.png"]
    assert slower["curves-0-hours.png"] != before["curves-0-hours.png"]


def test_runs_that_differ_are_told_and_not_judged(study: Path, tmp_path: Path) -> None:
    """Another model at one keep: no verdict there, a warning with both sides, and its rows in the tables."""
    shutil.copytree(study, tmp_path / "digits")
    run = tmp_path / "digits" / "runs" / "random-keep0.5-seed1"
    shutil.rmtree(run)
    write_run(run, "random", 1, "0.5", model="resnet50")
    report = report_of(gather([tmp_path / "digits"]))
    assert {row[1] for row in report.tables["comparisons"].rows} == {"0.25"}
    assert any("Not judged: ticket, keep 0.5" in text and "resnet50" in text for text in report.warnings)
    assert len(report.tables["arms"].rows) == len(ARMS)


def test_a_log_of_an_older_version_has_no_costs(tmp_path: Path) -> None:
    """Where epochs do not say what they computed, curves are over epochs and hours, and cells are empty."""
    for arm in ("ticket", "dense"):
        log = write_run(tmp_path / arm, arm, 0) / METRICS
        log.write_text(re.sub(r', "tokens": \d+, "flops": \d+', "", log.read_text()))
    report = report_of(gather([tmp_path]))
    choice = next(choice for section in report.sections for choice in section.choices)
    assert [word for word, _ in choice.options] == ["epoch", "hour"]
    assert {row[-3] for row in report.tables["cost"].rows} == {None}
    assert "Accuracy and computation" not in [section.title for section in report.sections]


def test_hostile_texts_stay_texts(tmp_path: Path) -> None:
    """Markup in a study's name, its notes, results, settings and versions is shown, and nothing of it is an element."""
    of = {"model": HOSTILE, "device": HOSTILE, "versions": {HOSTILE: HOSTILE}, "val_view": HOSTILE}
    for arm in ("ticket", "dense"):
        write_run(tmp_path / "<b>" / arm, arm, 0, **of)
    text = write_report(gather([tmp_path / "<b>"]), tmp_path / "r.html", title=HOSTILE).read_text()
    assert "<script" not in text
    assert "<b>" not in text
    assert text.count("&lt;script&gt;window.canary") >= 6
    assert text.count("</title>") == 1
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", text)


def test_the_command_writes_and_says_where(dlth: Callable[..., tuple[int, str, str]], study: Path) -> None:
    """`dlth report` gives the page; `--json` the verdicts; a name of another ending, or an empty folder, code 2."""
    out, runs = study.parent / "told.html", study / "runs"
    code, said, _ = dlth("report", runs / "dense-seed0", runs / "random-keep0.5-seed0", "--out", out, "--json")
    told = json.loads(said)
    assert (code, told["page"], len(told["verdicts"])) == (0, str(out), 1)
    assert Path(told["files"], "arms.csv").is_file()
    code, _, error = dlth("report", study, "--out", study.parent / "told.txt")
    assert (code, "must end in .html" in error) == (2, True)
    (study.parent / "empty").mkdir()
    code, _, error = dlth("report", study.parent / "empty")
    assert (code, "holds no run and no study" in error) == (2, True)


def test_studies_of_other_margins_need_one(study: Path, tmp_path: Path) -> None:
    """Two studies that name different margins are judged by neither; the one that is given counts."""
    plan = write_study_of(tmp_path / "other", ARMS[:1], seeds=(7,))
    evidence = gather([study, tmp_path / "other"])
    evidence.studies[tmp_path / "other"].settings["margin"] = 1.0  # type: ignore[index]
    assert plan.settings["margin"] == 5.0
    with pytest.raises(MismatchError, match="name several margins"):
        report_of(evidence)
    assert report_of(evidence, margin=2.0).tables["comparisons"].rows[0][12] == 2.0
