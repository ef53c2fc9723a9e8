"""Seeded damage to a run's folder: what reads it is refused, or does exactly what it does with the sound one.

A folder of a run that was killed is resumed. One of a finished run is evaluated, its weights begin another run
(`--init-from`), and they rank patches (`select --checkpoint`); flipped weights may load, as other weights.

    python run_folders.py [--count 60] [--first 0] [--weaken]

Mutant n is a function of n: a file of the folder, and a way to spoil it (gone, empty, cut, a bit flipped, a folder, a
link, a FIFO, endless, of a terabyte, JSON that is deep or holds what no checkpoint holds). Of the resumed, a third
change a field of state.json and make its digest anew, as someone would who knows how. With `--weaken` digests are not
looked at, and findings must come. Prints one JSON object; exit code 1 with findings.
"""

import json
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from makers.campaign import Tally, numbered
from makers.pictures import write_shards
from makers.runs import train_config
from makers.tampering import flipped
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from dlth.pipeline.selection.config import SelectConfig
from dlth.pipeline.selection.stage import plan
from dlth.training.distributed.process_group import World
from dlth.training.distributed.signals import StopRequest
from dlth.training.evaluation.evaluate import evaluate
from dlth.training.reporter import Reporter
from dlth.training.runs import checkpoint, sealed_json
from dlth.training.runs.loop import Training, planned, train
from dlth.training.settings.eval_config import EvalConfig
from dlth.training.settings.layering import layered
from dlth.training.settings.train_config import TrainConfig

ALONE = World(0, 1, torch.device("cpu"))
STEP = "checkpoints/step-00000005"
FILES = (f"{STEP}/state.json", f"{STEP}/model.safetensors", f"{STEP}/optimizer.safetensors", f"{STEP}/ema.safetensors")
FILES = (*FILES, "checkpoints/latest", "metrics.jsonl", "config.toml", "result.json")
WEIGHTS = "model.safetensors"
VALUES = (None, True, -1, 7, 10**18, 0.5, "x", "..", [], {}, [[1]], {"tensor": "x"})


class KilledError(Exception):
    """Stands for kill -9 between two steps."""


class KilledAt(Reporter):
    """Ends the run in the middle of its step 6: the newest checkpoint is of step 5, the log goes on after it."""

    def stepped(self, record: Mapping[str, Any]) -> None:
        if record["step"] == 6:
            raise KilledError


