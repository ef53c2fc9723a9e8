"""The commands as a user types them: the whole way from images to a trained student, and what mistakes look like."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tomllib
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import timm
from makers import ROOT
from makers.masks import KWARGS, leave_run
from makers.pictures import make_tar
from makers.runs import MODEL, SMALL
from makers.tampering import flip
from makers.tickets import select_tickets
from makers.warm import run_warm
from safetensors.torch import load_file

from dlth.data.shards.index import open_index
from dlth.pipeline.selection.config import SelectConfig
from dlth.tickets import TicketStore
from dlth.tickets.exchange.card import card
from dlth.training.settings.eval_config import EvalConfig
from dlth.training.settings.train_config import TrainConfig

SMOKE = ("train", *SMALL, "--recipe", "smoke")

Run = Callable[..., tuple[int, str, str]]


def test_from_a_folder_of_images_to_a_trained_student(
    dlth: Run, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pack, index, select, verify, train and evaluate, each on what another process left.

    pack, verify and train have processes of their own, all else is done in this one: starting torch takes seconds.
    """
    monkeypatch.chdir(tmp_path)

    def process(*words: object) -> dict[str, Any]:
        [done] = run_warm((Path(sys.executable).with_name("dlth"), *words, "--json"))
        assert done.returncode == 0, f"{words}: {done.stderr}"
        return json.loads(done.stdout)

    def here(*words: object) -> dict[str, Any]:
        code, out, err = dlth(*words, "--json")
        assert code == 0, f"{words}: {err}"
        return json.loads(out)

    packed = process("pack", images, "--out", "shards", "--shard-size", 10)
    assert (packed["images"], packed["classes"], packed["shards"]) == (24, 3, 3)
    listed = here("index", "shards")
    assert (listed["images"], *map(len, map(listed.get, ("order", "labels", "content")))) == (24, 64, 64, 64)
    for name, view in (("train", "whole"), ("val", "center")):
        chosen = here(
            *("select", *SMALL, "--data", "shards", "--out", f"{name}.zarr", "--view", view, "--split", "train"),
            *("--random-weights", "--keep", "0.5", "--blocks", "0,1", "--num-classes", 3, "--workers", 0),
        )
        assert (chosen["complete"], chosen["images"]) == (True, 24)
    checked = process("tickets", "verify", "train.zarr")
    assert checked["ok"]
    assert checked["identity"] == here("tickets", "info", "train.zarr")["identity"]
    arms = {}
    for arm, run, workers in (("ticket", process, 1), ("random", here, 0), ("dense", here, 0)):
        arms[arm] = run(
            *(*SMOKE, "--arm", arm, "--data", "shards", "--val", "shards"),
            *("--tickets", "train.zarr", "--val-tickets", "val.zarr", "--out", arm, "--epochs", 2, "--batch-size", 8),
            *("--workers", workers),
        )
    assert [(run["arm"], run["mode"], run["k"], run["steps"]) for run in arms.values()] == [
        ("ticket", "projected", 8, 6),
        ("random", "", 8, 6),
        ("dense", "", 16, 6),
    ]
    assert arms["ticket"]["tickets"] == checked["identity"]
    table = arms["ticket"]["evaluation"]["model"]
    assert {kind: (row["images"], row["tokens"]) for kind, row in table.items()} == {
        "dense": (24, 16),
        "ticket": (24, 8),
        "random": (24, 8),
    }
    words = ("--checkpoint", "ticket", "--val", "shards", "--val-tickets", "val.zarr", "--workers", 0)
    again = here("evaluate", *words)
    assert again["ticket"]["top1"] == table["ticket"]["top1"]
    assert again["ticket"]["loss"] == pytest.approx(table["ticket"]["loss"], abs=1e-5)
    kwargs = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 3}
    weights = tmp_path / "ticket" / "model.safetensors"
    loaded = timm.create_model("vit_tiny_patch16_224", checkpoint_path=str(weights), **kwargs)
    assert set(load_file(weights)) == set(loaded.state_dict())


@pytest.fixture
def tickets(make_shards: Callable[..., Any], tmp_path: Path) -> tuple[Any, Path]:
    """Shards of 12 images and their finished ticket file."""
    shards = make_shards(2, 6)
    return shards, select_tickets(open_index(shards.spec), tmp_path / "t.zarr").path


