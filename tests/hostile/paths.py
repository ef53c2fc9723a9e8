"""Every command with every path that a person or a script may get wrong: one clear error, nothing made, nothing hurt.

    python paths.py EVERY [WORD …]            each EVERY-th case of the commands with one of these words, or of all
    python paths.py EVERY --denied [WORD …]   the same as a user (root becomes nobody) who may not read or write there

A row is a command that works as it stands; each of its paths in turn is replaced by each bad one. What stood before
must stand as it was, what is refused may leave nothing behind, and nothing may wait (a FIFO has no other end). Prints
the findings as JSON, and how many commands were run.
"""

import codecs
import contextlib
import io
import itertools
import json
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from makers.campaign import HangError, within
from makers.keys import write_keys
from makers.pictures import make_image, make_picture, make_tar
from makers.runs import train_config
from makers.tickets import select_tickets

from dlth.data.shards.index import open_index
from dlth.pipeline.cli.error_handler import main as dlth
from dlth.tickets import DatasetInfo, SelectorInfo, TicketStore
from dlth.tickets.exchange.archive import pack
from dlth.tickets.exchange.npz import export_npz

WAIT = 300
"""Seconds after which a command is held to hang: far above what the slowest takes, as nothing is measured by it."""

MODEL = (
    *("--model", "vit_tiny_patch16_224", "--model-kwargs", "patch_size=8,embed_dim=32,depth=1,num_heads=2"),
    *("--img-size", "32", "--device", "cpu"),
)
RUN = (*MODEL, "--recipe", "none", "--epochs", "1", "--batch-size", "4", "--workers", "0", "--warmup-epochs", "0")
ONLINE = ("--mode", "online", "--keep", "0.5")
SELECT = (*MODEL, "--keep", "0.5", "--blocks", "0", "--workers", "0", "--num-classes", "4")
LABEL = (*MODEL[2:], "--annotator", MODEL[1], "--workers", "0", "--num-classes", "5")
TRIAL = ("--scale", "0.01", "--measure", "0", "--device", "cpu", "--workers", "0", "--batch-size", "4")
SELECTOR_RUN = ("--stage-keep", "0.5", "--blocks", "0")


SELECTOR = SelectorInfo("tiny", "ab" * 32, "random", (0,))

Extra = dict[str, tuple[str, ...]]


@dataclass(frozen=True)
class Row:
    """A command: its `words` with {name} for a path, what stands for each (`given`), and which of them are written.

    `given`: a path of the world; names with `out` in them are free. `extra`: words that one path's turn needs besides.
    """

    words: tuple[str, ...]
    given: dict[str, str]
    written: tuple[str, ...] = ()
    extra: Extra = field(default_factory=dict)


def _row(
    words: str, *rest: str, written: str = "", extra: dict[str, tuple[str, ...]] | None = None, **given: str
) -> Row:
    return Row((*words.split(), *rest), given, tuple(written.split()), extra or {})


OF_A_RUN = {
    "token_labels": ("--token-labels", "{token_labels}"),
    "val": ("--val", "{val}"),
    "val_tickets": ("--val", "shards", "--val-tickets", "{val_tickets}"),
    "init_from": ("--init-from", "{init_from}"),
    "mask": ("--mask", "{mask}"),
    "selector_checkpoint": (*ONLINE, "--selector-checkpoint", "{selector_checkpoint}"),
}
"""What the paths of a run's settings need beside them."""