def killed_run(folder: Path) -> TrainConfig:
    """A run of three epochs of three steps on five images, killed in its sixth step; settings that resume it."""
    data = write_shards(folder, 1, 5, num_classes=2).spec
    small = {"model_kwargs": {"patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2}, "img_size": 16}
    saving = {"model_ema": True, "checkpoint_steps": 1}
    config = train_config(data, folder / "run", arm="dense", epochs=3, batch_size=2, **small, **saving)
    try:
        train(config, reporter=KilledAt())
    except KilledError:
        (folder / "run" / "result.json").write_text("{}")
    return config.model_copy(update={"resume": "auto"})


def resumed(config: TrainConfig) -> dict[str, Any]:
    """What a resumed run is after one more step: weights, place, and every number of its log, times apart."""
    result = Training(config, ALONE, Reporter()).run(StopRequest(requested=True)).to_json()
    text = (Path(config.out) / "metrics.jsonl").read_text().splitlines()
    timed = ("seconds", "per_second", "peak_memory")
    log = [{name: value for name, value in json.loads(line).items() if not any(word in name for word in timed)}
           for line in text]  # fmt: skip
    return {name: result[name] for name in ("weights_sha256", "steps", "epochs", "best", "status")} | {"log": log}


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths of all values in a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, item in items:
        yield (*path, name)
        yield from places(item, (*path, name))


def forged(path: Path, rng: random.Random) -> str:
    """A field of state.json becomes another value, and the digest that of the new content."""
    head = json.loads(path.read_text())
    head.pop(sealed_json.SEAL)
    state = head["state"]
    part = rng.choice(("head", "progress", "progress", "progress", "optimizer", "scaler", "log", "must_agree"))
    within = head if part == "head" else {part: state[part]}
    if part == "head":
        within = {name: head[name] for name in ("files", "format", "version", "state")}
        options = [("files",), ("state",), ("version",), ("format",), *places({"files": head["files"]})]
    else:
        options = list(places(within))
    place = rng.choice(options)
    inner = within
    for name in place[:-1]:
        inner = inner[name]
    value = rng.choice((*VALUES, "gone"))
    if value == "gone":
        del inner[place[-1]]
    else:
        inner[place[-1]] = value
    content = within if part == "head" else head | {"state": state | within}
    path.write_text(json.dumps(sealed_json.sealed(content)))
    return f"{'.'.join(map(str, place))} = {value!r}"


def spoilt(path: Path, rng: random.Random) -> str:
    """One of the ways to spoil a file, in words."""
    raw = path.read_bytes()
    ways: dict[str, Callable[[], Any]] = {
        "gone": lambda: None,
        "empty": lambda: path.write_bytes(b""),
        "cut": lambda: path.write_bytes(raw[: rng.randrange(len(raw))]),
        "a folder": path.mkdir,
        "a FIFO": lambda: os.mkfifo(path),
        "a link to nothing": lambda: path.symlink_to("nothing"),
        "endless": lambda: path.symlink_to("/dev/zero"),
        "of a terabyte": lambda: os.truncate(path, path.write_bytes(raw) and 1 << 40),
        "deep": lambda: path.write_bytes(b"[" * 200_000),
        "NaN": lambda: path.write_bytes(raw.replace(b"1", b"NaN", 3)),
        "noise": lambda: path.write_bytes(rng.randbytes(300)),
    }
    way = rng.choice((*ways, *["bit"] * 6))
    path.unlink()
    if way == "bit":
        place = rng.randrange(len(raw))
        path.write_bytes(flipped(raw, 8 * place + rng.randrange(8)))
        return f"bit {place}"
    ways[way]()
    return way


def noted(path: Path, rng: random.Random) -> str:
    """A field of what a weights file says of itself becomes another value; safetensors has no digest."""
    tensors = load_file(path)
    with safe_open(path, "pt") as file:
        note = json.loads(file.metadata()["dlth"])
    place, value = rng.choice(list(places(note))), rng.choice(VALUES)
    inner = note
    for name in place[:-1]:
        inner = inner[name]
    inner[place[-1]] = value
    path.unlink()
    save_file(tensors, path, {"dlth": json.dumps(note)})
    return f"{'.'.join(map(str, place))} = {value!r}"


def readers(config: TrainConfig, folder: Path) -> dict[str, Callable[[], Any]]:
    """What else reads a run's folder, by command: each gives back what it found there."""
    run, data = config.out, config.data
    plain = {"data": data, "arm": "dense", "epochs": 1, "warmup_epochs": 0, "workers": 0, "device": "cpu"}
    begun = {"init_from": run, "img_size": 16, "batch_size": 2, "out": str(folder / "next")}
    select = {"data": data, "out": str(folder / "t.zarr"), "checkpoint": run, "keep": "0.5", "blocks": "0"}
    return {
        "evaluate": lambda: evaluate(EvalConfig(checkpoint=run, val=data, workers=0, device="cpu")).table(),
        "init-from": lambda: planned(layered(plain | begun)),
        "select": lambda: plan(SelectConfig(**select, workers=0, device="cpu")).header.to_json(),
    }


def weaken(path: Path) -> None:
    """Digests are not looked at any more, nor those in a state.json."""
    sealed_json._digest = lambda content: ""
    checkpoint._entry = lambda path: {"bytes": path.stat().st_size, "sha256": ""}
    head = json.loads(path.read_text())
    for entry in (head, *head["files"].values()):
        entry["sha256"] = ""
    path.write_text(json.dumps(head, indent=1))


def fresh(folder: Path, kind: str) -> Path:
    """The run's folder as it was: "sound" is killed, "whole" is finished."""
    shutil.rmtree(folder / "run")
    shutil.copytree(folder / kind, folder / "run")
    return folder / "run"


def resume_spoilt(
    folder: Path, config: TrainConfig, expected: dict[str, Any], number: int, rng: random.Random
) -> tuple[str, Callable[[], str]]:
    """Spoil a file of the killed run: what was done, and what comes of resuming it."""
    file = FILES[0] if number % 3 == 0 else rng.choice(FILES)
    what = (forged if number % 3 == 0 else spoilt)(fresh(folder, "sound") / file, rng)

    def compared() -> str:
        found = resumed(config)
        if what == "gone" and file == "metrics.jsonl":  # said, and the log begins at the checkpoint
            found["log"] = expected["log"][: -len(found["log"])] + found["log"]
        return "the same" if found == expected else "FINDING: another run"

    return f"{file}, {what}", compared


def read_spoilt(
    folder: Path, command: str, read: Callable[[], Any], sound: Any, rng: random.Random
) -> tuple[str, Callable[[], str]]:
    """Spoil a file of the finished run: what was done, and what comes of a command that reads the folder."""
    file = rng.choice((WEIGHTS, WEIGHTS, WEIGHTS, "config.toml", "result.json", "metrics.jsonl"))
    way = noted if file == WEIGHTS and rng.random() < 0.5 else spoilt
    what = way(fresh(folder, "whole") / file, rng)

    def compared() -> str:
        changed = read() != sound
        return "the same" if not changed else "other weights" if file == WEIGHTS else "FINDING: another answer"

    return f"{command}: {file}, {what}", compared


def main() -> int:
    arguments = numbered(__doc__, 60).parse_args()
    torch.set_num_threads(1)
    tally = Tally()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = killed_run(folder)
        if arguments.weaken:
            weaken(folder / "run" / FILES[0])
        shutil.copytree(folder / "run", folder / "sound")
        expected = resumed(config)
        train(config)
        shutil.copytree(folder / "run", folder / "whole")
        others = readers(config, folder)
        sound = {command: read() for command, read in others.items()}
        for number in range(arguments.first, arguments.first + arguments.count):
            rng = random.Random(number)
            if number % 4 == 3:
                command = rng.choice(list(others))
                what, compared = read_spoilt(folder, command, others[command], sound[command], rng)
            else:
                what, compared = resume_spoilt(folder, config, expected, number, rng)
            tally.judge(f"{number}: {what}", compared)
    return tally.tell(mutants=arguments.count)


if __name__ == "__main__":
    sys.exit(main())