def test_the_cards_command_is_accepted_for_its_file(dlth: Run, make_shards: Callable[..., Any], tmp_path: Path) -> None:
    """Tickets of 6x6 patches: the card's command checks and plans a run; for a model of another grid they are
    moved, and the size is told."""
    shards, path = make_shards(1, 4), tmp_path / "t.zarr"
    code, _, err = dlth(
        *("select", *MODEL[:2], "--model-kwargs", "depth=1,embed_dim=24", "--img-size", 96, "--data", shards.spec),
        *("--out", path, "--random-weights", "--num-classes", 4, "--workers", 0),
    )
    assert code == 0, err
    line = next(line for line in card(TicketStore(path), "t.zip", 1).splitlines() if line.startswith("dlth train"))
    words = line.replace("--tickets t ", f"--tickets {path} ").replace("SHARDS", shards.spec).split()[1:]
    rest = ("--out", tmp_path / "run", "--recipe", "smoke", "--batch-size", 2, "--dry-run")
    code, said, err = dlth(*words, *rest)
    assert code == 0, err
    assert "26 of 36 patches" in said
    without = [word for word in words if word not in ("--img-size", "96")]
    code, said, err = dlth(*without, *rest)
    assert code == 0
    assert "138 of 196 patches" in said
    assert "tickets of 6x6 patches are moved to the student's 14x14; --img-size 96 would take them as they are" in err


def test_verify_names_the_damage_and_exits_with_1(dlth: Run, tickets: tuple[Any, Path]) -> None:
    """One flipped bit in one chunk is found, with the shard's and the file's name."""
    _, path = tickets
    assert dlth("tickets", "verify", path)[0] == 0
    flip(path / "patches" / "c.1.0.0", 300)
    code, _, err = dlth("tickets", "verify", path)
    assert code == 1
    assert "train-000001.tar" in err
    assert "patches/c.1.0.0" in err


def test_info_shows_the_header_and_draws_a_ticket(dlth: Run, tickets: tuple[Any, Path]) -> None:
    """The drawing has the grid's shape and k marks."""
    shards, path = tickets
    code, out, _ = dlth("tickets", "info", path, "--key", shards.all_keys[7])
    assert code == 0
    assert "8 of 16 patches" in out
    drawn = out.split("the last):\n")[1].splitlines()
    assert len(drawn) == 4
    assert sum(line.count(mark) for line in drawn for mark in "■▣□") == 8


