"""Settings that a user does not type: the file of a project, and what is worked out from the folder one works in."""

import json
import shutil
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dlth.pipeline.project.derived import twin_of
from dlth.pipeline.project.file import ProjectFile, beside, project_file
from dlth.pipeline.project.record import brace_range, record_shards
from dlth.pipeline.project.run_folder import run_folder
from dlth.pipeline.project.settings import evaluate_settings, select_settings, train_settings
from dlth.tickets.errors import InputError, MissingFileError
from dlth.training.settings.fields import is_free
from dlth.training.settings.toml_text import CONFIG, to_toml

Run = Callable[..., tuple[int, str, str]]

TINY = """
model = "vit_tiny_patch16_224"
model_kwargs = {patch_size = 8, embed_dim = 32, depth = 2, num_heads = 2}
img_size = 32
num_classes = 4
device = "cpu"
workers = 0
"""
TABLES = f"""
[select]
random_weights = true
keep = 0.5
{TINY}
[train]
recipe = "smoke"
epochs = 1
batch_size = 8
{TINY}
[evaluate]
workers = 0
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_two_lines_work_as_they_stand(dlth: Run, images: Path, folder: Path) -> None:
    """From packed shards: `dlth select`, `dlth train --tickets tickets.zarr`; validation tickets and evaluation too."""
    for split in ("train", "val"):
        code, _, err = dlth("pack", images, "--split", split, "--out", "shards", "--shard-size", 10)
        assert code == 0, err
        assert f"dlth.toml: {'data' if split == 'train' else 'val'} = shards/{split}-{{000000..000002}}.tar" in err
    with Path("dlth.toml").open("a") as file:
        file.write(TABLES)
    code, out, err = dlth("select")
    assert code == 0, err
    assert "settings                 dlth.toml" in out
    assert dlth("select", "--split", "val")[0] == 0
    code, _, err = dlth("train", "--tickets", "tickets.zarr")
    assert code == 0, err
    assert "val tickets: tickets-val.zarr, the twin of tickets.zarr" in err
    run = Path("runs/ticket-vit_tiny_patch16_224-projected-k8-seed42")
    result = json.loads((run / "result.json").read_text())
    found = (result["status"], result["arm"], result["k"], result["config"]["warmup_epochs"])
    assert found == ("finished", "ticket", 8, 0)
    assert set(result["evaluation"]["model"]) == {"dense", "ticket", "random"}
    header = json.loads(dlth("tickets", "info", "tickets-val.zarr", "--json")[1])["header"]
    assert (header["dataset"]["split"], header["view"]["kind"]) == ("val", "center")
    code, out, err = dlth("evaluate", "--checkpoint", run, "--json")
    assert (code, json.loads(out)["dense"]["images"]) == (0, 24), err


def test_without_a_file_shards_in_the_working_folder_are_taken_and_said(
    dlth: Run, make_shards: Callable[..., Any], folder: Path
) -> None:
    """./shards is found, its splits are told apart by name, and a run of other settings never takes a run's folder."""
    for split, seed in (("train", 0), ("val", 1)):
        shards = make_shards(1, 8, split=split, seed=seed)
        for path in shards.paths:
            Path("shards").mkdir(exist_ok=True)
            path.rename(Path("shards") / path.name)
    tiny = [word for line in TINY.strip().splitlines() for word in _flag(line)]
    code, _, err = dlth("select", *tiny, "--random-weights", "--keep", "0.5")
    assert code == 0, err
    assert "data: shards, the shards found here (split train)" in err
    words = ("train", *tiny, "--tickets", "tickets.zarr", "--recipe", "smoke", "--epochs", 1, "--batch-size", 8)
    code, out, err = dlth(*words, "--json")
    assert code == 0, err
    assert "data: shards, the shards found here (split train and val)" in err
    result = json.loads(out)
    first = Path(result["config"]["out"])
    assert (result["config"]["val_split"], first.parent) == ("val", Path("runs"))
    assert json.loads(dlth(*words, "--resume", "auto", "--json")[1])["config"]["out"] == str(first)
    code, out, err = dlth(*words, "--lr", "0.1", "--dry-run", "--json")
    assert json.loads(out)["out"] == f"{first}-2"
    assert f"{first} holds a run of other settings" in err


def _flag(line: str) -> tuple[str, str]:
    name, value = line.split(" = ", 1)
    pairs = value.strip('"{}').replace(" = ", "=").replace(", ", ",")
    return "--" + name.replace("_", "-"), pairs


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epochs = 3\n", r"'epochs' at its top level: it belongs under \[train\]"),
        ("[select]\nepochs = 3\n", r"'epochs' under \[select\]: it belongs under \[train\]"),
        ("model = 'x'\n", r"'model' .*under \[select\] or \[train\] or \[evaluate\]"),
        ("dat = 'x'\n", r"'dat' at its top level \(did you mean 'data'\?\)"),
        ("[trian]\n", r"'trian' .*did you mean 'train'"),
        ("[train]\nepoch = 3\n", r"under \[train\] in dlth.toml: 'epoch' \(did you mean 'epochs'\?\)"),
        ("[select]\nmodle = 'x'\n", r"under \[select\].*did you mean 'model'"),
        ("train = 3\n", r"train must be a table: write \[train\]"),
        ("data = 3\n", "data must be text in quotes, found 3"),
        ("data = \n", "is not TOML"),
        ("[train]\nselector_ranker = 'my:own'\n", r"names code .*give --selector-ranker my:own, or --config dlth.toml"),
    ],
)
def test_what_a_project_file_cannot_say_is_an_error(folder: Path, text: str, message: str) -> None:
    """Every key and table is known or refused, those of other commands too, with where it belongs or the nearest."""
    Path("dlth.toml").write_text(text)
    with pytest.raises(InputError, match=message):
        train_settings({}, None)


