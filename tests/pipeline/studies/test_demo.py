"""The demo at a fiftieth of its size: every step runs, the report says what came out, a second run does nothing."""

import csv
import json
import re
import shlex
import sys
import tomllib
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest

from dlth.pipeline.cli import console, error_handler
from dlth.pipeline.evidence.study_plan import read_study
from dlth.pipeline.studies.demo import Demo
from dlth.pipeline.studies.demo_config import DemoConfig
from dlth.pipeline.studies.worker import StudyReporter
from dlth.tickets import TicketStore
from dlth.tickets.errors import InputError, MismatchError
from dlth.training.reporter import Reporter
from dlth.training.settings.layering import checked

Finished = tuple[Demo, list[str]]


def demo_of(config: DemoConfig, said: Callable[[str], None] = lambda text: None) -> Demo:
    return Demo(config, said, Reporter(), console.counting, lambda plan: nullcontext(StudyReporter()))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A finished demo of 128 images and one seed, and what it said."""
    out = tmp_path_factory.mktemp("demo") / "demo"
    config = checked(DemoConfig, {"out": str(out), "images": 128, "val_images": 40, "epochs": 2, "seeds": "0"})
    said: list[str] = []
    demo = demo_of(config, said.append)
    demo.run()
    return demo, said


def test_the_report_says_what_the_runs_left(finished: Finished) -> None:
    """Accuracies in the page are those of result.json; it says whose tickets they are of and needs no network."""
    demo, _ = finished
    page = (demo.out / "report.html").read_text()
    (folder,) = (demo.study / "runs").glob("ticket-*")
    result = json.loads((folder / "result.json").read_text())
    assert f">{result['evaluation']['model']['ticket']['top1']:.2f}<" in page
    assert result["tickets_are"].startswith("selector vit_tiny_patch16_224 (weights ")
    assert result["tickets_are"] in page
    assert TicketStore(demo.out / "tickets" / "val.zarr").identity in page
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", page)
    pictures = {path.stem for path in (demo.out / "report_files").glob("*.png")}
    assert pictures >= {"tickets-worst", "recall", "pareto", "curves-0-epochs"}
    assert "scores, 40 validation images," in page


def test_recall_is_counted_of_the_digits_patches(finished: Finished) -> None:
    """The table's recall is that of the four patches that each digit fills, of every validation image's ticket."""
    demo, _ = finished
    known = json.loads((demo.out / "shards" / "informative.json").read_text())
    rows = TicketStore(demo.out / "tickets" / "val.zarr").read(0)
    shares = [np.isin(known[key], ranking[:16]).mean() for key, ranking in zip(rows.keys, rows.patches, strict=True)]
    table = list(csv.reader((demo.out / "report_files" / "recall.csv").read_text().splitlines()))
    assert table[0] == ["keep", "patches", "recall", "by chance"]
    assert [float(cell) for cell in table[1]] == [0.25, 16, pytest.approx(np.mean(shares)), 0.25]


def test_one_seed_decides_nothing_of_arms(finished: Finished) -> None:
    """The page of one seed decides none of the three clauses, and says that its figures are about these models."""
    demo, _ = finished
    page = (demo.out / "report.html").read_text()
    assert page.count("<strong>Not decided.</strong>") == 3
    assert "Holds" not in page
    assert "about these very models" in page


def test_the_printed_commands_are_the_runs(
    finished: Finished, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """The printed `dlth train`, parsed by the command line, is the configuration that its run stored; the printed
    `dlth compare` plans the very runs of the study; the first of all draws the same images."""
    demo, said = finished
    (drawn,) = (line for text in said for line in text.splitlines() if line.startswith("python -c "))
    exec(shlex.split(drawn)[2].replace(str(demo.out), str(tmp_path)))
    for made in (demo.out / "shards").glob("*.tar"):
        assert (tmp_path / "shards" / made.name).read_bytes() == made.read_bytes()

    def typed(command: str, *more: str) -> str:
        (words,) = (line for text in said for line in text.splitlines() if line.startswith(f"dlth {command} "))
        monkeypatch.setattr(sys, "argv", [*shlex.split(words), *more])
        with pytest.raises(SystemExit) as stop:
            error_handler.main()
        assert not stop.value.code
        return capsys.readouterr().out

    settings = tomllib.loads(typed("train", "--print-config"))
    stored = tomllib.loads((Path(settings["out"]) / "config.toml").read_text())
    assert {name for name in settings | stored if settings.get(name) != stored.get(name)} <= {"resume"}
    planned = json.loads(typed("compare", "--dry-run", "--json"))["runs"]
    assert [run["name"] for run in planned] == [run.name for run in read_study(demo.study).runs]


def test_a_second_run_trains_nothing(finished: Finished) -> None:
    """Finished steps are kept, byte for byte."""
    demo, _ = finished
    weights = {path: path.stat().st_mtime_ns for path in demo.out.rglob("*.safetensors")}
    assert len(weights) > 4
    said: list[str] = []
    demo_of(demo.config, said.append).run()
    assert sum(text.startswith("done before") for text in said) == 1
    assert {path: path.stat().st_mtime_ns for path in demo.out.rglob("*.safetensors")} == weights


def test_other_settings_in_the_same_folder_are_refused(finished: Finished, tmp_path: Path) -> None:
    """A demo's folder belongs to its settings, and a folder of something else is left alone."""
    demo, _ = finished
    other = checked(DemoConfig, {**demo.config.model_dump(), "epochs": 3})
    with pytest.raises(MismatchError, match="other settings"):
        demo_of(other).run()
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="not empty"):
        demo_of(checked(DemoConfig, {"out": str(tmp_path)})).run()