def test_a_ranker_is_named_by_a_flag_and_shown(
    dlth: Run, tickets: tuple[Any, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of dlth's, and one's own from the working folder (the page's example), in the plan, the file's facts and a
    refusal.
    """
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "rankers.md").read_text()
    Path("my_own_ranker.py").write_text(page.split("```python\n")[1].split("```")[0])
    words = ("select", *SMALL, "--data", tickets[0].spec, "--random-weights", "--num-classes", 3, "--workers", 0)
    for ranker in ("rollout", "my_own_ranker:make"):
        out = f"{ranker[:3]}.zarr"
        code, said, err = dlth(*words, "--out", out, "--keep", "0.5", "--ranker", ranker)
        assert code == 0, err
        assert f"ranker                   {ranker}" in said
        facts = json.loads(dlth("tickets", "info", out, "--json")[1])
        assert (facts["ranker"], facts["header"]["extensions"]) == (ranker, {"ranker": ranker})
        assert f"blocks 1, ranked by {ranker}" in facts["tickets are"]
    assert json.loads(dlth("tickets", "info", tickets[1], "--json")[1])["ranker"] == "evit"
    code, _, err = dlth(*words, "--out", "x.zarr", "--ranker", "my_own_ranker:mak")
    assert (code, "my_own_ranker has no 'mak'" in err) == (2, True)
    Path("dlth.toml").write_text("[select]\nranker = 'my_own_ranker:make'\n")
    code, _, err = dlth(*words, "--out", "x.zarr")
    assert (code, "give --ranker my_own_ranker:make, or --config dlth.toml" in err) == (2, True)


def test_an_unfinished_file_is_refused_everywhere(dlth: Run, tickets: tuple[Any, Path]) -> None:
    """info, verify and train say that it is unfinished and what to do, with exit code 2."""
    shards, path = tickets
    shutil.copytree(path, path.with_name("u.zarr.partial") / "store")
    training = (*SMOKE, "--data", shards.spec, "--out", path.with_name("run"), "--tickets")
    for words in (("tickets", "info"), ("tickets", "verify"), training):
        code, _, err = dlth(*words, path.with_name("u.zarr"))
        assert code == 2, err
        assert "select" in err
        assert "Traceback" not in err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(("--keep", "1.5"), "keep", id="more than all patches"),
        pytest.param(("--tickets", "nowhere.zarr"), "nowhere.zarr", id="no such ticket file"),
        pytest.param(("--patch-size", "16"), "patches of 8 pixels", id="another patch size"),
        pytest.param(("--split", "val"), "val", id="another split"),
        pytest.param(("--learning-rate", "1"), "No such option", id="unknown flag"),
        pytest.param(("--epochs", "many"), "--epochs", id="not a number"),
        pytest.param(("--mixup", "-1"), "--mixup", id="out of range"),
        pytest.param(("--resume", "nowhere"), "nowhere", id="no such checkpoint"),
    ],
)
def test_what_does_not_fit_is_refused_before_training(
    dlth: Run, tickets: tuple[Any, Path], tmp_path: Path, change: tuple[str, ...], message: str
) -> None:
    """Exit code 2, one message that names it, no traceback, no step taken."""
    shards, path = tickets
    words = [*SMOKE, "--data", shards.spec, "--tickets", path, "--out", tmp_path / "run"]
    code, _, err = dlth(*words, "--workers", 0, "--num-classes", 4, *change)
    assert code == 2, err
    assert message in err
    assert "Traceback" not in err
    assert not (tmp_path / "run" / "result.json").exists()


def test_print_config_gives_a_file_that_config_reads_back(dlth: Run, tmp_path: Path) -> None:
    """The merged settings, printed and read again, are the same settings; each says where it came from."""
    given = ("--recipe", "deit", "--data", "d", "--tickets", "t", "--out", "o", "--lr", "0.001")
    code, first, _ = dlth("train", *given, "--print-config")
    assert code == 0
    for line in ('aa = "rand-m9-mstd0.5-inc1"  # recipe deit', "lr = 0.001  # flag", "momentum = 0.9  # default"):
        assert line in first.splitlines()
    assert 'model = "deit_small"  # default' in first.splitlines()
    (tmp_path / "c.toml").write_text(first)
    again = dlth("train", "--config", tmp_path / "c.toml", "--print-config")[1]
    assert tomllib.loads(again) == tomllib.loads(first)
    assert f"lr = 0.001  # {tmp_path / 'c.toml'}" in again.splitlines()
    swin = dlth("train", "--recipe", "swin", "--print-config")[1]
    assert 'model = "swin_tiny_patch4_window7_224"  # recipe swin' in swin.splitlines()
    assert "# model is not set" in dlth("train", "--init-from", "w.pth", "--print-config")[1].splitlines()


def test_a_dry_run_of_training_takes_no_step(dlth: Run, tickets: tuple[Any, Path], tmp_path: Path) -> None:
    """The plan is printed, and nothing is written."""
    shards, path = tickets
    words = (*SMOKE, "--data", shards.spec, "--tickets", path, "--out", tmp_path / "run")
    code, out, err = dlth(*words, "--workers", 0, "--dry-run", "--json")
    assert code == 0, err
    assert json.loads(out)["tokens"] == "8 of 16 patches"
    assert not (tmp_path / "run").exists()


def test_of_many_processes_one_prints_the_plan(
    dlth: Run, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under torchrun a dry run with --json is one object, not one for each process."""
    assert dlth("pack", images, "--out", tmp_path / "shards")[0] == 0
    words = ("select", "--data", tmp_path / "shards", "--random-weights", *MODEL, "--dry-run", "--json")
    printed = []
    for rank in "01":
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("WORLD_SIZE", "2")
        code, out, err = dlth(*words, "--out", tmp_path / "t.zarr")
        assert code == 0, err
        printed.append(bool(out))
    assert printed == [True, False]


def test_a_later_step_with_nobodys_weights_is_told(dlth: Run, make_shards: Callable[..., Any], tmp_path: Path) -> None:
    """--start-step begins with random weights, and says so, unless --init-from names others."""
    kwargs = ",".join(f"{name}={value}" for name, value in KWARGS.items())
    words = ("train", *MODEL[:2], "--model-kwargs", kwargs, "--img-size", 32, "--arm", "dense", "--workers", 0)
    words += ("--data", make_shards(2, 6).spec, "--out", tmp_path / "run", "--dry-run")
    later, others = ("--start-step", 1), ("--init-from", leave_run(tmp_path / "first", 0, num_classes=4))
    for start, told in (((), False), (later, True), ((*later, *others), False)):
        code, _, err = dlth(*words, *start)
        assert (code, "--start-step 1 begins with fresh random weights" in err) == (0, told), err


def test_check_finds_a_damaged_shard_and_exits_with_1(dlth: Run, images: Path, tmp_path: Path) -> None:
    """A flipped bit inside an image leaves the tar whole; the declared digest finds it, and names the shard."""
    assert dlth("pack", images, "--out", tmp_path / "shards", "--shard-size", 10)[0] == 0
    assert dlth("index", tmp_path / "shards", "--check")[0] == 0
    flip(tmp_path / "shards" / "train-000001.tar", 8 * 700 + 2)
    code, _, err = dlth("index", tmp_path / "shards", "--check")
    assert code == 1
    assert "train-000001.tar" in err
    assert "train-000000.tar" not in err


def test_the_version_is_the_packages(dlth: Run) -> None:
    """`dlth --version` says which version is installed, and does nothing else."""
    assert dlth("--version") == (0, f"dlth {version('dlth')}\n", "")


def test_one_thing_has_one_name_in_every_command() -> None:
    """The split of --data is --split, that of --val --val-split, compiling --torchcompile, and blocks have one text."""
    flags = [set(config.model_fields) for config in (SelectConfig, TrainConfig, EvalConfig)]
    assert all({"data", "split"} <= names or "data" not in names for names in flags)
    assert all({"val", "val_split"} <= names or "val" not in names for names in flags)
    assert not set().union(*flags) & {"train_split", "compile"}
    texts = SelectConfig.model_fields["blocks"].description, TrainConfig.model_fields["selector_blocks"].description
    assert texts[0] == texts[1]


def test_a_signal_to_the_whole_process_group_saves_and_exits_with_75(
    dlth: Run, make_shards: Callable[..., Any], tmp_path: Path
) -> None:
    """Schedulers signal the loader's processes too: the step is finished and a checkpoint is written."""
    shards = make_shards(2, 16)
    words = [*SMOKE, "--arm", "dense", "--data", shards.spec, "--out", tmp_path / "run"]
    words += ["--workers", 1, "--num-classes", 4, "--batch-size", 4, "--epochs", 4000, "--warmup-epochs", 0]
    command = [str(Path(sys.executable).with_name("dlth")), *map(str, words), "--log-interval=1"]
    child = subprocess.Popen(command, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert child.stderr is not None
    for line in child.stderr:
        if line.startswith("epoch 2 "):
            break
    os.killpg(child.pid, signal.SIGTERM)
    _, err = child.communicate(timeout=120)
    assert child.returncode == 75, err
    assert "Traceback" not in err
    last = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert (tmp_path / "run" / "checkpoints" / f"step-{last['step']:08d}").is_dir()


def test_a_corrupt_validation_image_is_left_out_by_name(
    dlth: Run, make_shards: Callable[..., Any], tmp_path: Path
) -> None:
    """With --bad-images skip the run and `dlth evaluate` both say which image their figures do not count."""
    shards = make_shards(1, 6)
    broken = [("broken.jpg", b"\xff\xd8\xff\xe0 not an image"), ("broken.cls", b"1")]
    make_tar(shards.folder / "train-000001.tar", broken)
    run, both = tmp_path / "run", ("--val", shards.spec, "--workers", 0, "--bad-images", "skip")
    training = (*SMOKE, "--arm", "dense", "--data", shards.paths[0], "--out", run, "--epochs", 2, "--num-classes", 4)
    for words in (training, ("evaluate", "--checkpoint", run)):
        code, _, err = dlth(*words, *both)
        assert code == 0, err
        assert "1 of 7 validation images were not measured: broken" in err