def test_one_file_is_taken_and_its_paths_are_its_own(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """--config, else $DLTH_CONFIG, else ./dlth.toml; paths follow the file, addresses and flags do not."""
    text = 'data = "a-{000..001}.tar,b.tar"\nval = "s3://bucket/val.tar"\n[train]\nrecipe = "smoke"\nresume = "auto"\n'
    Path("lab").mkdir()
    Path("lab/project.toml").write_text(text + 'tickets = "/abs/t.zarr"\ninit_from = "w.pth"\n')
    Path("dlth.toml").write_text('data = "here"\n')
    assert train_settings({}, None).layers.get("data") == "here"
    monkeypatch.setenv("DLTH_CONFIG", "lab/project.toml")
    chosen = train_settings({"tickets": "t.zarr"}, None)
    names = ("data", "val", "resume", "tickets", "init_from", "epochs")
    expected = ["lab/a-{000..001}.tar,lab/b.tar", "s3://bucket/val.tar", "auto", "t.zarr", "lab/w.pth", 6]
    assert [chosen.layers.get(name) for name in names] == expected
    sources = [chosen.layers.sources[name] for name in ("data", "tickets", "epochs", "lr_base", "out")]
    assert sources == ["lab/project.toml", "flag", "recipe smoke", "default", "derived"]
    assert evaluate_settings({}, None).layers.get("val") == "s3://bucket/val.tar"
    assert train_settings({}, Path("dlth.toml")).layers.get("data") == "here"
    monkeypatch.setenv("DLTH_CONFIG", "nowhere.toml")
    with pytest.raises(MissingFileError, match=r"\$DLTH_CONFIG names nowhere\.toml"):
        train_settings({}, None)
    assert beside(Path("lab"), "../w.pth") == "w.pth"


def test_settings_without_a_table_are_taken_from_config_alone(folder: Path) -> None:
    """A run's config.toml works as --config, relative to the working folder, and its own recipe counts, also none."""
    Path("lab").mkdir()
    Path("lab/config.toml").write_text('data = "d"\nout = "o"\narm = "dense"\nrecipe = ""\nmixup = 0.1\n')
    config = train_settings({}, Path("lab/config.toml")).config()
    assert (config.data, config.out, config.recipe, config.mixup, config.drop_path) == ("d", "o", "", 0.1, 0.0)
    with pytest.raises(InputError, match=r"unknown setting in lab/config\.toml: 'arm'"):
        select_settings({}, Path("lab/config.toml"))
    assert project_file("train", Path("lab/config.toml")) == ProjectFile(
        Path("lab/config.toml"), {}, {"train": tomllib.loads(Path("lab/config.toml").read_text())}
    )


def test_a_value_is_the_same_wherever_it_was_written(folder: Path) -> None:
    """The configuration, and with it the digest that names a run, does not know which layer a value came from."""
    Path("dlth.toml").write_text(
        'data = "d"\n[train]\narm = "dense"\nout = "o"\nlr = 0.1\nmodel_kwargs = {depth = 2}\n'
    )
    flags = {"data": "d", "arm": "dense", "out": "o", "lr": 0.1, "model_kwargs": "depth=2"}
    from_file = train_settings({}, None).config()
    Path("dlth.toml").unlink()
    assert from_file == train_settings(flags, None).config()


def test_settings_can_be_printed_before_there_is_anything(dlth: Run, folder: Path) -> None:
    """--print-config of each command needs neither data nor out; what is missing is said; the text is read back."""
    for name in ("select", "train", "evaluate"):
        code, out, err = dlth(name, "--print-config")
        assert code == 0, err
        assert "is required" in err
        (folder / "again.toml").write_text(out)
        again = dlth(name, "--config", "again.toml", "--print-config")[1]
        assert tomllib.loads(again) == tomllib.loads(out)
    assert dlth("train", "--print-config", "--lr", "fast")[0] == 2
    code, _, err = dlth("train", "--arm", "dense")
    assert code == 2
    assert "--data is required: as a flag, or as data in a file of settings (dlth.toml)" in err


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({}, {"out": "tickets.zarr", "view": "whole", "split": "train", "pretrained": True, "data": "s/train-0.tar"}),
        ({"split": "val"}, {"out": "tickets-val.zarr", "view": "center", "data": "s/val-0.tar", "dataset": "set"}),
        ({"split": "val", "view": "whole", "data": "x"}, {"view": "whole", "data": "x"}),
        ({"checkpoint": "w.pth"}, {"pretrained": False}),
        ({"random_weights": True, "out": "o"}, {"pretrained": False, "out": "o"}),
    ],
    ids=["train", "val", "flags win", "checkpoint", "random weights"],
)
def test_what_select_works_out(folder: Path, flags: dict[str, Any], expected: dict[str, Any]) -> None:
    """The ticket file's name, the view, the weights and the shards follow from the split and from what is given."""
    Path("dlth.toml").write_text('data = "s/train-0.tar"\nval = "s/val-0.tar"\ndataset = "set"\n')
    config = select_settings(flags, None).config()
    assert {name: getattr(config, name) for name in expected} == expected