ROWS: dict[str, Row] = {
    "index": _row("index {data}", data="shards"),
    "pack": _row(
        "pack {source} --out {out} --workers 1", source="images", out="out", labels="labels.txt", written="out",
        extra={"labels": ("--labels", "{labels}", "--split", "val")},
    ),
    "select": _row(
        "select --data {data} --out {out}", *SELECT, data="shards", out="out.zarr", checkpoint="w.safetensors",
        config="settings.toml", written="out", extra={"checkpoint": ("--checkpoint", "{checkpoint}")},
    ),
    "train": _row(
        "train --data {data} --out {out} --tickets {tickets}", *RUN, data="shards", out="out", tickets="t.zarr",
        val="shards", val_tickets="t.zarr", init_from="w.safetensors", selector_checkpoint="w.safetensors",
        resume="run", config="settings.toml", token_labels="t.zarr", mask="mask.safetensors", written="out",
        extra={
            **OF_A_RUN,
            "resume": ("--resume", "{resume}"),
        },
    ),
    "train-selector": _row(
        "train-selector --data {data} --out {out}", *RUN, *SELECTOR_RUN, data="shards", out="out", val="shards",
        init_from="w.safetensors", resume="run", config="settings.toml", written="out",
        extra={
            "val": ("--val", "{val}"),
            "init_from": ("--init-from", "{init_from}"),
            "resume": ("--resume", "{resume}"),
        },
    ),
    "label": _row(
        "label --data {data} --out {out}", *LABEL, data="shards", out="out.zarr", checkpoint="w.safetensors",
        config="settings.toml", written="out", extra={"checkpoint": ("--checkpoint", "{checkpoint}")},
    ),
    "label import": _row(
        "label import {maps} --data {data} --out {out}", maps="maps", data="shards", out="out.zarr", written="out",
    ),
    "evaluate": _row(
        "evaluate --checkpoint {checkpoint} --val {val} --workers 0", *MODEL, checkpoint="w.safetensors", val="shards",
        val_tickets="t.zarr", out="out.npz", config="settings.toml", written="out",
        extra={"val_tickets": ("--val-tickets", "{val_tickets}"), "out": ("--out", "{out}")},
    ),
    "compare": _row(
        "compare --data {data} --out {out} --tickets {tickets} --arms ticket --seeds 0 --measure 0", *RUN,
        data="shards", out="out", tickets="t.zarr", val="shards", val_tickets="t.zarr", token_labels="t.zarr",
        init_from="w.safetensors", selector_checkpoint="w.safetensors", selector_run="begun", config="settings.toml",
        mask="mask.safetensors", written="out",
        extra={
            **OF_A_RUN,
            "selector_run": ("--selector-cost", "charged", "--selector-run", "{selector_run}"),
        },
    ),
    "prune": _row(
        "prune --data {data} --out {out} --rounds 1 --arm lt --seeds 0 --measure 0", *RUN,
        data="shards", out="out", tickets="t.zarr", val="shards", val_tickets="t.zarr", token_labels="t.zarr",
        init_from="w.safetensors", selector_checkpoint="w.safetensors", config="settings.toml", written="out",
        extra={**OF_A_RUN, "tickets": ("--tickets", "{tickets}")},
    ),
    "runs": _row("runs {folder}", folder="begun"),
    "masks info": _row("masks info {mask}", mask="mask.safetensors"),
    "masks verify": _row("masks verify {places}", places="mask.safetensors"),
    "report": _row(
        "report {folders} --out {out}", folders="begun", out="out.html", val="shards", val_tickets="t.zarr",
        other_tickets="u.zarr", written="out",
        extra={
            "val": ("--val", "{val}", "--val-tickets", "t.zarr"),
            "val_tickets": ("--val", "shards", "--val-tickets", "{val_tickets}"),
            "other_tickets": ("--val", "shards", "--val-tickets", "t.zarr", "--other-tickets", "{other_tickets}"),
        },
    ),
    "demo": _row("demo --out {out} --images 0", out="out", written="out"),
    "reproduce list": _row("reproduce list deit-ti/dense"),
    "reproduce run": _row(
        "reproduce run deit-ti/dense --data {data} --val {val} --out {out}", *TRIAL, data="shards", val="shards",
        out="out", selector="w.safetensors", init_from="w.safetensors", tickets="t.zarr", val_tickets="t.zarr",
        token_labels="t.zarr", written="out",
        extra={
            "selector": ("deit-ti/rc/0.9", "--selector", "{selector}"),
            "init_from": ("deit-ti/selector/0.9", "--init-from", "{init_from}"),
            "tickets": ("deit-ti/rc/0.9", "--tickets", "{tickets}", "--val-tickets", "t.zarr"),
            "val_tickets": ("deit-ti/rc/0.9", "--tickets", "t.zarr", "--val-tickets", "{val_tickets}"),
            "token_labels": ("lvvit-s/dense", "--token-labels", "{token_labels}"),
        },
    ),
    "reproduce check": _row(
        "reproduce check {folder}", folder="bundle", markdown="out.md", csv="out.csv",
        extra={"markdown": ("--markdown", "{markdown}"), "csv": ("--csv", "{csv}")},
    ),
    "tickets info": _row("tickets info {file}", file="t.zarr"),
    "tickets verify": _row(
        "tickets verify {file}", file="t.zarr", key="lab.pub", signature="t.zarr.sig",
        extra={"key": ("--key", "{key}"), "signature": ("--key", "lab.pub", "--signature", "{signature}")},
    ),
    "tickets agree": _row(
        "tickets agree {file} --data {data} --selector-checkpoint {selector_checkpoint}", *MODEL[4:], "--workers", "0",
        "--selector-blocks", "0", file="t.zarr", data="shards", selector_checkpoint="w.safetensors", out="out.json",
        written="out", extra={"out": ("--out", "{out}")},
    ),
    "tickets stats": _row("tickets stats {file} --data {data}", file="t.zarr", data="shards"),
    "tickets diff": _row("tickets diff {first} {second} --data {data}", first="t.zarr", second="u.zarr", data="shards"),
    "tickets merge": _row("tickets merge {files} v.zarr --out {out}", files="t.zarr", out="out.zarr", written="out"),
    "tickets subset": _row(
        "tickets subset {file} --out {out}", file="t.zarr", out="out.zarr", keys="keys.txt", keys_of="u.zarr",
        data="shards", written="out",
        extra={
            "keys": ("--keys", "{keys}"),
            "keys_of": ("--keys-of", "{keys_of}"),
            "data": ("--class", "0", "--data", "{data}"),
            "file": ("--keys", "keys.txt"),
            "out": ("--keys", "keys.txt"),
        },
    ),
    "tickets union": _row("tickets union {files} u.zarr --out {out}", files="t.zarr", out="out.zarr", written="out"),
    "tickets intersect": _row(
        "tickets intersect {files} u.zarr --out {out}", files="t.zarr", out="out.zarr", written="out"
    ),
    "tickets inverse": _row("tickets inverse {file} --out {out}", file="t.zarr", out="out.zarr", written="out"),
    "tickets control": _row(
        "tickets control {file} --kind random --out {out}", file="t.zarr", out="out.zarr", written="out"
    ),
    "tickets shrink": _row(
        "tickets shrink {file} --form top --out {out}", file="t.zarr", out="out.zarr", written="out"
    ),
    "tickets pack": _row("tickets pack {file} --out {out} --no-card", file="t.zarr", out="out.zip", written="out"),
    "tickets unpack": _row("tickets unpack {file} --out {out}", file="t.zip", out="out.zarr", written="out"),
    "tickets push": _row("tickets push {file} {to}", file="t.zarr", to="outbox/out.zip", written="to"),
    "tickets pull": _row("tickets pull {address} --out {out}", address="t.zip", out="out.zarr", written="out"),
    "tickets sign": _row(
        "tickets sign {file} --key {key} --out {out}", file="t.zarr", key="lab.pem", out="out.sig", written="out"
    ),
    "tickets export": _row("tickets export {file} {to} --format npz", file="t.zarr", to="out.npz", written="to"),
    "tickets import": _row("tickets import {source} --out {out}", source="t.npz", out="out.zarr", written="out"),
    "tickets match": _row("tickets match {file} --data {data}", file="t.zarr", data="shards"),
    "tickets remap": _row(
        "tickets remap {file} --data {data} --out {out}", file="t.zarr", data="shards", out="out.zarr", written="out"
    ),
    "tickets show": _row(
        "tickets show {file} --data {data} --out {out} --against {against} --no-sheets",
        file="t.zarr", data="shards", out="out", against="u.zarr", written="out",
    ),
}  # fmt: skip

