"""Text from outside on a terminal: every text field of every foreign format, shown by every command, moves nothing.

The planted text holds what terminals obey (ESC, U+009B, U+202E, DEL, tags), a line of its own that would pass for one
of dlth's, and what rich takes for an emoji or markup. The streams' filter would hide a forgotten escape, but for that
line: it shows where a message was put together from raw text. rich writes past the filter, so what it shows counts.
"""

import contextlib
import functools
import io
import json
import os
import pty
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
import torch
from makers.keys import write_keys
from makers.pictures import make_image, make_picture, make_tar
from makers.runs import SMALL
from makers.servers import Handler, Server
from makers.tampering import put, signed_anew
from makers.tickets import tree_bytes
from makers.warm import run_warm
from pyarrow import parquet
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from typer.main import get_command

from dlth.pipeline.cli.app import app
from dlth.pipeline.cli.error_handler import main
from dlth.training.pruning.magnitude import pruned
from dlth.training.pruning.mask_file import write_mask
from dlth.training.pruning.mask_header import MaskHeader, layers_of
from dlth.training.pruning.recipe import MaskRecipe
from dlth.training.runs.sealed_json import SEAL, sealed
from dlth.training.settings.toml_text import toml_value

EVIL = "x\x1b[31m\x9b2J\u202e\x7f\U000e0041\r\nFORGED :100: [bold]b[/bold] $\\frac{"
NAME = EVIL.replace("/", "")
"""The same as a file's name."""
LITERAL = ":100: [bold]b[/bold] $"
DLTH = [sys.executable, "-c", "from dlth.pipeline.cli.error_handler import main; main()"]
HERE = Path(__file__).parent


def check(text: str) -> None:
    """No character that a terminal obeys, no emoji, no line that somebody else wrote, no traceback."""
    odd = {char for char in text if not char.isprintable() and char not in "\n\t"}
    assert (odd, "💯" in text, "Traceback" in text) == (set(), False, False), repr(text)
    assert [line for line in text.splitlines() if line.startswith("FORGED")] == [], text


def dlth(*words: object) -> tuple[int, str]:
    """Run a command in this process and check all that it says: exit code, and the text."""
    said, before = io.StringIO(), sys.argv
    sys.argv = ["dlth", *map(str, words)]
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said), pytest.raises(SystemExit) as stop:
            main()
    finally:
        sys.argv = before
    check(said.getvalue())
    assert stop.value.code in (0, 1, 2), (words, said.getvalue())
    return int(stop.value.code or 0), said.getvalue()