def test_training_shards_are_never_selected_as_validation_shards(folder: Path) -> None:
    """Where the file names training tars alone, `--split val` asks for the others instead of mislabelling these."""
    Path("dlth.toml").write_text('data = "s/train-{0..3}.tar"\n')
    with pytest.raises(InputError, match="does not say where the shards of split val are"):
        select_settings({"split": "val"}, None)


def test_pack_keeps_what_a_user_wrote(folder: Path) -> None:
    """A key that is there stays and is said; a line is added where the top level is; nothing else changes."""
    out, names = folder / "shards", [f"train-{number:06d}.tar" for number in range(12)]
    path = folder / "dlth.toml"
    assert record_shards(out, "train", names) == ["dlth.toml: data = shards/train-{000000..000011}.tar"]
    assert record_shards(out, "train", names) == []
    own = '# mine\ndata = "elsewhere"\n\n[train]\nepochs = 1  # short'
    path.write_text(own)
    assert "says data = elsewhere already, and that stays" in record_shards(out, "train", names)[0]
    assert record_shards(out, "val", ["val-000000.tar"]) == ["dlth.toml: val = shards/val-000000.tar"]
    assert path.read_text().endswith(own)
    assert tomllib.loads(path.read_text()) == tomllib.loads(own) | {"val": "shards/val-000000.tar"}
    path.write_bytes(b"# mine\r\n")
    record_shards(out, "train", names[:1])
    assert path.read_bytes() == b'# mine\r\ndata = "shards/train-000000.tar"\n'
    path.write_text("not = = toml")
    assert "does not name these shards" in record_shards(out, "train", names)[0]
    assert path.read_text() == "not = = toml"
    assert record_shards(out, "extra", names) == []
    assert brace_range(["a-000009.tar", "a-000010.tar"]) == "a-{000009..000010}.tar"


def test_a_runs_folder_is_its_own(folder: Path) -> None:
    """The same settings and inputs find their folder again; whatever decides a result and differs takes another."""
    given = {"data": "d", "arm": "random", "keep": "0.7", "recipe": "none"}
    config = train_settings(given, None).config()
    assert config.out == "runs/random-deit_small-projected-keep0.7-seed42"
    Path(config.out).mkdir(parents=True)
    (Path(config.out) / CONFIG).write_text(to_toml(config))
    assert run_folder(config, None) == Path(config.out)
    same = {"batch_size": 7, "workers": 1, "resume": "auto", "device": "cpu"}
    others = {"lr": 0.1, "data": "e", "tickets": "t.zarr", "val": "v", "split": "x", "epochs": 9}
    assert all(is_free(type(config).model_fields[name]) for name in same)
    for name, value in (same | others).items():
        out = train_settings(given | {name: value}, None).config().out
        assert (out == config.out, name) == (name in same, name)
    assert train_settings(given | {"seed": 1}, None).config().out.endswith("seed1")


def test_a_twin_must_belong(make_shards: Callable[..., Any], dlth: Run, folder: Path) -> None:
    """Validation tickets beside the training's are taken if they are of a validation split and the same selector's."""
    shards = make_shards(1, 3)
    tiny = [word for line in TINY.strip().splitlines() for word in _flag(line)]
    made = {"train.zarr": ("train", 0), "val.zarr": ("val", 0), "a.zarr": ("train", 0), "a-test.zarr": ("test", 1)}
    for name, (split, seed) in (made | {"b.zarr": ("train", 0), "b-val.zarr": ("train", 0)}).items():
        words = ("--data", shards.paths[0], "--out", name, "--split", split, "--seed", seed)
        code, _, err = dlth("select", *tiny, "--random-weights", "--keep", "0.5", *words)
        assert code == 0, err
    assert twin_of("train.zarr") == (Path("val.zarr"), ["val tickets: val.zarr, the twin of train.zarr"])
    assert twin_of("a.zarr")[0] is None
    assert "a-test.zarr is not taken as --val-tickets: another selector made it" in twin_of("a.zarr")[1][0]
    assert "b-val.zarr is not taken as --val-tickets: its header says split 'train'" in twin_of("b.zarr")[1][0]
    shutil.copytree("train.zarr", "c.zarr")
    Path("c-val.zarr").write_text("no ticket file")
    assert "c-val.zarr is not taken as --val-tickets: it cannot be opened" in twin_of("c.zarr")[1][0]
    assert twin_of("val.zarr") == twin_of("nowhere.zarr") == (None, [])