BAD = {
    "missing": "none/such",
    "a long name": "x" * 300,
    "a long path": "d/" * 3000 + "x",
    "below a file": "keys.txt/below",
    "not UTF-8": "none\udcff",
    "NUL": "a\0b",
    "an empty folder": "empty",
    "the root": "/",
    "a file": "keys.txt",
    "a FIFO": "fifo",
    "a socket": "socket",
    "a dangling link": "dangling",
    "a loop of links": "loop",
    "a device": "/dev/null",
    "an endless device": "/dev/zero",
    "in /proc": "/proc/self/mem",
    "empty": "",
}
WRITTEN = {
    "shards": "shards",
    "a shard": "shards/train-000000.tar",
    "inside the shards, with a slash": "shards/new/",
    "inside the ticket file": "t.zarr/new",
    "an input": "t.zarr",
}
"""Bad places to write at, besides."""
DENIED = {"a denied file": "denied.txt", "a denied folder": "denied", "in a denied folder": "denied/x"}
NO_WRITING = {"in a read-only folder": "readonly/new", "deep in one": "readonly/new/new"}
NOBODY = 65534


def build(root: Path, models: bool = True) -> None:
    """The world: everything that the rows name, in `root`."""
    root.mkdir(parents=True, exist_ok=True)
    for name in ("shards", "others", "images/a", "images/b", "outbox", "empty"):
        (root / name).mkdir(parents=True)
    members: list[list[tuple[str, bytes]]] = [[], [], []]
    for number in range(1, 10):
        image = make_image(make_picture(number, 40, 40))
        members[(number - 1) // 3] += [(f"n{number}.jpg", image), (f"n{number}.cls", b"%d" % (number % 4))]
        if number <= 6:
            (root / f"images/{'ab'[number % 2]}/n{number}.JPEG").write_bytes(image)
    for name, content in zip(("shards/train-000000", "shards/train-000001", "others/other"), members, strict=True):
        make_tar(root / f"{name}.tar", content)
    index, others = open_index(str(root / "shards")), open_index(str(root / "others"))
    open_index(str(root / "shards/train-000000.tar"))  # which a trial at a smaller scale takes
    for name, listed in (("t", index), ("u", index), ("v", others)):
        dataset = DatasetInfo("toy", "train", listed.num_samples, "")
        select_tickets(listed, root / f"{name}.zarr", name=name, dataset=dataset, selector=SELECTOR)
    store = TicketStore(root / "t.zarr")
    pack(store, root / "t.zip")
    export_npz(store, root / "t.npz")
    (root / "keys.txt").write_text("n1\nn4\n")
    (root / "labels.txt").write_text("n00000001\n" * 6)
    (root / "settings.toml").write_text("batch_size = 3\n")
    (root / "begun").mkdir()
    (root / "begun" / "config.toml").write_text('arm = "dense"\n')
    if models:
        _weights(root / "w.safetensors")
        _maps(root / "maps")
        _bundle(root)
    write_keys(root, "lab")
    os.mkfifo(root / "fifo")
    os.symlink("nowhere", root / "dangling")
    os.symlink("loop", root / "loop")
    with socket.socket(socket.AF_UNIX) as made, contextlib.chdir(root):
        made.bind("socket")
    with contextlib.chdir(root):
        code, _, err = call(("tickets", "sign", "t.zarr", "--key", "lab.pem"))
    assert code == 0, err


def _weights(path: Path) -> None:
    import torch
    from makers.masks import mask_file

    from dlth.training.models.registry import build as build_model
    from dlth.training.models.weights_metadata import WeightsNote
    from dlth.training.runs.checkpoint import write_tensors

    torch.manual_seed(0)
    kwargs = {"patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2}
    about = WeightsNote(model="vit_tiny_patch16_224", model_kwargs=kwargs, num_classes=4, img_size=32)
    model = build_model("vit_tiny_patch16_224", num_classes=4, img_size=32, **kwargs)
    write_tensors(path, model.state_dict(), about.to_json())
    mask_file(model, about.model, path.with_name("mask.safetensors"))


def _maps(folder: Path) -> None:
    import torch

    folder.mkdir()
    classes = torch.arange(5.0)[:, None, None].expand(5, 2, 2)
    for number in range(1, 7):
        torch.save(torch.stack([classes.flip(0), classes]), folder / f"n{number}.pt")


def _bundle(root: Path) -> None:
    from dlth.pipeline.reproduction.bundle import BundleOf, write_bundle
    from dlth.training.runs.loop import train

    train(train_config(str(root / "shards"), root / "run-of-bundle", arm="dense", epochs=1))
    made = write_bundle(root, BundleOf("toy", "", "1", {"run": root / "run-of-bundle"}))
    made.rename(root / "bundle")


def call(words: tuple[str, ...]) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of a command in this process; an exception passes."""
    before, sys.argv = sys.argv, ["dlth", *words]
    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            dlth()
        code = 0
    except SystemExit as stop:
        code = int(stop.code or 0)
    finally:
        sys.argv = before
    return code, out.getvalue(), err.getvalue()


def words_of(row: Row, name: str = "", path: str = "") -> tuple[str, ...]:
    """The row's words, with `path` in the place of what stands for `name`."""
    settings = ("--config", "{config}") if name == "config" else ()
    given = row.given | ({name: path} if name else {})
    words = [*row.words, *row.extra.get(name, ()), *settings]
    if row.words[0] in ("select", "label") and row.words[1] != "import" and name != "checkpoint":
        words.append("--random-weights")
    return tuple(given[word[1:-1]] if word[:1] == "{" else word for word in words)


def state(root: Path) -> dict[str, tuple[int, int, int]]:
    """Mode, size and time of change of everything below a folder (folders without the last two)."""
    found = {}
    for folder, folders, files in os.walk(root):
        for name in (*folders, *files):
            path = os.path.join(folder, name)
            status = os.lstat(path)
            plain = not os.path.isdir(path) or os.path.islink(path)
            found[path] = (status.st_mode, status.st_size * plain, status.st_mtime_ns * plain)
    return found


def attack(root: Path, words: tuple[str, ...], legal: bool = False) -> str:
    """Run a command in `root`; what is wrong with its answer, or nothing. `legal`: it may also succeed."""
    before = state(root)
    try:
        with within(WAIT), contextlib.chdir(root):
            found, _, err = call(words)
    except (Exception, HangError) as error:
        return f"{type(error).__name__}: {str(error)[:80]}"
    finally:
        after = state(root)
        changed = sorted(path for path in before if after.get(path) != before[path])
        made = sorted(after.keys() - before.keys())
        for path in made:
            if os.path.isdir(path) and not os.path.islink(path):
                shutil.rmtree(path, ignore_errors=True)
            elif os.path.lexists(path):
                os.unlink(path)
    if changed:
        return f"changed {changed[:3]} (exit code {found})"
    if found == 0 and legal:
        return ""
    if found == 1 and err.count("damaged[") == 1 and not made:  # what a check finds wrong is no wrong argument
        return ""
    if found != 2:
        return f"exit code {found}: {err[-200:]}"
    if made:
        return f"left {[os.path.relpath(path, root) for path in made[:3]]}: {err[-200:]}"
    if err.count("error[") + err.count("Usage:") != 1 or "Traceback" in err:
        return f"said {err[-300:]!r}"
    return ""


def cases(row: Row, bad: dict[str, str], written: dict[str, str]) -> Iterator[tuple[str, str, str]]:
    """Which path of a row, what is bad, and the bad path."""
    for name in row.given:
        if name == "to":
            bad = {what: path for what, path in bad.items() if what != "the root"}  # a folder to send to, as any other
        yield from ((name, what, path) for what, path in (bad | (written if name in row.written else {})).items())


def legal(row: Row, name: str, what: str) -> bool:
    """Whether such a path may be what somebody wants there: a new place is written, and a folder may be there."""
    if name not in row.written:
        return False
    folder = row.words[0] in ("pack", "train", "train-selector", "demo", "reproduce") or row.words[1] in (
        "show",
        "push",
    )
    anywhere = ("not UTF-8", "missing", "inside the shards, with a slash")
    return what in anywhere or (folder and what in ("an empty folder", "shards", "empty"))


def survey(root: Path, rows: dict[str, Row], every: int = 1, denied: bool = False) -> dict[str, Any]:
    """Each row as it stands, and of all its cases each `every`-th: how many commands, and what was found."""
    turns = [(name, row, words_of(row), "as it stands", True) for name, row in rows.items()]
    kinds = (DENIED, NO_WRITING) if denied else (BAD, WRITTEN)
    some = ((name, row, *case) for name, row in rows.items() for case in cases(row, *kinds))
    turns += [
        (f"{name} {path}", row, words_of(row, path, bad), what, legal(row, path, what))
        for name, row, path, what, bad in itertools.islice(some, 0, None, every)
    ]
    sound = [(name, what, attack(root, words, allowed)) for name, _, words, what, allowed in turns[: len(rows)]]
    if denied and os.geteuid() == 0:  # after the sound ones, whose imports nobody may not be allowed to read
        codecs.lookup("utf-8-sig")
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
    found = sound + [(name, what, attack(root, words, allowed)) for name, _, words, what, allowed in turns[len(rows) :]]
    return {"commands": len(turns), "findings": [f"{name}, {what}: {text}" for name, what, text in found if text]}


def main(every: int, denied: bool, words: set[str]) -> int:
    with tempfile.TemporaryDirectory() as folder:
        os.environ["DLTH_CACHE"] = f"{folder}/cache"
        os.chmod(folder, 0o755)
        root = Path(folder) / "world"
        rows = {name: row for name, row in ROWS.items() if not words or words & set(name.split())}
        build(root, models=any(not name.startswith("tickets ") or name == "tickets agree" for name in rows))
        _deny(root)
        if not denied or os.geteuid():
            return _told(root, rows, every, denied)
        child = os.fork()  # nobody could not clear up what is root's
        if not child:
            code = 1
            try:
                code = _told(root, rows, every, denied)
            finally:
                os._exit(code)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _told(root: Path, rows: dict[str, Row], every: int, denied: bool) -> int:
    told = survey(root, rows, every, denied)
    print(json.dumps(told, indent=1), flush=True)
    return 1 if told["findings"] else 0


def _deny(root: Path) -> None:
    (root / "denied.txt").write_text("n1\n")
    for name, mode in (("denied.txt", 0), ("denied", 0), ("readonly", 0o555)):
        if name != "denied.txt":
            (root / name).mkdir()
        os.chmod(root / name, mode)


if __name__ == "__main__":
    given = sys.argv[2:]
    sys.exit(main(int(sys.argv[1]), "--denied" in given, {word for word in given if word != "--denied"}))