def leaves(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The place of every text in a JSON value, those of names included."""
    if isinstance(value, str):
        yield place
    for key, item in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from leaves(item, (*place, key))


def planted(value: Any, place: tuple[Any, ...]) -> Any:
    """A copy of a JSON value with the planted text in one place."""
    if not place:
        return EVIL
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[place[0]] = planted(value[place[0]], place[1:])
    return copy


@dataclass(frozen=True)
class Lab:
    """A stranger's files: keys, names of shards and classes, header and settings hold the planted text."""

    root: Path
    shards: Path
    tickets: Path
    run: Path


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    root = tmp_path_factory.mktemp("lab")
    made = Lab(root, root / "shards", root / "t.zarr", root / "run")
    made.shards.mkdir()
    for shard in range(2):
        members = []
        for row in range(2):
            key, image = f"{EVIL}{shard}{row}", make_image(make_picture(shard * 2 + row))
            members += [(f"{key}.jpg", image), (f"{key}.cls", b"%d" % row), (f"{key}.{EVIL}", b"ignored")]
        make_tar(made.shards / f"{NAME}-{shard:06d}.tar", members)
    (made.shards / "classes.json").write_text(json.dumps({"names": [EVIL, "plain"]}))
    words = ("--random-weights", "--keep", "0.5", "--blocks", "0,1", "--num-classes", 2, "--workers", 0)
    texts = [word for name in ("dataset", "creator", "license", "created") for word in (f"--{name}", EVIL)]
    assert dlth("select", *SMALL, "--data", made.shards, "--out", made.tickets, *words, *texts)[0] == 0
    training = ("--recipe", "smoke", "--epochs", 1, "--batch-size", 2, "--workers", 0)
    data = ("--data", made.shards, "--val", made.shards, "--tickets", made.tickets)
    assert dlth("train", *SMALL, *data, *training, "--out", made.run)[0] == 0
    return made


def sign_with(path: Path, sound: Any, file: str, change: Callable[[Any], Any]) -> None:
    """Make the ticket file the sound one with one JSON file changed, everything signed anew by the attacker."""
    changed = signed_anew(sound | {file: json.dumps(change(json.loads(sound[file]))).encode()})
    put(path, tree_bytes(path), changed)


def test_every_text_of_a_ticket_files_metadata(lab: Lab) -> None:
    """Header, manifest and array metadata, each text by itself is shown or refused; then all that passed."""
    path = lab.root / "changed.zarr"
    shutil.copytree(lab.tickets, path)
    tree, passed = tree_bytes(path), []
    for file in ("zarr.json", "patches/zarr.json", "manifest/c.0"):
        for place in leaves(json.loads(tree[file])):
            sign_with(path, tree, file, lambda content, place=place: planted(content, place))
            if dlth("tickets", "info", path)[0] == 0 and file == "zarr.json":
                passed.append(place)
    fields = {".".join(map(str, place[2:])) for place in passed}
    shown = {"dataset.name", "dataset.split", "selector.model", "view.interpolation", "selector.block_dtype", "creator"}
    assert fields >= shown
    sign_with(path, tree, "zarr.json", lambda content: functools.reduce(planted, passed, content))
    code, said = dlth("tickets", "info", path)
    assert (code, said.count(LITERAL) >= len(shown)) == (0, True), said
    for words in (("info", path, "--json"), ("stats", path), ("diff", path, path), ("verify", path)):
        code, said = dlth("tickets", *words)
        assert code == 0
        if "--json" in words:
            assert json.loads(said)["header"]["dataset"]["name"] == EVIL
            assert said.isascii()


def test_every_text_of_lists_and_notes(lab: Lab) -> None:
    """_info.json, classes.json, a run's files, a checkpoint's notes, a signature: each text by what reads it."""
    folder, images = lab.root / "packed", lab.root / "images" / "plain"
    images.mkdir(parents=True)
    (images / "a.jpg").write_bytes(make_image(make_picture(0)))
    assert dlth("pack", images.parent, "--out", folder)[0] == 0
    weights = lab.root / "w.safetensors"
    tensors = load_file(lab.run / "model.safetensors")
    with safe_open(lab.run / "model.safetensors", "np") as file:
        notes = {name: json.loads(text) for name, text in file.metadata().items()}
    for place in leaves(notes):
        changed = planted(notes, place)
        save_file(tensors, weights, {name: json.dumps(value) for name, value in changed.items()})
        dlth("evaluate", "--checkpoint", weights, "--val", odd_path(lab), "--workers", 0)
    for path, words in (
        (folder / "_info.json", ("index", folder)),
        (folder / "classes.json", ("tickets", "stats", lab.tickets, "--data", folder)),
        (signed(lab), ("tickets", "verify", lab.tickets, "--key", lab.root / "lab.pub")),
    ):
        sound = path.read_text()
        for place in leaves(json.loads(sound)):
            path.write_text(json.dumps(planted(json.loads(sound), place)))
            dlth(*words)
        path.write_text(sound)
    for name in ("result.json", "checkpoints/step-00000002/state.json", "metrics.jsonl"):
        path = lab.run / name
        sound = path.read_text()
        lines = [json.loads(line) for line in sound.splitlines()] if path.suffix == ".jsonl" else [json.loads(sound)]
        changed = [functools.reduce(planted, leaves(line), line) for line in lines]
        path.write_text("\n".join(json.dumps(resealed(line)) for line in changed))
        dlth("train", *run_words(lab), "--resume", "auto")
        dlth("evaluate", "--checkpoint", lab.run, "--val", odd_path(lab))
        path.write_text(sound)


def resealed(content: dict[str, Any]) -> dict[str, Any]:
    """The content with a digest of itself, where it had one: else the digest is what is refused."""
    return sealed({name: value for name, value in content.items() if name != SEAL}) if SEAL in content else content


def odd_path(lab: Lab) -> Path:
    """A path of nothing that holds the planted text."""
    return lab.root / f"no{NAME}.zarr".replace("{", "")


def signed(lab: Lab) -> Path:
    """The signature of the ticket file, by a new key whose public half lies beside it."""
    private, _ = write_keys(lab.root, "lab")
    assert dlth("tickets", "sign", lab.tickets, "--key", private)[0] == 0
    return lab.root / "t.zarr.sig"


def run_words(lab: Lab) -> tuple[object, ...]:
    data = ("--data", lab.shards, "--val", lab.shards, "--tickets", lab.tickets)
    return (*SMALL, *data, "--recipe", "smoke", "--epochs", 1, "--batch-size", 2, "--workers", 0, "--out", lab.run)


class _Handler(Handler):
    """Answers with an error whose reason, headers and body hold the planted text, as far as HTTP lets it."""

    def do_GET(self) -> None:  # noqa: N802 - the server looks for this name
        text = EVIL.replace("\r\n", " ").encode("utf-8").decode("latin-1")
        self.send_response(403 if "403" in self.path else 500, text)
        self.send_header("X-Error", text)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET  # noqa: N815


@pytest.fixture
def server() -> Iterator[str]:
    answering = Server(_Handler)
    with answering.running():
        yield answering.url


def _imports(lab: Lab) -> list[tuple[object, ...]]:
    keys = np.array([f"{EVIL}{row}" for row in range(2)])
    np.savez(lab.root / "a.npz", keys=keys, patches=np.array([[0, 1, 2, 3], [3, 2, 1, 0]]))
    np.savez(lab.root / "b.npz", **{NAME: keys, "patches": np.zeros((2, 4, 9))})
    words = ("--grid", "2x2", "--patch-size", 8, "--tokens", 2, "--view", "whole", "--dataset", EVIL)
    table = {"key": keys, "patches": np.array([[0, 1], [3, 2]]).tolist(), EVIL: keys}
    parquet.write_table(pyarrow.table(table).replace_schema_metadata({EVIL: EVIL}), lab.root / "c.parquet")
    files = ("a.npz", "b.npz", "c.parquet")
    return [("import", lab.root / file, "--out", lab.root / f"{file}.zarr", *words) for file in files]


def _mask(lab: Lab) -> Path:
    """A mask whose model, arguments and layers, and whose patterns are planted text."""
    recipe = MaskRecipe(1, "0.5", exclude=(EVIL,))
    masks = pruned({EVIL: torch.arange(4.0)}, None, recipe)
    header = MaskHeader(model=EVIL, model_kwargs={EVIL: EVIL}, recipe=recipe, layers=layers_of(masks))
    write_mask(lab.root / f"{NAME}.safetensors", header, masks)
    return lab.root / f"{NAME}.safetensors"


def _cases(lab: Lab, url: str) -> dict[str, list[tuple[object, ...]]]:
    """What each command is run on: the stranger's files as they are, and something that it refuses."""
    t, data, odd = lab.tickets, ("--data", lab.shards), odd_path(lab)
    out = lambda name: ("--out", lab.root / name)  # noqa: E731
    toml = lab.root / "odd.toml"
    toml.write_text(f"dataset = {toml_value(EVIL)}\n[select]\n{toml_value(EVIL)} = 1\n")
    named = lab.root / f"{NAME}.toml"
    named.write_text(f"dataset = {toml_value(EVIL)}\nsplit = {toml_value(EVIL)}\n")
    packed, m = lab.root / "t.zip", _mask(lab)
    return {
        "select": [("select", "--config", toml), ("select", "--config", named, *data),
                   ("select", "--model", EVIL, *data),
                   ("select", *SMALL, *data, *out("p.zarr"), "--checkpoint", lab.run, "--dry-run"),
                   ("select", "--config", named, "--print-config")],
        "pack": [("pack", lab.shards, *out("repacked")), ("pack", odd, *out("x")), ("pack", lab.root, *out("y"))],
        "index": [("index", lab.shards), ("index", odd), ("index", lab.shards, "--check"),
                  ("index", f"{url}/{EVIL}.tar".replace("{", "")), ("index", lab.shards, "--split", EVIL),
                  ("index", lab.shards, "--json")],
        "demo": [("demo", "--out", t / "zarr.json" / EVIL)],
        "compare": [("compare", *run_words(lab), "--measure", 0, "--dry-run"), ("compare", "--config", toml),
                    ("compare", *run_words(lab), "--sweep", f"{EVIL}=[1,2]"),
                    ("compare", *data, *out("c"), "--arms", EVIL)],
        "prune": [("prune", *run_words(lab), "--measure", 0, "--dry-run"), ("prune", "--config", toml),
                  ("prune", *data, *out("c"), "--arm", EVIL), ("prune", *run_words(lab), "--exclude", EVIL)],
        "masks info": [("masks", "info", m), ("masks", "info", m, "--json"), ("masks", "info", odd)],
        "masks verify": [("masks", "verify", m), ("masks", "verify", m, "--json"), ("masks", "verify", odd),
                         ("masks", "verify", lab.run)],
        "runs": [("runs", lab.run), ("runs", lab.run, "--json"), ("runs", odd)],
        "report": [("report", lab.run, *out("r.html")), ("report", lab.run, *out("r.html"), "--title", EVIL),
                   ("report", odd)],
        "reproduce list": [("reproduce", "list"), ("reproduce", "list", EVIL)],
        "reproduce run": [("reproduce", "run", EVIL, *data, *out("rep"))],
        "reproduce check": [("reproduce", "check", odd), ("reproduce", "check", lab.run)],
        "train": [("train", *run_words(lab), "--dry-run"), ("train", "--config", toml), ("train", "--arm", EVIL),
                  ("train", *run_words(lab), "--recipe", EVIL), ("train", *run_words(lab), "--init-from", odd)],
        "train-selector": [("train-selector", "--config", toml), ("train-selector", *data, "--init-from", odd),
                           ("train-selector", *data, *out("sel"), "--recipe", EVIL)],
        "label": [("label", "--config", toml), ("label", *data, *out("l"), "--annotator", EVIL, "--random-weights"),
                  ("label", *data, *out("l"), "--checkpoint", odd)],
        "label import": [("label", "import", odd, *data, *out("l")),
                         ("label", "import", lab.shards, *data, *out("l"), "--annotator", EVIL)],
        "evaluate": [("evaluate", "--checkpoint", lab.run, "--val", lab.shards, "--workers", 0),
                     ("evaluate", "--checkpoint", odd, "--val", lab.shards)],
        "tickets info": [("info", t), ("info", odd), ("info", t, "--key", EVIL)],
        "tickets verify": [("verify", t), ("verify", t, "--subset", EVIL),
                           ("verify", t, "--key", odd)],
        "tickets agree": [("agree", t, *data, "--selector", odd), ("agree", odd, *data, "--selector", EVIL),
                          ("agree", t, *data, "--selector", EVIL, "--selector-checkpoint", lab.run)],
        "tickets stats": [("stats", t, *data), ("stats", t, "--json"),
                          ("stats", t, "--keep", EVIL)],
        "tickets diff": [("diff", t, t, *data), ("diff", t, t, "--json"), ("diff", t, odd)],
        "tickets merge": [("merge", t, t, *out("m.zarr"))],
        "tickets subset": [("subset", t, *out("s.zarr"), "--keys", lab.tickets / "zarr.json"),
                           ("subset", t, *out("s2.zarr"), "--class", EVIL, *data),
                           ("subset", t, *out("s3.zarr"), "--class", "nothing", *data)],
        "tickets union": [("union", t, t, *out("u.zarr"))],
        "tickets intersect": [("intersect", t, t, *out("i.zarr"), "--keep", EVIL)],
        "tickets inverse": [("inverse", t, *out(f"{NAME}.zarr"))],
        "tickets control": [("control", t, *out("c.zarr"), "--kind", kind) for kind in ("random", EVIL)],
        "tickets shrink": [("shrink", t, *out("h.zarr"), "--form", form) for form in ("mask", EVIL)],
        "tickets show": [("show", t, *data, *out("g")), ("show", t, *data, *out("g"), "--keys", EVIL),
                         ("show", t, *data, *out("g"), "--class", EVIL)],
        "tickets export": [("export", t, lab.root / f"e.{kind}") for kind in ("npz", "json", "parquet", EVIL)],
        "tickets import": _imports(lab),
        "tickets match": [("match", t, *data), ("match", odd, *data)],
        "tickets remap": [("remap", t, *data, *out("r.zarr"))],
        "tickets pack": [("pack", t, *out("t.zip"))],
        "tickets unpack": [("unpack", packed, *out("un.zarr")), ("unpack", odd)],
        "tickets push": [("push", t, lab.root / f"{NAME}.zip"), ("push", t, EVIL)],
        "tickets pull": [("pull", packed, *out("pulled.zarr")), ("pull", f"{url}/403.zip"),
                         ("pull", f"{url}/{EVIL}.zip#identity={EVIL}")],
        "tickets sign": [("sign", t, "--key", odd), ("sign", t, "--key", t / "zarr.json")],
    }  # fmt: skip


def _commands(group: Any, prefix: str = "") -> set[str]:
    """The names of all commands, those of groups with the group's before them."""
    names: set[str] = set()
    for name, command in group.commands.items():
        names |= _commands(command, f"{name} ") if hasattr(command, "commands") else set()
        if not hasattr(command, "commands") or command.invoke_without_command:
            names.add(prefix + name)
    return names


def test_a_planted_style_draws_nothing(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """A matplotlibrc in the working folder that has LaTeX typeset foreign texts is not followed."""
    folder = lab.root / "styled"
    folder.mkdir()
    (folder / "matplotlibrc").write_text("text.usetex: True\nfont.family: none\n")
    monkeypatch.chdir(folder)
    program = Path(sys.executable).with_name("dlth")
    [done] = run_warm((program, "tickets", "show", lab.tickets, "--data", lab.shards, "--out", "g"))
    assert (done.returncode, (folder / "g" / "sheet-000.png").is_file()) == (0, True), done.stderr


def test_on_a_terminal(lab: Lab) -> None:
    """Where rich draws in colour, nothing but its own codes reaches the terminal, in tables and in errors of words."""
    own = re.compile(r"\x1b\[[0-9;]*m|\x1b\[\?25[hl]|\x1b\[[12]?[AK]|\r")
    for words in (["info", lab.tickets], ["diff", lab.tickets, lab.tickets], ["info", lab.tickets, f"--{EVIL}"]):
        reads, writes = pty.openpty()
        command = [*DLTH, "tickets", *map(str, words)]
        with subprocess.Popen(command, stdout=writes, stderr=writes, env=os.environ | {"TERM": "xterm"}):
            os.close(writes)
            said = bytearray()
            with contextlib.suppress(OSError):  # how a terminal says that its other end was closed
                while part := os.read(reads, 65536):
                    said += part
        os.close(reads)
        assert b"\x1b[" in said
        check(own.sub("", said.decode().replace("\r\n", "\n")))


def test_settings_are_printed_as_toml_that_gives_them_back(lab: Lab) -> None:
    """`--print-config` of a text that a terminal would obey is escapes, and reads back as that text."""
    path = lab.root / "settings.toml"
    path.write_text(f"dataset = {toml_value(EVIL)}\n")
    code, said = dlth("select", "--config", path, "--data", "x", "--random-weights", "--print-config")
    assert (code, tomllib.loads(said)["dataset"]) == (0, EVIL)


def test_every_command_shows_a_strangers_text_as_text(lab: Lab, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each command of the app has its case here, and none writes a character that a terminal obeys."""
    monkeypatch.setenv("DLTH_TIMEOUT", "1")
    (lab.root / "here").mkdir()
    monkeypatch.chdir(lab.root / "here")
    cases = _cases(lab, server)
    assert cases.keys() == _commands(get_command(app))
    for name, runs in cases.items():
        for words in runs:
            dlth(*(("tickets", *words) if name.startswith("tickets ") else words))
