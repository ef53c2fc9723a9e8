"""A whole study by two workers of which one is killed, against one that nobody disturbs: the same tables, bit for bit.

    python killed_study.py FOLDER [--images 512] [--epochs 3] [--arms ticket,random,dense] [--keep 0.7,0.25]
                           [--seeds 0,1,2] [--kills 1]

Digits among clutter, a selector trained on them and its tickets are made first; then `dlth compare` runs twice, once as
a single process, once as two of which one gets SIGKILL whenever it has a run in hand that has a checkpoint, and is
started anew until so many kills have struck. The tables that --json prints, and all that the runs left but for what is
measured in seconds, must be equal. Prints one JSON object: kills, runs that were taken over, the table and the
verdicts; exit code 1 where anything differs.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from makers.studies import leavings

from dlth.data.packing.demo_digits import make_digit_shards
from dlth.pipeline.evidence.run_states import RunState, run_states
from dlth.pipeline.evidence.study_plan import read_study
from dlth.pipeline.studies.demo import MODEL

VIEWS = {"train": "whole", "val": "center"}
VAL_SHARE = 4
"""Validation images are a fourth of the training images."""


def dlth(command: str, **settings: object) -> list[str]:
    """A command line of this interpreter's dlth."""
    words = [part for name, value in settings.items() for part in (f"--{name.replace('_', '-')}", _text(value))]
    return [sys.executable, "-m", "dlth.pipeline.cli", command, *words]


def _text(value: object) -> str:
    return ",".join(f"{name}={part}" for name, part in value.items()) if isinstance(value, dict) else str(value)


def finish(command: list[str]) -> str:
    """Standard output of a command that must end well."""
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def prepare(folder: Path, images: int, epochs: int) -> dict[str, object]:
    """Shards, a selector and its tickets; the settings that all runs share."""
    make_digit_shards(folder / "shards", images, images // VAL_SHARE)
    data, val = (str(folder / "shards" / f"{split}-*.tar") for split in VIEWS)
    shared = {**MODEL, "recipe": "smoke", "data": data, "val": val, "epochs": epochs, "scale": "1,1", "ratio": "1,1"}
    shared |= {"crop_pct": 1.0, "workers": 0, "device": "cpu"}
    selector = folder / "selector"
    finish(dlth("train", **shared, arm="dense", seed=100, out=selector))
    for split, view in VIEWS.items():
        settings = {"checkpoint": selector, "data": folder / "shards" / f"{split}-*.tar", "split": split, "view": view}
        tickets = folder / "tickets" / f"{split}.zarr"
        finish(dlth("select", **MODEL, **settings, keep=0.25, blocks=0, crop_pct=1.0, workers=0, out=tickets))
    return shared | {f"{name}tickets": folder / "tickets" / f"{split}.zarr"
                     for name, split in (("", "train"), ("val_", "val"))}  # fmt: skip


def begun_by(process: int, folder: Path) -> RunState | None:
    """The run with a checkpoint that a process has in hand."""
    for state in run_states(folder) if (folder / "study.json").exists() else ():
        lock = folder / "runs" / f".{state.name}.lock"
        checkpoint = state.folder / "checkpoints" / "latest"
        if state.state == "running" and checkpoint.exists() and lock.exists() and lock.read_text() == str(process):
            return state
    return None


def disturbed(command: list[str], folder: Path, kills: int) -> tuple[str, list[str]]:
    """Two workers, of which one is killed so often; what the other prints, and the runs that were in hand."""
    other = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    names: list[str] = []
    while len(names) < kills:
        victim = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while victim.poll() is None and (state := begun_by(victim.pid, folder)) is None:
            time.sleep(0.05)  # until there is something to lose
        if victim.poll() is not None:
            break
        assert state is not None
        os.kill(victim.pid, signal.SIGKILL)
        victim.wait()
        names.append(state.name)
    out, _ = other.communicate()
    assert other.returncode == 0
    return out, names


def unmeasured(told: dict[str, Any]) -> dict[str, Any]:
    """Verdicts and tables without the one of times and memory, and without the study's place."""
    tables = {name: table for name, table in told["tables"].items() if name != "time"}
    tables["study"] = [row for row in tables["study"]["rows"] if row[0] != "out"]
    return told | {"tables": tables, "out": ""}


def main() -> int:
    """Run both studies and compare them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    for name, default in (("images", 512), ("epochs", 3), ("kills", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    for name, default in (("arms", "ticket,random,dense"), ("keep", "0.7,0.25"), ("seeds", "0,1,2")):
        parser.add_argument(f"--{name}", default=default)
    asked = parser.parse_args()
    shared = prepare(asked.folder, asked.images, asked.epochs)
    grid = {"arms": asked.arms, "keep": asked.keep, "seeds": asked.seeds, "measure": 0}
    one, two = asked.folder / "undisturbed" / "study", asked.folder / "killed" / "study"
    calm = json.loads(finish([*dlth("compare", **grid, **shared, out=one), "--json"]))
    out, killed = disturbed([*dlth("compare", **grid, **shared, out=two), "--json"], two, asked.kills)
    told: dict[str, Any] = {"kills": len(killed), "killed in": killed, "findings": []}
    if unmeasured(json.loads(out)) != unmeasured(calm):
        told["findings"].append("the tables differ")
    plan = read_study(one)
    left = leavings(one, plan), leavings(two, read_study(two))
    told["findings"] += [name for name in left[0] if left[0][name] != left[1].get(name)]
    if len(killed) < asked.kills:
        told["findings"].append(f"only {len(killed)} kills found a worker with a run in hand")
    print(json.dumps(told | {"runs": len(plan.runs), "result": calm}))
    return 1 if told["findings"] else 0


if __name__ == "__main__":
    sys.exit(main())
