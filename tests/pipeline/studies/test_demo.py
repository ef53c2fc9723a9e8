"""The demo at a fiftieth of its size: every step runs, the report says what came out, a second run does nothing."""

import json
import re
import shlex
import shutil
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dlth.pipeline.cli import console, error_handler
from dlth.pipeline.studies.demo import Demo
from dlth.pipeline.studies.demo_config import DemoConfig
from dlth.pipeline.studies.demo_report import CLAUSES, TOKENS, Runs, verdicts
from dlth.tickets import TicketStore
from dlth.tickets.errors import DamageError, InputError, MismatchError
from dlth.training.reporter import Reporter
from dlth.training.runs.sealed_json import sealed
from dlth.training.settings.layering import checked


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Demo, list[str]]:
    """A finished demo of 128 images and one seed, and what it said."""
    out = tmp_path_factory.mktemp("demo") / "demo"
    config = checked(DemoConfig, {"out": str(out), "images": 128, "val_images": 40, "epochs": 2, "seeds": "0"})
    said: list[str] = []
    demo = Demo(config, said.append, Reporter(), console.counting)
    demo.run()
    return demo, said


def test_the_report_says_what_the_runs_left(finished: tuple[Demo, list[str]]) -> None:
    """Accuracies in the page are those of result.json; it says whose tickets they are of and needs no network."""
    demo, _ = finished
    page = (demo.out / "report.html").read_text()
    result = json.loads((demo.out / "ticket-0" / "result.json").read_text())
    assert f">{result['evaluation']['model']['ticket']['top1']:.1f}<" in page
    assert result["tickets_are"].startswith("selector vit_tiny_patch16_224 (weights ")
    assert f"ticket arm is trained on tickets of {result['tickets_are']}; ticket tokens are" in page
    assert TicketStore(demo.out / "tickets" / "val.zarr").identity in page
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", page)
    assert {path.stem for path in (demo.out / "report_files").glob("*.png")} >= {
        "tickets",
        "accuracy",
        "recall",
        "curves-loss",
    }


def test_one_seed_decides_nothing_of_arms(finished: tuple[Demo, list[str]]) -> None:
    """The page of one seed decides none of the three clauses, and says that its figures are about these models."""
    demo, _ = finished
    page = (demo.out / "report.html").read_text()
    assert page.count("<strong>Not decided.</strong>") == len(CLAUSES) == 3
    assert "Holds" not in page
    assert "statements about the models at hand" in page


def test_runs_on_other_labels_are_not_reported_together(finished: tuple[Demo, list[str]], tmp_path: Path) -> None:
    """What differs beside the arm is named, with both sides, and there is no report; nor of damaged results."""
    shutil.copytree(
        finished[0].out, tmp_path / "demo", ignore=shutil.ignore_patterns("shards", "checkpoints", "tickets")
    )
    path = tmp_path / "demo" / "dense-0" / "result.json"
    result = json.loads(path.read_text())
    result["data"]["data_labels"] = "f" * 64
    path.write_text(json.dumps(result))
    with pytest.raises(DamageError, match="its content is not what its sha256 was made of"):
        Runs.load(tmp_path / "demo", [0])
    path.write_text(json.dumps(sealed({name: value for name, value in result.items() if name != "sha256"})))
    with pytest.raises(
        MismatchError, match=r"the training images' labels: .* \(arm ticket, seed 0\), f{12} \(arm dense"
    ):
        Runs.load(tmp_path / "demo", [0])


def runs_of(accuracies: dict[str, list[float]], images: int = 1_000) -> Runs:
    """Runs of three arms with these accuracies by seed; which images are right is drawn."""
    rng = np.random.default_rng(0)
    hits = {arm: [rng.random(images) < share for share in shares] for arm, shares in accuracies.items()}

    def by_arm(of_run: Callable[[np.ndarray], dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
        return {arm: list(map(of_run, runs)) for arm, runs in hits.items()}

    top1 = by_arm(
        lambda run: {"evaluation": {"model": {tokens: {"top1": 100 * float(run.mean())} for tokens in TOKENS}}}
    )
    return Runs(top1, {}, by_arm(lambda run: {f"{tokens}_top1": run for tokens in TOKENS}))


def test_the_clauses_are_judged_over_runs() -> None:
    """Five runs that agree decide; runs that scatter, and two runs however far apart, do not."""
    steady = {"ticket": [0.99] * 5, "random": [0.7] * 5, "dense": [0.99] * 5}
    assert [verdict.outcome for verdict in verdicts(runs_of(steady))] == ["holds", "holds", "holds"]
    reverse = {"ticket": [0.7] * 5, "random": [0.99] * 5, "dense": [0.99] * 5}
    assert [verdict.outcome for verdict in verdicts(runs_of(reverse))] == ["fails", "fails", "not decided"]
    scattered = {"ticket": [0.9, 0.7, 0.8], "random": [0.7, 0.75, 0.7], "dense": [0.8, 0.8, 0.8]}
    assert [verdict.outcome for verdict in verdicts(runs_of(scattered))][:2] == ["not decided", "not decided"]
    two = verdicts(runs_of({arm: shares[:2] for arm, shares in steady.items()}))
    assert all(verdict.outcome == "not decided" and "These models" in verdict.text for verdict in two)


def test_the_printed_commands_are_the_runs(
    finished: tuple[Demo, list[str]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each printed `dlth train`, parsed by the command line, is the configuration that its run stored."""
    _, said = finished
    commands = [line for text in said for line in text.splitlines() if line.startswith("dlth train")]
    assert len(commands) == 4
    for command in commands:
        monkeypatch.setattr(sys, "argv", [*shlex.split(command), "--print-config"])
        with pytest.raises(SystemExit) as stop:
            error_handler.main()
        assert not stop.value.code
        typed = tomllib.loads(capsys.readouterr().out)
        stored = tomllib.loads((Path(typed["out"]) / "config.toml").read_text())
        assert {name for name in typed | stored if typed.get(name) != stored.get(name)} <= {"resume"}


def test_a_second_run_trains_nothing(finished: tuple[Demo, list[str]]) -> None:
    """Finished steps are kept, byte for byte."""
    demo, _ = finished
    weights = {path: path.stat().st_mtime_ns for path in demo.out.rglob("*.safetensors")}
    said: list[str] = []
    Demo(demo.config, said.append, Reporter(), console.counting).run()
    assert sum(text.startswith("done before") for text in said) == 4
    assert {path: path.stat().st_mtime_ns for path in demo.out.rglob("*.safetensors")} == weights


def test_other_settings_in_the_same_folder_are_refused(finished: tuple[Demo, list[str]], tmp_path: Path) -> None:
    """A demo's folder belongs to its settings, and a folder of something else is left alone."""
    demo, _ = finished
    other = checked(DemoConfig, {**demo.config.model_dump(), "epochs": 3})
    with pytest.raises(MismatchError, match="other settings"):
        Demo(other, lambda text: None, Reporter(), console.counting).run()
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="not empty"):
        Demo(checked(DemoConfig, {"out": str(tmp_path)}), lambda text: None, Reporter(), console.counting).run()
