"""What each command imports: nothing heavy before it is needed, so that an answer or a refusal comes at once."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from makers import GOLDEN

SCRIPT = """
import contextlib, io, json, sys
HEAVY = ("torch", "torchvision", "timm", "webdataset", "matplotlib", "jinja2", "scipy", "pyarrow")
import dlth.data, dlth.training, dlth.tickets
from dlth.pipeline.cli.error_handler import main

for command in json.load(open(sys.argv[1])):
    sys.argv[1:], before, text = command, set(sys.modules), io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
        try:
            main()
        except SystemExit as end:
            code = end.code
    print(json.dumps([code, [name for name in HEAVY if name in sys.modules], text.getvalue()]))
"""


def test_commands_import_nothing_heavy_before_they_need_it(tmp_path: Path, make_shards: Callable[..., Any]) -> None:
    """Help, refusals, `index` and the ticket tools import neither torch nor what draws; `pack` torch alone, through
    webdataset, and only to write."""
    (tmp_path / "classes" / "cat").mkdir(parents=True)
    (tmp_path / "classes" / "cat" / "a.jpg").write_bytes(b"\xff\xd8\xff")
    shards, zipped, copy = make_shards(1, 3).spec, tmp_path / "a.zip", tmp_path / "copy.zarr"
    tickets = [
        (["info", GOLDEN], 0),
        (["verify", GOLDEN], 0),
        (["stats", GOLDEN, "--json"], 0),
        (["diff", GOLDEN, GOLDEN], 0),
        (["pack", GOLDEN, "--out", zipped], 0),
        (["pull", zipped, "--out", copy], 0),
        (["push", copy, tmp_path / "sent.zip"], 0),
        (["shrink", GOLDEN, "--form", "mask", "--out", tmp_path / "mask.zarr"], 0),
        (["control", GOLDEN, "--kind", "random", "--out", tmp_path / "random.zarr"], 0),
        (["export", GOLDEN, tmp_path / "a.npz"], 0),
        (["match", GOLDEN, "--data", shards], 0),
        (["remap", GOLDEN, "--data", shards, "--out", tmp_path / "other.zarr"], 2),
        (["show", GOLDEN, "--data", tmp_path / "nowhere"], 2),
    ]
    light = [
        (["--help"], 0),
        (["select", "--help"], 0),
        (["train", "--help"], 0),
        (["--version"], 0),
        (["select", "--print-config"], 0),
        (["train", "--print-config", "--tickets", GOLDEN], 0),
        (["select", "--data", shards, "--out", tmp_path / "t.zarr", "--keep", "3"], 2),
        (["train", "--recipe", "none"], 2),
        (["evaluate", "--batch-size", "0"], 2),
        (["index", shards], 0),
        (["pack", tmp_path / "nowhere", "--out", tmp_path / "packed"], 2),
        *((["tickets", *command], code) for command, code in tickets),
    ]
    commands = [*light, (["pack", tmp_path / "classes", "--out", tmp_path / "packed"], 0)]
    file = tmp_path / "commands.json"
    file.write_text(json.dumps([list(map(str, command)) for command, _ in commands]))
    done = subprocess.run([sys.executable, "-c", SCRIPT, file], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    said = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(said) == len(commands)
    for (command, code), (found, heavy, text) in zip(commands, said, strict=True):
        assert (found or 0, command) == (code, command), text
        assert (heavy, command) == (["torch", "webdataset"] if (command, code) == commands[-1] else [], command)
